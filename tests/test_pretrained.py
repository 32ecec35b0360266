"""Trained weights to start from: files of odn and of the libraries, what does not fit, runs that start from them."""

import dataclasses
import hashlib
import json
import logging
import tomllib
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import mobilenet_v2, resnet18, resnet34

from conftest import stripes, tiny_data
from odn.backbones import BACKBONES, Origin
from odn.backbones.loading import fetch
from odn.config import FinetuneConfig, TrainConfig
from odn.errors import OdnError, UsageError
from odn.extraction import extract, finetune, finetune_epochs
from odn.network import PartitionedNetwork, partition
from odn.stage import Stage
from odn.storage import load_network, save_network

GRAY, COLOUR = (1, 32, 32), (3, 32, 32)


@dataclasses.dataclass(frozen=True)
class Shape:
    input_shape: tuple[int, ...] = COLOUR
    classes: tuple[str, ...] = ("a", "b", "c")


def unsettled(network: nn.Module) -> nn.Module:
    """Give every weight and statistic a value that no constructor gives."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.05)
    return network


def written(network: nn.Module, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


@pytest.fixture
def own(tmp_path):
    """Weights of cifar_resnet20 at depth 4, as odn writes them."""
    network = extract(unsettled(partition("cifar_resnet20", Shape())), 4)
    save_network(network, tmp_path / "own")
    return tmp_path / "own" / "weights.safetensors"


def trunk(network: PartitionedNetwork, blocks: int | None = None) -> nn.Module:
    return nn.Sequential(network.stem, *network.blocks[:blocks]).eval()


# the libraries' own files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "library", "last"), [("resnet18", resnet18, "layer4"), ("mobilenet_v2", mobilenet_v2, "")]
)
def test_a_state_dict_of_torchvision_gives_its_features(tmp_path, name, library, last):
    whole = unsettled(library()).eval()
    network = partition(name, Shape(), weights=written(whole, tmp_path / "w.safetensors"))
    assert (network.origin.blocks, network.origin.source) == (network.max_depth, str(tmp_path / "w.safetensors"))
    x, seen = torch.randn(2, *COLOUR), []
    (whole.get_submodule(last) if last else whole.features[17]).register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.no_grad():
        whole(x)
        assert torch.equal(trunk(network)(x), seen[0])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_a_state_dict_of_timm_gives_its_features(tmp_path, name):
    timm = pytest.importorskip("timm")
    size = {"img_size": 32} if name.startswith("vit") else {}
    whole = unsettled(timm.create_model(name, **size))
    file = written(whole, tmp_path / "w.safetensors")
    network = partition(f"timm/{name}", Shape(), weights=file)
    mine = {**dict(network.stem.named_parameters()), **dict(network.blocks.named_parameters())}
    sums = sorted(float(p.detach().double().sum()) for p in mine.values())
    theirs = [float(p.detach().double().sum()) for p in whole.parameters()]
    assert sums
    assert all(any(abs(a - b) < 1e-9 for b in theirs) for a in sums)


def test_heads_are_new_and_the_seed_decides_them(tmp_path):
    file = written(unsettled(resnet18()), tmp_path / "w.safetensors")
    first, again, other = (partition("resnet18", Shape(), weights=file, seed=seed) for seed in (1, 1, 2))
    heads = [network.heads[7].linear.weight for network in (first, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert heads[0].abs().max() < 0.05


def test_a_stem_for_one_channel_gets_the_sum_of_the_colours(tmp_path, caplog):
    whole = unsettled(resnet18()).eval()
    file = written(whole, tmp_path / "w.safetensors")
    network = partition("resnet18", Shape(GRAY), weights=file)
    assert "the filters of 'conv1.weight' for red, green and blue are summed" in caplog.text
    gray = torch.randn(2, *GRAY)
    with torch.no_grad():
        seen = []
        whole.layer4.register_forward_hook(lambda *a: seen.append(a[2]))
        whole(gray.expand(-1, 3, -1, -1))
        torch.testing.assert_close(trunk(network)(gray), seen[0], rtol=1e-4, atol=1e-4)


def test_old_files_without_counters_are_read(tmp_path):
    tensors = {n: t for n, t in resnet18().state_dict().items() if not n.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "w.safetensors")
    assert partition("resnet18", Shape(), weights=tmp_path / "w.safetensors").origin.blocks == 8


# odn's own files ---------------------------------------------------------------------------------------------------


def test_a_prefix_gives_its_blocks_and_says_that_the_others_are_fresh(own, caplog):
    network, fresh = partition("cifar_resnet20", Shape(), weights=own), partition("cifar_resnet20", Shape())
    assert f"{own} holds 4 of the 9 blocks of 'cifar_resnet20'; the other 5 are fresh" in caplog.text
    assert (network.origin.blocks, [network.prefix(d).pretrained for d in (1, 4, 9)]) == (4, [1, 4, 4])
    kept, x = load_network(own.parent).eval(), torch.randn(2, *COLOUR)
    with torch.no_grad():
        assert torch.equal(trunk(network, 4)(x), nn.Sequential(kept.stem, *kept.blocks)(x))
    assert all(
        torch.equal(a, b) for a, b in zip(network.blocks[4:].parameters(), fresh.blocks[4:].parameters(), strict=True)
    )
    assert not torch.equal(network.heads[3].linear.weight, kept.head.linear.weight)


def test_shorter_floats_are_read(own, tmp_path):
    tensors = {n: t.bfloat16() if t.is_floating_point() else t for n, t in load_file(own).items()}
    save_file(tensors, tmp_path / "short.safetensors")
    network = partition("cifar_resnet20", Shape(), weights=tmp_path / "short.safetensors")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(network.stem.conv.weight, load_file(own)["stem.conv.weight"].bfloat16().float())


def test_a_stem_that_is_code_is_found_in_its_own_file(tmp_path):
    pytest.importorskip("timm")
    name = "timm/vit_tiny_patch16_224"
    first = unsettled(partition(name, Shape()))
    save_network(extract(first, 2), tmp_path / "vit")
    network = partition(name, Shape(), weights=tmp_path / "vit" / "weights.safetensors")
    x = torch.randn(1, *COLOUR)
    with torch.no_grad():
        assert torch.equal(trunk(network, 2)(x), trunk(first, 2)(x))


# what does not fit -------------------------------------------------------------------------------------------------


def changed(own: Path, tmp_path: Path, change) -> Path:
    tensors = load_file(own)
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


def test_weights_of_another_architecture_are_refused_at_the_first_path_that_differs(tmp_path, own):
    theirs = written(resnet34(), tmp_path / "resnet34.safetensors")
    with pytest.raises(UsageError) as error:
        partition("resnet18", Shape(), weights=theirs)
    assert str(error.value).startswith(
        f"{theirs} does not fit 'resnet18' at 'layer1.2.bn1.bias': it has 64, the network nothing"
    )
    with pytest.raises(UsageError, match=r"at 'layer1\.2\.conv1\.weight': it has nothing, the network 64x64x3x3"):
        partition("resnet34", Shape(), weights=written(resnet18(), tmp_path / "resnet18.safetensors"))
    with pytest.raises(
        UsageError, match=r"at 'stem\.conv\.weight': it has 16x3x3x3, the network 8x3x3x3; give weights of"
    ):
        partition("cifar_resnet20", Shape(), width=0.5, weights=own)
    with pytest.raises(UsageError, match=r"at 'stem\.conv1\.weight': it has nothing, the network 64x3x7x7"):
        partition("resnet18", Shape(), weights=own)
    gray = Shape(GRAY)
    save_network(extract(partition("cifar_resnet20", gray), 1), tmp_path / "gray")
    with pytest.raises(UsageError, match="it has 16x1x3x3, the network 16x3x3x3"):
        partition("cifar_resnet20", Shape(), weights=tmp_path / "gray" / "weights.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.1.bn1.bias"), r"at 'blocks\.1\.bn1\.bias': it has nothing, the network 16"),
        (lambda t: t.update({"blocks.3.x": torch.zeros(2)}), r"at 'blocks\.3\.x': it has 2, the network nothing"),
        (lambda t: t.update({"blocks.9.x": torch.zeros(64)}), r"at 'blocks\.4\.conv1\.weight': it has nothing"),
        (lambda t: t["stem.norm.bias"][3:4].fill_(torch.nan), "infinite or NaN numbers in 'stem.norm.bias'"),
        (lambda t: t.update({"stem.norm.bias": torch.zeros(16).char()}), "'stem.norm.bias' as torch.int8; allowed"),
    ],
)
def test_damaged_weights_are_refused_by_name(own, tmp_path, change, message):
    with pytest.raises(OdnError, match=message):
        partition("cifar_resnet20", Shape(), weights=changed(own, tmp_path, change))


def test_files_that_are_none_are_refused_in_one_line(own, tmp_path):
    with pytest.raises(
        UsageError, match=r"there is no file of weights at .*none.safetensors; give a .safetensors file"
    ):
        partition("cifar_resnet20", Shape(), weights=tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match=rf"give {own}$"):
        partition("cifar_resnet20", Shape(), weights=own.parent)
    for content in (b"", b"\x80\x02}q\x00.", own.read_bytes()[:-100], own.read_bytes()[:40]):
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(content)
        with pytest.raises(
            OdnError, match=r"broken.safetensors is no sound safetensors file \(.*copy it again"
        ) as error:
            partition("cifar_resnet20", Shape(), weights=broken)
        assert "\n" not in str(error.value)


def test_weights_are_for_backbones_with_a_name_and_one_source(own):
    with pytest.raises(UsageError, match="width, vocabulary and weights are for backbones with a name"):
        partition(resnet18(), Shape(), blocks=["layer#.#"], weights=own)
    with pytest.raises(UsageError, match="weights and pretrained exclude each other; give one of them"):
        partition("resnet18", Shape(), weights=own, pretrained=True)


# what libraries publish --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18_small", "bert_tiny"])
def test_a_family_without_published_weights_is_refused(name):
    shape = Shape((12,)) if name == "bert_tiny" else Shape()
    if name == "bert_tiny":
        pytest.importorskip("transformers")
    with pytest.raises(
        UsageError, match=f"no pretrained weights exist for '{name}' of .*; choose a backbone of torchvision"
    ):
        partition(name, shape, pretrained=True)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's cache in a folder of the test, and no network."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))

    def offline(*_arguments, **_options):
        raise urllib.error.URLError("[Errno -2] Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", offline)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_torchvisions_weights_are_taken_from_its_cache(hub):
    whole = unsettled(resnet18())
    torch.save(whole.state_dict(), hub / "resnet18-f37072fd.pth")
    network = partition("resnet18", Shape(), pretrained=True)
    assert (network.origin.blocks, network.origin.source) == (8, "torchvision's resnet18")
    assert torch.equal(network.blocks[7].conv2.weight, whole.layer4[1].conv2.weight)


def test_without_a_network_one_line_says_what_to_do(hub):
    with pytest.raises(OdnError) as error:
        partition("resnet18", Shape(), pretrained=True)
    assert str(error.value) == (
        "torchvision cannot bring the weights of 'resnet18' along (<urlopen error [Errno -2] Name or service not "
        "known>); connect to the network, put them into its cache, or give them with --weights FILE.safetensors"
    )


def test_a_cached_file_that_would_run_code_is_refused(hub):
    torch.save({"conv1.weight": Path("/")}, hub / "resnet18-f37072fd.pth")
    with pytest.raises(OdnError, match="cannot bring the weights of 'resnet18' along .*[Ww]eights"):
        partition("resnet18", Shape(), pretrained=True)


@pytest.mark.parametrize(("name", "shape"), [("mobilenetv3_small_050", GRAY), ("vit_tiny_patch16_224", COLOUR)])
def test_timms_weights_are_loaded_whole(tmp_path, monkeypatch, name, shape):
    timm = pytest.importorskip("timm")
    whole = unsettled(timm.create_model(name))
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_a, **_o: dict(whole.state_dict()))
    network = partition(f"timm/{name}", Shape(shape), pretrained=True)
    assert network.origin.source == f"timm's timm/{name}"
    theirs = [float(p.detach().double().sum()) for p in whole.parameters()]
    assert all(float(p.detach().double().sum()) in theirs for p in network.blocks[-1].parameters())
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf",
        lambda *_a, **_o: {n: t for n, t in whole.state_dict().items() if not n.startswith("blocks.3.")},
    )
    with pytest.raises(OdnError, match="timm cannot bring the weights of .* along .*Missing key"):
        partition(f"timm/{name}", Shape(shape), pretrained=True)


def test_what_the_hub_says_of_every_attempt_is_kept_back(capsys, caplog):
    hub = logging.getLogger("huggingface_hub")

    def attempt():
        hub.warning("Retrying in 8s [Retry 4/5].")
        raise OSError("no network")

    with pytest.raises(OdnError, match=r"transformers cannot bring the tokenizer of 'bert_base' along \(no network\)"):
        fetch(BACKBONES["bert_base"], attempt, "tokenizer")
    assert "Retrying" not in caplog.text + capsys.readouterr().err
    assert hub.level != logging.ERROR


def test_timm_says_when_it_has_none():
    timm = pytest.importorskip("timm")
    name = "timm/" + next(n for n in timm.list_models("resnet*") if not timm.is_model_pretrained(n))
    with pytest.raises(UsageError, match=f"timm has no weights for '{name}'; choose another backbone, or give a file"):
        partition(name, Shape(), pretrained=True)


def test_a_directory_of_transformers_gives_its_weights(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, pad_token_id=0,
    )  # fmt: skip
    whole = unsettled(transformers.BertForMaskedLM(config))  # with another head: transformers knows its own files
    whole.save_pretrained(tmp_path)
    network = partition(str(tmp_path), Shape((12,)), pretrained=True)
    assert network.origin.blocks == 2
    theirs = whole.bert.encoder.layer[1].output.dense.weight
    assert torch.equal(network.blocks[1].layer.output.dense.weight, theirs)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="has no model.safetensors; save_pretrained of the encoder or of its tok"):
        partition(str(tmp_path), Shape((12,)), pretrained=True)


# training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "fresh", "trained"),
    [
        ({"learning_rate": 1.0}, 1.0, 0.05),
        ({"learning_rate": 1.0, "pretrained_rate": 0.3}, 1.0, 0.3),
        ({}, 0.1, 0.05),
        ({"optimizer": "adamw", "learning_rate": 0.1}, 0.1, 0.0005),
    ],
)
def test_trained_weights_learn_at_a_lower_rate_than_fresh_ones(settings, fresh, trained):
    data = tiny_data()
    network = partition("cifar_resnet20", data.spec, width=0.25)
    network.origin = Origin(blocks=2, source="x", sha256="")
    stage = Stage(network.prefix(3), TrainConfig(batch_size=16, precision="fp32", **settings), data.train)
    rates = {id(p): group["initial_lr"] for group in stage.optimizer.param_groups for p in group["params"]}
    slow = [*stage.network.stem.parameters(), *stage.network.blocks[:2].parameters()]
    fast = [*stage.network.blocks[2].parameters(), *stage.network.head.parameters()]
    assert {rates[id(p)] for p in slow} == {trained}
    assert {rates[id(p)] for p in fast} == {fresh} == {stage.learning_rate(lambda _: 1.0)}
    assert len(rates) == len(slow) + len(fast)


def test_the_extracted_network_knows_what_came_trained(tmp_path):
    network = partition(resnet18(num_classes=3), Shape(), blocks=["layer#.#"], pretrained=True)
    assert (network.origin.blocks, extract(network, 3).pretrained) == (8, 3)
    assert partition(resnet18(num_classes=3), Shape(), blocks=["layer#.#"]).prefix(3).pretrained == 0


# runs --------------------------------------------------------------------------------------------------------------

RUN = (
    "--target", 0.9, "--backbone", "cifar_resnet20", "--width", 0.25, "--depths", "1,2",
    "--epochs-per-depth", 2, "--finetune-epochs", 1, "--precision", "fp32",
)  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    """Weights of cifar_resnet20 at depth 2 that tell stripes apart."""
    data = tiny_data()
    network = extract(partition("cifar_resnet20", data.spec, width=0.25), 2)
    finetune(network, data.train, data.valid, config=FinetuneConfig(epochs=3, rate=1.0))
    save_network(network.cpu(), tmp_path / "trained")
    return tmp_path / "trained" / "weights.safetensors"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[report]\nlatency_seconds = 0.0\n")
    return path


def test_a_run_starts_from_weights_and_goes_on_without_the_file(odn, hopeless, tmp_path, weights, recipe, monkeypatch):
    arguments = ("run", hopeless, *RUN, "--weights", weights, "--config", recipe)
    tuned = []
    monkeypatch.setattr("odn.run.finetune_epochs", lambda n, *a, **o: tuned.append(n) or finetune_epochs(n, *a, **o))
    code, _, err = odn(*arguments, "--run", tmp_path / "whole")
    assert code == 3, err
    assert [small.pretrained for small in tuned] == [small.depth for small in tuned]  # the lower rate stays
    config = tomllib.loads((tmp_path / "whole" / "config.toml").read_text())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (config["weights"], config["weights_sha256"], config["pretrained"]) == (str(weights), digest, False)
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["start"]["source"] == str(weights)
    assert [probe["depth"] for probe in report["start"]["probes"]] == [1, 2]
    assert (
        "Validation accuracy of linear probes on frozen features, by depth: 1 "
        in (tmp_path / "whole" / "report.html").read_text()
    )
    # One forward pass of the deepest network probed per image counts; nothing else of the cost is new.
    history = [json.loads(line) for line in (tmp_path / "whole" / "history.jsonl").read_text().splitlines()]
    macs = [row["macs"] for row in json.loads(odn("profile", "cifar_resnet20", *PROFILE)[1])]
    first_head = 4 * 3  # channels and classes: the head of depth 1 learns with that of depth 2
    epochs = sum(
        (macs[r["depth"] - 1] + first_head * (len(r["scores"]) == 2))
        * (3 * r["train_samples"] + r["evaluated_samples"])
        for r in history
    )
    assert report["start"]["images"] == 240
    assert report["cost"]["train_macs"] == epochs + macs[1] * 240
    # Interrupted after an epoch, the run needs no file but its own.
    cut = ("expand", *arguments[1:], "--run", tmp_path / "cut")
    monkeypatch.setattr("odn.checkpoint.Checkpoints.commit", interrupted_after(1))
    assert odn(*cut)[0] == 1
    monkeypatch.undo()
    weights.unlink()
    assert odn(*cut, "--resume")[0] == 3
    resumed = [json.loads(line) for line in (tmp_path / "cut" / "history.jsonl").read_text().splitlines()]
    expanded = [record for record in history if record["phase"] in ("expand", "settle", "refine")]
    assert [r | {"seconds": 0} for r in resumed] == [r | {"seconds": 0} for r in expanded]
    kept = [tmp_path / name / "checkpoints" / "depth_002" / "weights.safetensors" for name in ("whole", "cut")]
    assert kept[0].read_bytes() == kept[1].read_bytes()


PROFILE = ("--width", 0.25, "--input-shape", "1x8x8", "--classes", 3, "--json")


def interrupted_after(count: int):
    from odn.checkpoint import Checkpoints

    commit, done = Checkpoints.commit, []

    def committed(self, record, stage):
        commit(self, record, stage)
        done.append(record)
        if len(done) == count:
            raise KeyboardInterrupt

    return committed


def test_a_file_that_changed_before_training_began_is_refused(
    odn, refused, hopeless, tmp_path, weights, recipe, monkeypatch
):
    arguments = ("expand", hopeless, *RUN, "--weights", weights, "--config", recipe, "--run", tmp_path / "run")

    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("odn.expansion.probe", interrupted)
    assert odn(*arguments)[0] == 1
    monkeypatch.undo()
    sound = weights.read_bytes()
    tensors = load_file(weights)
    tensors["stem.conv.weight"][0] += 1
    save_file(tensors, weights)
    text = refused(*arguments, "--resume", code=1)
    assert f"{weights} was changed: its SHA-256 is {hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}..." in text
    assert f"{hashlib.sha256(sound).hexdigest()[:12]}... in the settings of {tmp_path / 'run'}; restore it" in text
    # A recipe that names the checksum holds other runs to it, too.
    recipe_of_run = tmp_path / "run" / "config.toml"
    assert "was changed" in refused("expand", "--config", recipe_of_run, "--run", tmp_path / "other", code=1)
    weights.write_bytes(sound)
    assert odn(*arguments, "--resume")[0] == 3
    start = tmp_path / "run" / "checkpoints" / "start.safetensors"
    start.write_bytes(start.read_bytes()[:-1] + b"x")
    (tmp_path / "run" / "history.jsonl").write_text("")
    for state in start.parent.glob("expand*"):
        state.unlink()
    assert "start.safetensors was changed since it was written; start anew" in refused(*arguments, "--resume", code=1)
    (tmp_path / "run" / "start.json").write_text('{"source": 3}')
    assert "start.json is damaged" in refused(*arguments, "--resume", code=1)


def test_what_cannot_be_started_from_is_refused_before_anything_is_written(refused, npz, tmp_path, weights):
    run = ("run", npz, "--target", 0.9, "--run", tmp_path / "run")
    both = "--weights and --pretrained (weights and pretrained of a recipe) exclude each other; give one of them"
    assert both in refused(*run, "--weights", weights, "--pretrained", code=2)
    wide = ("--pretrained", "--backbone", "cifar_resnet20", "--width", 2)
    assert "width is 2 with --pretrained, whose weights are of width 1; leave one" in refused(*run, *wide, code=2)
    assert "no pretrained weights exist for 'cifar_resnet20' of odn; choose" in refused(*run, *wide[:3], code=2)
    missing = refused(*run, "--weights", tmp_path / "none", code=2)
    assert f"there is no file of weights at {tmp_path / 'none'}; give a .safetensors file" in missing
    assert "does not fit 'resnet18' at 'stem.conv1.weight'" in refused(*run, "--weights", weights, code=2)
    (tmp_path / "r.toml").write_text('weights_sha256 = "00"')
    lone = refused(*run, "--config", tmp_path / "r.toml", code=2)
    assert "weights_sha256 is given without weights or pretrained" in lone
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_what_the_library_publishes(odn, hub, tmp_path, recipe, caplog):
    x, y = stripes(120, side=32)
    np.savez(tmp_path / "stripes.npz", x=x, y=y)
    arguments = (
        "expand", tmp_path / "stripes.npz", "--pretrained", "--target", 0.5, "--backbone", "resnet18",
        "--config", recipe, "--depths", "1,2", "--epochs-per-depth", 2, "--run", tmp_path / "run",
    )  # fmt: skip
    code, out, err = odn(*arguments)
    assert (code, out) == (1, "")  # downloads are announced on stderr
    assert "connect to the network, put them into its cache, or give them with" in err.splitlines()[-1]
    torch.save(resnet18().state_dict(), hub / "resnet18-f37072fd.pth")
    code, _, err = odn(*arguments)
    assert code in (0, 3), err
    assert (
        "the filters of 'conv1.weight' for red, green and blue are summed: the images have one channel" in caplog.text
    )
    assert "linear probes by depth: 1: " in caplog.text
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (config["pretrained"], len(config["weights_sha256"])) == (True, 64)
