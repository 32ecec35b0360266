"""The contract that every backbone keeps at every depth.

What needs no weights is held for every registered backbone, on the meta device; what needs numbers, for one or more of
every family and style.
"""

import copy
import dataclasses
import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from benchmarks import backbones_page
from benchmarks.backbones_page import PAGE, costs_by_depth, input_shape, listing_row, page_row
from torch import nn
from torchvision.models import resnet18, resnet34, resnet50

import odn.network
from conftest import tiny_data
from odn.artifact import load
from odn.backbones import BACKBONES, Inputs, find_backbone
from odn.catalog import list_backbones
from odn.config import ExpandConfig, TrainConfig
from odn.errors import OdnError, UsageError
from odn.expansion import expand
from odn.exporting import export
from odn.extraction import extract
from odn.measure import measure_cost
from odn.network import NetworkSpec, PartitionedNetwork, build_network, build_prefix, partition, rebuild
from odn.stage import Stage
from odn.storage import fill, tensors_of

CLASSES = 7
TEXT = [name for name, entry in BACKBONES.items() if entry.task == "text-classification"]
# Of a style that another one stands for.
LIKE_ANOTHER = {
    f"timm/{name}"
    for name in ("wide_resnet50_2", "resnext50_32x4d", "seresnet18", "efficientnetv2_rw_t", "convnextv2_atto")
}
# The module whose output the library's own head reads; None takes the last that timm's feature_info names.
LAST = {
    "cifar_resnet20": "blocks",
    "resnet18": "layer4",
    "resnet18_small": "layer4",
    "resnext50_32x4d": "layer4",
    "regnet_y_400mf": "trunk_output",
    "vgg11_bn": "features.27",
    "mobilenet_v2": "features.17",
    "mobilenet_v3_small": "features.11",
    "efficientnet_b0": "features.7",
    "efficientnet_v2_s": "features.6",
    "convnext_tiny": "features.7",
    "vit_b_32": "encoder.layers",
    "swin_t": "features.7",
    "swin_v2_t": "features.7",
    **{name: None for name in BACKBONES if name.startswith("timm/") and name not in LIKE_ANOTHER},
    "timm/vgg11_bn": "features.27",
    "timm/ghostnet_100": "blocks.9",
    "timm/mobilevit_xxs": "stages.4",
    "bert_tiny": "encoder.layer.3",
    "distilbert_tiny": "transformer",
    "roberta_tiny": "encoder.layer.3",
    "electra_tiny": "encoder.layer.3",
    "modernbert_tiny": "layers.3",
}


def shape_of(name: str) -> tuple[int, ...]:
    if name in TEXT:
        return (12,)
    return (3, 224, 224) if name == "timm/efficientformer_l1" else (3, 64, 64)


def need(name: str) -> None:
    library = BACKBONES[name].library
    if library in ("timm", "transformers") and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


def batch(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if name in TEXT:
        ids = torch.randint(1, 1000, (2, *shape_of(name)), generator=generator)
        ids[1, 7:] = 0  # padding
        return ids
    return torch.randn(2, *shape_of(name), generator=generator)


def unsettle(network: nn.Module) -> nn.Module:
    """Give every scale, shift and statistic a value of its own: zeros and tiny layer scales would hide mistakes."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_meta or not tensor.is_floating_point() or tensor.squeeze().ndim > 1:
                continue
            low, high = (-0.1, 0.1) if name.endswith(("bias", "mean")) else (0.5, 1.5)
            tensor.uniform_(low, high, generator=generator)
    return network


@pytest.fixture(scope="module", params=LAST)
def case(request):
    """A network with unsettled weights, and the library's own with the same ones."""
    name = request.param
    need(name)
    entry = find_backbone(name)
    originals = []

    def make(inputs: Inputs, width: float) -> nn.Module:
        network = unsettle(entry.make(inputs, width))
        originals.append(network if next(network.parameters()).is_meta else copy.deepcopy(network).eval())
        return network

    changed = dataclasses.replace(entry, make=make)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(odn.network, "find_backbone", lambda *_: changed)
        torch.manual_seed(0)
        network = build_network(name, shape_of(name), CLASSES)
    for head in network.heads:
        unsettle(head)
    return name, network.eval(), originals[-1]


@pytest.fixture
def network(case) -> PartitionedNetwork:
    return case[1]


def some(network: PartitionedNetwork) -> list[int]:
    depth = network.max_depth
    return sorted({1, depth // 2 + 1, depth})


# with numbers ------------------------------------------------------------------------------------------------------


def test_the_full_depth_gives_the_features_of_the_librarys_network(case):
    name, network, original = case
    last = LAST[name] or original.feature_info[-1]["module"]
    seen = []
    original.get_submodule(last).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    x = batch(name)
    with torch.no_grad():
        if name in TEXT:
            original(input_ids=x, attention_mask=(x != 0).long())
        else:
            original(x)
        features = network.stem(x)
        for block in network.blocks:
            features = block(features)
    theirs = seen[-1]
    if name in TEXT:
        features, theirs = features[0], getattr(theirs, "last_hidden_state", theirs)
        features, theirs = features[x != 0], theirs[x != 0]
    assert features.std() > 0
    torch.testing.assert_close(features, theirs, rtol=1e-5, atol=1e-5)


def test_the_deepest_head_ends_as_the_librarys_network_does(case):
    name, network, original = case
    if name in TEXT or name.startswith("cifar") or "vgg" in name or name.startswith("mobilenet_v3"):
        pytest.skip("the library's network ends in another way: no classifier, a masked mean, or hidden layers")
    head = copy.deepcopy(network.heads[-1])
    # timm's networks are made without a classifier, torchvision's with one output.
    if name.startswith("timm/"):
        head.linear = nn.Identity()
    else:
        head.linear = nn.Linear(head.linear.in_features, 1)
    state = head.state_dict()
    theirs = list(original.state_dict().values())[len(original.state_dict()) - len(state) :]
    head.load_state_dict(dict(zip(state, theirs, strict=True)))
    x = batch(name)
    with torch.no_grad():
        features = network.stem(x)
        for block in network.blocks:
            features = block(features)
        torch.testing.assert_close(head.eval()(features), original(x), rtol=1e-4, atol=1e-5)


def test_every_depth_is_a_prefix_of_one_chain(case):
    name, network, _ = case
    x = batch(name)
    with torch.no_grad():
        outputs = network(x)
        assert [logits.shape for logits in outputs] == [(2, CLASSES)] * network.max_depth
        for depth in some(network):
            assert torch.isfinite(outputs[depth - 1]).all()
            assert torch.equal(network.prefix(depth)(x), outputs[depth - 1])


def test_extraction_is_bit_identical_and_shares_nothing(case):
    name, network, _ = case
    x = batch(name)
    shared = {p.data_ptr() for p in network.parameters()}
    for depth in some(network):
        small = extract(network, depth)
        with torch.no_grad():
            assert torch.equal(small(x), network.prefix(depth)(x))
        assert not {p.data_ptr() for p in small.parameters()} & shared


def test_no_parameter_of_a_prefix_is_unused(case):
    name, network, _ = case
    for depth in some(network):
        prefix = extract(network, depth)
        prefix.train()(batch(name)).sum().backward()
        assert [name for name, p in prefix.named_parameters() if p.grad is None] == []


def test_the_spec_rebuilds_it_from_json(case):
    name, network, _ = case
    x = batch(name)
    prefix = network.prefix(network.max_depth // 2 + 1)
    before = torch.random.get_rng_state()
    rebuilt = build_prefix(NetworkSpec.from_json(prefix.spec.to_json()))
    assert all(p.is_meta for p in rebuilt.parameters())
    fill(rebuilt, tensors_of(prefix))
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x), prefix(x))


# on the meta device ------------------------------------------------------------------------------------------------

LISTED = {row["name"]: row for row in list_backbones()}


@pytest.mark.parametrize("name", BACKBONES)
def test_deeper_prefixes_cost_more_and_the_page_is_current(name):
    need(name)
    entry = BACKBONES[name]
    network = build_network(name, input_shape(entry), backbones_page.CLASSES, device="meta")
    costs = costs_by_depth(network)
    assert len(costs) >= 4
    parameters, macs = map(list, zip(*costs, strict=True))
    assert macs == sorted(set(macs))
    assert max(parameters) == parameters[-1]  # a head may shrink by more than a block adds where the width does
    assert all(any(True for _ in block.parameters()) for block in network.blocks)
    # A line here that is not what the registry says: python -m benchmarks.backbones_page
    assert listing_row(entry, costs) == LISTED[name]
    assert page_row(entry, costs) in PAGE.read_text().splitlines()


def test_the_listing_is_the_registry():
    assert list(LISTED) == list(BACKBONES)
    vision = [row for row in LISTED.values() if row["task"] == "image-classification"]
    assert len(vision) >= 30
    assert len(LISTED) - len(vision) >= 5


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_32", "timm/mobilenetv3_small_050", "bert_tiny"])
def test_costs_from_one_pass_are_those_of_each_prefix(name):
    need(name)
    network = build_network(name, input_shape(BACKBONES[name]), CLASSES, device="meta")
    costs = costs_by_depth(network)
    for depth in some(network):
        cost = measure_cost(network.prefix(depth), network.spec.input_shape, network.spec.input_dtype)
        assert (cost.parameters, cost.macs) == costs[depth - 1]


@pytest.mark.parametrize(("name", "blocks"), [("timm/starnet_s1", 15), ("timm/convmixer_768_32", 32)])
def test_single_layers_are_no_blocks(name, blocks):
    pytest.importorskip("timm")
    network = build_network(name, (3, 64, 64), CLASSES, device="meta")
    assert network.max_depth == blocks
    layers = (torch.nn.Conv2d, torch.nn.Linear)
    assert all(sum(isinstance(m, layers) for m in block.modules()) > 1 for block in network.blocks)


# particular families -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "original"), [("resnet18", resnet18), ("resnet34", resnet34), ("resnet50", resnet50)])
def test_the_full_depth_equals_torchvisions_network(name, original):
    torch.manual_seed(0)
    theirs = original(num_classes=CLASSES).eval()
    ours = build_network(name, (3, 32, 32), CLASSES)
    full = ours.prefix(ours.max_depth).eval()
    # Both list their weights in the order of the forward pass, our head last.
    state = dict(zip(full.state_dict(), theirs.state_dict().values(), strict=True))
    full.load_state_dict(state)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(full(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "allowed"), [("resnet50", 0), ("cifar_resnet20", 0), ("timm/convnext_atto", 1e-3)])
def test_a_new_block_does_not_change_the_function_where_the_family_starts_it_so(name, allowed):
    need(name)
    torch.manual_seed(0)
    network = build_network(name, (3, 64, 64), CLASSES).eval()
    kept = 0
    with torch.no_grad():
        features = network.stem(torch.randn(2, 3, 64, 64))
        for block in network.blocks:
            after = block(features)
            if after.shape == features.shape:
                torch.testing.assert_close(after, features, rtol=0, atol=allowed)
                kept += 1
            features = after
    assert kept >= network.max_depth - 4


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cifar_resnet20", 272_474),
        ("cifar_resnet56", 855_770),
        ("cifar_resnet110", 1_730_714),
        ("resnet50", 25_557_032 - 1000 * 2049 + 10 * 2049),
        ("mobilenet_v2", 3_504_872 - 1000 * 1281 + 10 * 1281),
        ("convnext_tiny", 28_589_128 - 1000 * 769 + 10 * 769),
        ("swin_t", 28_288_354 - 1000 * 769 + 10 * 769),
        ("vit_b_16", 86_567_656 - 1000 * 769 + 10 * 769),
    ],
)
def test_published_sizes(name, parameters):
    assert LISTED[name]["parameters"] == parameters


def test_heads_end_as_their_family_does():
    def head(name: str, depth: int) -> nn.Module:
        return build_network(name, (3, 64, 64), CLASSES, device="meta").heads[depth - 1]

    mobilenet = head("mobilenet_v2", 1)
    assert [type(layer).__name__ for layer in mobilenet.before] == ["Conv2d", "BatchNorm2d", "ReLU6"]
    assert (mobilenet.before[0].in_channels, mobilenet.before[0].out_channels) == (16, 64)  # four times, as 320 to 1280
    convnext = head("convnext_tiny", 1)
    assert [type(layer).__name__ for layer in convnext.after] == ["LayerNorm2d"]
    assert convnext.after[0].normalized_shape == (96,)
    vit = head("vit_b_32", 3)
    assert vit.first_tokens == 1
    assert [type(layer).__name__ for layer in vit.before] == ["LayerNorm"]
    assert list(head("resnet18", 8).before) == list(head("vgg11_bn", 7).before) == []


def test_a_distilled_network_is_read_at_both_of_its_tokens():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = unsettle(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=0, img_size=32)).eval()
    network = build_network("timm/deit_tiny_distilled_patch16_224", (3, 32, 32), CLASSES).eval()
    network.stem.network.load_state_dict(theirs.state_dict(), strict=False)
    for block, their_block in zip(network.blocks, theirs.blocks, strict=True):
        block.load_state_dict(their_block.state_dict())
    head = network.heads[-1]
    head.before[0].load_state_dict(theirs.norm.state_dict())
    head.linear = nn.Identity()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network.prefix(network.max_depth)(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", 64), ("vit_b_32", 768), ("swin_t", 96), ("timm/mixer_s32_224", 512)]
)
def test_grey_images_get_a_first_convolution_of_their_own(name, channels):
    need(name)
    torch.manual_seed(0)
    network = build_network(name, (1, 64, 64), CLASSES)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.shape[:2] == (channels, 1)
    assert first.weight.std() > 0
    with torch.no_grad():
        assert network.prefix(2).eval()(torch.randn(2, 1, 64, 64)).shape == (2, CLASSES)


def test_width_scales_the_narrow_family():
    wide = build_network("cifar_resnet20", (3, 32, 32), 10, width=2.0, device="meta")
    assert wide.heads[-1].linear.in_features == 128
    with pytest.raises(UsageError, match="'resnet18' has no width 2; allowed: width 1, or one of cifar_resnet20"):
        find_backbone("resnet18", 2.0)


# names and inputs --------------------------------------------------------------------------------------------------


def test_unknown_backbones_get_a_suggestion():
    with pytest.raises(UsageError, match=r"unknown backbone 'resnet19'; allowed: .*Did you mean 'resnet18'\?"):
        find_backbone("resnet19")


def test_a_name_that_two_libraries_have_is_torchvisions_and_timms_carries_its_own():
    pytest.importorskip("timm")
    assert find_backbone("resnet18").library == "torchvision"
    assert find_backbone("timm/resnet18").library == "timm"
    with pytest.raises(UsageError, match="unknown backbone 'convnext_atto'; it is timm's: write timm/convnext_atto"):
        find_backbone("convnext_atto")
    with pytest.raises(UsageError, match=r"timm has no network 'convnext_ato'.*Did you mean 'timm/convnext_atto'\?"):
        find_backbone("timm/convnext_ato")
    assert find_backbone("timm/resnet18.a1_in1k").name == "timm/resnet18.a1_in1k"
    with pytest.raises(
        UsageError, match=r"timm has no weights 'a9_in1k' for 'timm/resnet18'; allowed: a1_in1k, a2_in1k, .*tv_in1k"
    ):
        find_backbone("timm/resnet18.a9_in1k")


def test_any_timm_name_works_whose_structure_is_understood():
    pytest.importorskip("timm")
    assert "timm/edgenext_xx_small" not in BACKBONES
    assert build_network("timm/edgenext_xx_small", (3, 64, 64), 2, device="meta").max_depth == 12
    assert build_network("timm/beit_base_patch16_224", (3, 32, 32), 2, device="meta").max_depth == 12
    tagged = build_network("timm/vit_tiny_patch16_224.augreg_in21k", (3, 32, 32), 2, device="meta")
    assert rebuild(tagged.spec, "meta").max_depth == 12


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("eva02_tiny_patch14_224", "block 'blocks.0' is also given its argument rope"),
        ("pvt_v2_b0", "block 'stages.0.blocks.0' is also given its argument 2"),
        ("tiny_vit_5m_224", "the chain breaks at block 3, 'stages.1.blocks.0'"),
        ("fastvit_t8", "what follows its last block is no row of layers"),
        ("vit_base_patch16_siglip_224", "it pools its features with 'map'"),
        ("resmlp_12_224", "behind its last block stands the layer Affine"),
        ("test_nfnet", "behind its last block stands the layer ScaledStdConv2d"),
        ("densenet121", "its blocks stand nowhere where timm's families have them"),
    ],
)
def test_timm_networks_that_cannot_be_cut_are_refused_with_the_reason(name, reason):
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match=f"'timm/{name}' cannot be partitioned: .*{reason}"):
        build_network(f"timm/{name}", (3, 224, 224), 2, device="meta")


def test_a_name_that_is_a_directory_too_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert_tiny").mkdir()
    need("bert_tiny")
    data = SimpleNamespace(input_shape=(16,), classes=("a", "b"))
    spec = partition("bert_tiny", data).spec
    (tmp_path / "bert_tiny" / "config.json").write_text("{}")
    with pytest.raises(
        UsageError, match="'bert_tiny' is a backbone, and a directory here; write ./bert_tiny for it, or"
    ):
        partition("bert_tiny", data)
    assert rebuild(spec, "meta").max_depth == 4  # what is stored does not depend on where it is read


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_missing_library_gives_the_command_that_installs_it(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    name, extra = {"timm": ("timm/resnet18", "timm"), "transformers": ("bert_tiny", "text")}[library]
    message = rf"needs {library}; install it with: pip install 'optimally-deep\[{extra}\]'"
    with pytest.raises(OdnError, match=message):
        build_network(name, (16,) if name in TEXT else (3, 32, 32), 2, device="meta")


@pytest.mark.parametrize(
    ("name", "smallest"), [("resnet18", 5), ("resnet18_small", 2), ("cifar_resnet20", 2), ("swin_t", 8)]
)
def test_too_small_images_name_the_smallest_that_fits(name, smallest):
    build_network(name, (1, smallest, smallest), 2, device="meta")
    message = (
        f"{smallest - 1}x{smallest - 1} are too small for '{name}'.* smallest it can take is {smallest}x{smallest}"
    )
    with pytest.raises(UsageError, match=message):
        build_network(name, (1, smallest - 1, smallest - 1), 2, device="meta")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vit_b_16", (1, 28, 28), "28x28 do not fit 'vit_b_16': its sides have to be multiples of 16.* to 32x32"),
        (
            "vit_b_16",
            (3, 16, 32),
            "16x32 do not fit 'vit_b_16', though 224x224 would: it takes square ones; resize them",
        ),
        ("timm/vit_tiny_patch16_224", (3, 40, 40), "40x40 do not fit .*: its sides have to be multiples of 16"),
        ("timm/efficientformer_l1", (3, 64, 64), "64x64 are too small for .* smallest it can take is 193x193"),
        ("timm/efficientformer_l1", (3, 256, 256), "256x256 do not fit .*, though 224x224 would"),
        ("timm/levit_128s", (3, 100, 100), "100x100 do not fit 'timm/levit_128s', 96x96 would; resize them"),
        ("resnet18", (32,), "input shape 32 for 'resnet18'; allowed: channels x height x width, e.g. 3x32x32"),
        ("bert_tiny", (3, 32, 32), "input shape 3x32x32 for 'bert_tiny'; allowed: the number of tokens, e.g. 128"),
        ("bert_tiny", (513,), "texts of 513 tokens; allowed: up to 512, the positions of this bert"),
        ("roberta_tiny", (512,), "texts of 512 tokens; allowed: up to 511, the positions of this roberta"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(name, shape, message):
    need(name)
    with pytest.raises(UsageError, match=message):
        build_network(name, shape, 2, device="meta")


def test_vits_take_the_size_of_the_data():
    network = build_network("vit_b_16", (3, 48, 48), 2, device="meta")
    assert network.stem.network.encoder.pos_embedding.shape == (1, 10, 768)


# training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_b_32", "swin_t", "mobilenet_v2", "bert_tiny"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_training_lowers_the_loss(name, precision):
    need(name)
    torch.manual_seed(0)
    network = build_network(name, shape_of(name), CLASSES)
    training = TrainConfig(optimizer="adamw", batch_size=2, precision=precision)
    stage = Stage(network.prefix(2), training, tiny_data(6, 3).train)
    x, labels = batch(name), torch.tensor([1, 4])
    losses = [float(stage.train_step(x, labels, lambda _: 0.2)) for _ in range(5)]
    assert losses[-1] < losses[0]
    moved = dict(network.prefix(2).named_parameters())
    assert all(torch.isfinite(p).all() for p in moved.values())


def test_a_transformer_goes_through_the_whole_line(tmp_path):
    """Swin of timm: its stored tensors are more than its weights."""
    pytest.importorskip("timm")
    data = tiny_data(64, 32, side=16)
    network = partition("timm/swin_tiny_patch4_window7_224", data.spec, seed=1)
    training = TrainConfig(optimizer="adamw", batch_size=16, precision="fp32")
    config = ExpandConfig(target_accuracy=0.9, depths=(1, 2), epochs_per_depth=2, settle_epochs=0)
    result = expand(network, data.train, data.valid, config=config, training=training)
    small = extract(network, result.depth)
    export(small, tmp_path / "artifact", data.spec)
    artifact = load(tmp_path / "artifact")
    x = torch.randn(3, *data.spec.input_shape)
    with torch.no_grad():
        same_layout = small.eval().to(memory_format=torch.contiguous_format)  # training lays out channels last
        assert torch.equal(artifact.network(x), same_layout(x))
    assert artifact.network.spec.backbone == "timm/swin_tiny_patch4_window7_224"


# encoders from a directory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LAST if name in TEXT])
def test_an_encoder_from_a_directory_is_rebuilt_without_it(name, tmp_path):
    need(name)
    entry = BACKBONES[name]
    theirs = entry.make(Inputs(shape=(12,), dtype=torch.int64), 1.0)
    if "modern" in name:
        changes = {"local_attention": 4, "layer_types": ["full_attention", "sliding_attention"] * 2}
        theirs = type(theirs)(type(theirs.config)(**{**theirs.config.to_dict(), **changes}))
    theirs.config.save_pretrained(tmp_path / "encoder")
    ours = build_network(str(tmp_path / "encoder"), (12,), CLASSES)
    assert ours.spec.backbone == f"transformers/{name.removesuffix('_tiny')}"
    wanted = sorted(tuple(p.shape) for name, p in theirs.named_parameters() if not name.startswith("final_norm"))
    assert sorted(tuple(p.shape) for part in (ours.stem, ours.blocks) for p in part.parameters()) == wanted
    (tmp_path / "encoder" / "config.json").unlink()
    prefix = ours.prefix(3).eval()
    rebuilt = build_prefix(NetworkSpec.from_json(prefix.spec.to_json()))
    fill(rebuilt, tensors_of(prefix))
    x = batch(name)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x), prefix(x))
    if "modern" in name:
        assert [block.local for block in ours.blocks] == [False, True, False, True]
        assert ours.stem.context.window == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "config.json is no configuration of an encoder"),
        ("[]", "config.json is no configuration of an encoder"),
        ('{"hidden_size": 8}', "config.json is no configuration of an encoder .*model_type"),
        ('{"model_type": "gpt2"}', "text encoder 'gpt2'; allowed: bert, distilbert, roberta, electra, modernbert"),
        ('{"model_type": "bert", "hidden_size": 1e99}', "'hidden_size' is 1e.99 .*; allowed: 0 to 65536"),
        ('{"model_type": "bert", "hidden_size": "8"}', "'hidden_size' is '8' .*; allowed: 0 to 65536"),
        (
            '{"model_type": "bert", "num_hidden_layers": 1000000}',
            "'num_hidden_layers' is 1000000 .*; allowed: 0 to 1024",
        ),
        (
            '{"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3}',
            "transformers cannot follow the config",
        ),
        ('{"model_type": "bert", "is_decoder": true}', "sets 'is_decoder' to True; allowed: False, an encoder alone"),
        ('{"model_type": "modernbert", "layer_types": ["sliding_attention"]}', "layer_types follow no period"),
    ],
)
def test_configurations_that_cannot_be_followed_are_refused(config, message, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(OdnError, match=message) as error:
        build_network(str(tmp_path), (8,), 2, device="meta")
    assert "\n" not in str(error.value)


def test_a_spec_that_names_a_directory_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(OdnError, match="the spec names the directory .*; it has to hold the configuration itself"):
        rebuild(NetworkSpec(backbone=str(tmp_path), input_shape=(8,), classes=2, depth=1))


def test_a_vocabulary_of_the_datas_own():
    pytest.importorskip("transformers")
    texts = SimpleNamespace(input_shape=(8,), classes=("a", "b"))
    network = partition("electra_tiny", texts, vocabulary=500)
    assert network.stem.embeddings.word_embeddings.num_embeddings == 500
    assert rebuild(network.spec, "meta").stem.embeddings.word_embeddings.num_embeddings == 500
