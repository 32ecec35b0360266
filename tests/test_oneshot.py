"""Training all depths at once, and choosing among them afterwards."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import stripes, tiny_data
from odn.checkpoint import Checkpoints
from odn.cli import main
from odn.config import ExpandConfig, OneShotConfig
from odn.curve import curve_of, curve_result
from odn.devices import write_device_table
from odn.engine import finish
from odn.errors import UsageError
from odn.evaluation import evaluate, evaluate_depths
from odn.expansion import expand
from odn.extraction import extract
from odn.losses import soft_loss, task_loss
from odn.metrics import Score
from odn.network import PartitionedNetwork
from odn.oneshot import train_all_depths, train_all_depths_epochs
from odn.recipe import read_run_config
from odn.records import EpochRecord, read_history
from odn.rundir import write_config
from odn.storage import load_partitioned, save_network
from odn.supervision import AllDepthsLoss
from odn.training import train_run
from test_cli import without_times
from test_devices import TABLE
from test_durable import Killed, die_after, untimed
from test_expansion import TRAINING, UNREACHABLE, network, same, state
from test_network import by_hand

DATA = tiny_data()
BRIEF = OneShotConfig(epochs=4)
EVERY_HEAD = OneShotConfig(epochs=12, depths_per_step=0)


def batch(count: int = 12):
    x = torch.from_numpy(stripes(count)[0])[:, None].float() / 100 - 1
    return x, torch.arange(count) % 3


def test_every_depth_learns_and_is_ready_to_be_extracted():
    trained = network()
    curve = train_all_depths(trained, DATA.train, DATA.valid, config=EVERY_HEAD, training=TRAINING)
    assert [record.depth for record in curve] == list(range(1, 10))
    assert min(record.valid_score for record in curve) > 0.9
    for record in curve:
        assert evaluate(extract(trained, record.depth), DATA.valid).value == record.valid_score


def test_all_depths_are_judged_as_each_would_be_alone():
    whole = network()
    scores = evaluate_depths(whole, DATA.valid)
    assert scores == [evaluate(prefix, DATA.valid) for prefix in whole.prefixes()]


def test_heads_that_are_not_asked_do_not_answer():
    whole = by_hand(4)
    x, _ = batch()
    every = whole(x)
    some = whole(x, {2: 1.0, 4: 0.5})
    assert len(some) == 2
    assert all(torch.equal(a, b) for a, b in zip(some, (every[1], every[3]), strict=True))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0, 2.0])
def test_a_head_sends_its_share_of_the_gradient_into_the_blocks_and_keeps_its_own(share):
    whole = by_hand(2, norm=False)
    x, y = batch()

    def gradients(shares):
        whole.zero_grad()
        task_loss("classification", whole(x, shares)[0], y).backward()
        return whole.stem.weight.grad.clone(), whole.heads[0].linear.weight.grad.clone()

    trunk, head = gradients({1: 1.0})
    scaled_trunk, same_head = gradients({1: share})
    torch.testing.assert_close(scaled_trunk, share * trunk)
    torch.testing.assert_close(same_head, head)


def test_only_depths_from_the_lowest_on_have_a_head():
    whole = by_hand(4)
    x, _ = batch()
    band = whole.trunk(4, 3)
    assert (band.lowest, band.depth, len(band.heads), len(band.trunk(3, 3).heads)) == (3, 4, 2, 1)
    assert all(torch.equal(a, b) for a, b in zip(band(x), whole(x)[2:], strict=True))
    assert [prefix.depth for prefix in band.prefixes()] == [3, 4]
    assert all(torch.equal(p(x), a) for p, a in zip(band.prefixes(), band(x), strict=True))
    assert evaluate_depths(whole, DATA.valid)[2:] == evaluate_depths(band, DATA.valid)
    assert AllDepthsLoss(band, "classification", OneShotConfig()).draw() == [3, 4]
    with pytest.raises(UsageError, match="depth 2; allowed: 3 to 4"):
        band.prefix(2)
    with pytest.raises(UsageError, match="4 blocks and 3 heads; allowed: one head per block"):
        PartitionedNetwork(whole.stem, list(whole.blocks), list(whole.heads)[1:])


@given(depths=st.integers(1, 30), count=st.sampled_from([0, 2, 3, 4, 50]), seed=st.integers(0, 99))
def test_the_sandwich_rule(depths, count, seed):
    loss = AllDepthsLoss(by_hand(depths, norm=False), "classification", OneShotConfig(depths_per_step=count))
    torch.manual_seed(seed)
    drawn = loss.draw()
    assert drawn == sorted(set(drawn))
    assert {1, depths} <= set(drawn) <= set(range(1, depths + 1))
    assert len(drawn) == (min(depths, max(count, 2)) if count else depths)


def test_every_depth_is_drawn():
    loss = AllDepthsLoss(by_hand(9, norm=False), "classification", OneShotConfig(depths_per_step=3))
    assert {depth for _ in range(200) for depth in loss.draw()} == set(range(1, 10))


@pytest.mark.parametrize("wrong", [0, 1])
def test_the_deepest_head_teaches_the_others_as_far_as_it_knows_more(wrong):
    whole = by_hand(2, norm=False)
    with torch.no_grad():
        whole.heads[wrong].linear.bias[0] += 4.0
    x, y = batch()
    config = OneShotConfig(soft_share=0.3, temperature=3.0)
    loss = AllDepthsLoss(whole, "classification", config, label_smoothing=0.1)(whole, x, y)
    shallow, deep = whole(x)
    labels = [task_loss("classification", outputs, y, label_smoothing=0.1) for outputs in (shallow, deep)]
    soft = soft_loss("classification", shallow, deep.detach(), 3.0)
    share = 0.3 * max(0.0, 1 - labels[1].item() / labels[0].item())
    assert (share > 0.1) == (wrong == 0)
    torch.testing.assert_close(loss, labels[1] + (1 - share) * labels[0] + share * soft)
    whole.zero_grad()
    AllDepthsLoss(whole, "classification", OneShotConfig(soft_share=1.0, deep_share=1e-9))(whole, x, y).backward()
    only_labels = whole.heads[1].linear.weight.grad.clone()
    whole.zero_grad()
    task_loss("classification", whole(x)[1], y).backward()
    torch.testing.assert_close(whole.heads[1].linear.weight.grad, only_labels)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"epochs": -1}, "oneshot.epochs is -1; allowed: 0 or more"),
        ({"depths_per_step": 1}, "oneshot.depths_per_step is 1; allowed: 0, or 2 or more"),
        ({"deep_share": 0}, "oneshot.deep_share is 0; allowed: above 0"),
        ({"other_share": -1}, "oneshot.other_share is -1; allowed: 0 or more"),
        ({"soft_share": 1.5}, "oneshot.soft_share is 1.5; allowed: 0 to 1"),
        ({"temperature": 0}, "oneshot.temperature is 0; allowed: above 0"),
    ],
)
def test_wrong_settings(setting, text):
    with pytest.raises(UsageError, match=text):
        OneShotConfig(**setting)


@given(steps=st.integers(1, 10**5))
def test_small_data_get_more_epochs(steps):
    epochs = OneShotConfig().epochs_for(steps)
    assert 30 <= epochs <= 120
    assert epochs == 120 or epochs * steps >= 2500
    assert OneShotConfig(epochs=7).epochs_for(steps) == 7


def training(checkpoints, whole=None):
    return train_all_depths_epochs(
        whole or network(), DATA.train, DATA.valid, config=BRIEF, training=TRAINING, checkpoints=checkpoints
    )


@pytest.mark.parametrize("saves", [1, 2, 3, 5])
def test_a_training_killed_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, saves):
    expected_network, resumed = network(), network()
    expected = finish(training(Checkpoints("oneshot"), expected_network))
    with monkeypatch.context() as patch:
        die_after(patch, saves)
        with pytest.raises(Killed):
            finish(training(Checkpoints("oneshot", tmp_path)))
    curve = finish(training(Checkpoints("oneshot", tmp_path, resume=True), resumed))
    assert untimed(curve) == untimed(expected)
    assert same(state(resumed), state(expected_network))


def test_a_network_with_all_heads_survives_the_disk(tmp_path):
    whole = network(seed=4)
    save_network(whole, tmp_path / "whole")
    again = load_partitioned(tmp_path / "whole")
    assert isinstance(again, PartitionedNetwork)
    assert same(state(whole), state(again))
    assert again.spec == whole.spec


def record(scores, *, epoch=1, error=0.01, phase="oneshot") -> EpochRecord:
    return EpochRecord(
        phase=phase,
        depth=len(scores),
        epoch=epoch,
        cap=9,
        learning_rate=0.1,
        train_loss=1.0,
        valid_score=math.fsum(scores) / len(scores),
        valid_error=error,
        valid_count=100,
        train_samples=1,
        evaluated_samples=1,
        seconds=1.0,
        scores=tuple(scores),
        errors=(error,) * len(scores),
    )


def test_a_curve_is_that_of_one_epoch():
    records = [
        record([0.5, 0.9]),
        record([0.8, 0.8], epoch=2),
        record([0.9, 0.7], epoch=3),
        record([0.1, 0.2], epoch=4),
    ]
    assert [(r.depth, r.epoch, r.valid_score) for r in curve_of(records)] == [(1, 3, 0.9), (2, 3, 0.7)]


def test_the_curve_of_an_expansion_has_every_depth_as_it_was_kept():
    result = expand(network(), DATA.train, DATA.valid, config=UNREACHABLE, training=TRAINING)
    curve = curve_of(result.records)
    assert [r.depth for r in curve] == list(range(1, 10))
    last = [record for record in result.records if record.stop is not None]
    assert all(r.valid_score == max(o.scores[r.depth - 1] for o in last if o.depth >= r.depth) for r in curve)


score_lists = st.lists(st.integers(0, 100).map(lambda n: n / 100), min_size=1, max_size=9)


@given(scores=score_lists, target=st.integers(1, 100).map(lambda n: n / 100))
def test_the_shallowest_depth_that_holds_the_target(scores, target):
    result = curve_result([record(scores)], ExpandConfig(target_accuracy=target))
    holding = [depth for depth, score in enumerate(scores, 1) if score >= target]
    assert result.reached == bool(holding)
    assert result.depth == (holding[0] if holding else scores.index(max(scores)) + 1)
    automatic = curve_result([record(scores)], ExpandConfig(within=0.1))
    assert scores[automatic.depth - 1] >= max(scores) - 0.1
    assert all(score < max(scores) - 0.1 for score in scores[: automatic.depth - 1]) or max(scores) <= 0.1


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oneshot")
    x, y = stripes(240)
    np.savez(folder / "stripes.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    recipe = "[report]\nlatency_seconds = 0.01\n[oneshot]\nepochs = 6\n[train]\nbatch_size = 16\nlearning_rate = 0.5\n"
    recipe += "evaluation_share = inf\n"  # tiny data would be evaluated after the last epochs alone
    recipe += "[compress]\nchannel_multiple = 1\n"
    (folder / "brief.toml").write_text(recipe)
    network = ("--backbone", "cifar_resnet20", "--width", 0.25, "--mode", "one-shot", "--finetune-epochs", 0)
    return ("run", folder / "stripes.npz", "--config", folder / "brief.toml", *network, "--target", 0.9)


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    """A run of all depths."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in (*arguments, "--run", run)])
    assert exit_.value.code == 0
    return run


def test_the_whole_line_with_all_depths_at_once(finished):
    report = json.loads((finished / "report.json").read_text())
    history = [json.loads(line) for line in (finished / "history.jsonl").read_text().splitlines()]
    best = max(history, key=lambda epoch: (epoch["valid_score"], epoch["epoch"]))
    shallowest = next(depth for depth, score in enumerate(best["scores"], 1) if score >= 0.9)
    assert (report["depth"], report["reached"], report["max_depth"]) == (shallowest, True, 9)
    assert report["cost"]["oneshot_epochs"] == 6
    assert report["cost"]["epochs_by_depth"] == {}
    full = report["networks"][0]["macs"]
    samples = sum(3 * epoch["train_samples"] + epoch["evaluated_samples"] for epoch in history)
    assert 1 <= report["cost"]["train_macs"] / (full * samples) < 1.01  # the heads on top
    page = (finished / "report.html").read_text()
    assert "6 of all depths at once" in page
    assert "all depths" in page


def test_resuming_a_finished_run_trains_nothing(odn, arguments, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / "history.jsonl").read_text()
    assert odn("run", "--run", run, "--resume")[0] == 0
    assert (run / "history.jsonl").read_text() == before
    assert without_times(json.loads((run / "report.json").read_text())) == without_times(
        json.loads((finished / "report.json").read_text())
    )


def test_another_depth_can_be_extracted(odn, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    code, out, _ = odn("extract", run, "--depth", 7)
    assert (code, out.split()[1]) == (0, "7")


def test_depths_have_no_meaning_where_all_are_trained(refused, arguments, tmp_path):
    text = refused(*arguments, "--run", tmp_path / "run", "--depths", "1,2", code=2)
    assert "--depths (expand.depths of a recipe) is for --mode expand" in text


def test_an_unfinished_training_is_not_extracted(refused, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    lines = (run / "history.jsonl").read_text().splitlines(keepends=True)
    (run / "history.jsonl").write_text("".join(lines[:-1]))
    assert f"training of {run} has not finished" in refused("extract", run, code=1)
    assert f"training of {run} has not finished" in refused("specialize", run, code=1)


def test_specialising_makes_a_run_of_its_own(odn, refused, finished, tmp_path):
    out = tmp_path / "small"
    code, text, err = odn("specialize", finished, "--within", 0.5, "--max-parameters", 5000, "--out", out, "--json")
    assert code == 0, err
    outcome = json.loads(text)
    rows = {row["depth"]: row for row in outcome["depths"]}
    assert [row["depth"] for row in rows.values() if row["verdict"] == "chosen"] == [outcome["depth"]]
    assert outcome["valid_score"] == pytest.approx(rows[outcome["depth"]]["valid_score"], abs=0.03)
    size = (out / "artifact" / "weights.safetensors").stat().st_size
    assert size == rows[outcome["depth"]]["file_bytes"]
    code, text, err = odn("report", out, "--json")
    assert code == 0, err
    assert json.loads(text)["depth"] == outcome["depth"]
    assert odn("predict", out / "artifact", "--help")[0] == 0
    before = sorted(path.name for path in out.iterdir())
    own = read_run_config(out / "config.toml")
    with pytest.raises(UsageError, match="has no checkpoints to go on from: it was specialised from another run"):
        train_run(own, out, resume=True)
    assert "has no checkpoints of its backbone" in refused("extract", out, code=1)
    assert sorted(path.name for path in out.iterdir()) == before


def test_specialising_can_finetune_and_compress(odn, finished, tmp_path):
    pytest.importorskip("torch_pruning", reason="needs the extra prune")
    out = tmp_path / "small"
    flags = ("--target", 0.3, "--finetune-epochs", 1, "--compress", "width=0.5", "--out", out)
    code, _, err = odn("specialize", finished, *flags)
    assert code == 0, err
    assert (out / "finetuned").is_dir()
    assert (out / "compressed").is_dir()
    lines = map(json.loads, (out / "history.jsonl").read_text().splitlines())
    history = [line["phase"] for line in lines for _ in range(line["epochs"])]
    assert history.count("oneshot") == 6
    assert {"finetune", "compress"} <= set(history)


@pytest.mark.parametrize("confidence", [0.0, 0.95])
def test_a_target_that_is_lost_on_the_way_is_told(odn, finished, tmp_path, monkeypatch, confidence):
    run = shutil.copytree(finished, tmp_path / "run")
    config = read_run_config(run / "config.toml")
    write_config(dataclasses.replace(config, expand=dataclasses.replace(config.expand, confidence=confidence)), run)
    held = odn("specialize", run, "--target", 0.7, "--out", tmp_path / "held", "--json")
    assert (held[0], json.loads(held[1])["reached"]) == (0, True)
    value = 0.72 if confidence else 0.69  # of 48 samples the lower bound of 0.72 is below 0.7
    monkeypatch.setattr("odn.specializing.evaluate", lambda *_: score(value))
    code, text, err = odn("specialize", run, "--target", 0.7, "--out", tmp_path / "lost", "--json")
    assert (code, json.loads(text)["reached"], json.loads(text)["target"]) == (3, False, 0.7)
    assert f"odn: the target 0.7000 is not held: {value:.4f}" in err


def score(value):
    known = {"metric": "accuracy", "error": 0.1, "count": 48, "accuracy": value, "per_class": (), "support": ()}
    return Score(value=value, **known)


def test_a_file_that_is_not_kept_is_told(odn, finished, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    monkeypatch.setattr("odn.exporting.MAX_DIFFERENCE", -1.0)
    code, _, err = odn("specialize", finished, "--to", "onnx", "--out", tmp_path / "small")
    assert code == 1
    assert "odn: onnx: not kept: its logits differ from PyTorch's by" in err


def test_a_depth_can_be_asked_for(odn, refused, finished, tmp_path):
    code, text, err = odn("specialize", finished, "--depth", 7, "--out", tmp_path / "small", "--json")
    assert code == 0, err
    rows = json.loads(text)["depths"]
    assert [row["verdict"] for row in rows] == ["refused"] * 6 + ["chosen"] + ["refused"] * 2
    assert rows[0]["why"] == "depth 7 was asked for"
    assert "--depth 12 binds: with the rest as it is, depth 1, 2, 3, 4, 5, 6, 7, 8, 9 is possible" in refused(
        "specialize", finished, "--depth", 12, code=1
    )


def test_specialising_an_expansion_chooses_among_the_depths_it_tried(odn, arguments, tmp_path):
    run = tmp_path / "grown"
    grown = [flag for flag in arguments if flag not in ("--mode", "one-shot")]
    assert odn(*grown, "--run", run)[0] in (0, 3)
    code, text, err = odn("specialize", run, "--within", 0.9, "--json")
    assert code == 0, err
    tried = {json.loads(line)["depth"] for line in (run / "history.jsonl").read_text().splitlines()}
    assert {row["depth"] for row in json.loads(text)["depths"]} == tried


def test_what_stands_there_is_not_replaced_unasked(odn, refused, finished, tmp_path):
    out = tmp_path / "small"
    assert odn("specialize", finished, "--within", 0.9, "--out", out)[0] == 0
    assert f"{out} exists; replace it with --force" in refused("specialize", finished, "--out", out, code=2)
    assert odn("specialize", finished, "--within", 0.9, "--out", out, "--force")[0] == 0
    assert "holds the run itself" in refused("specialize", finished, "--out", finished, "--force", code=2)
    assert "holds the run itself" in refused("specialize", finished, "--out", finished.parent, "--force", code=2)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("x")
    text = refused("specialize", finished, "--out", tmp_path / "thesis", "--force", code=2)
    assert "exists and is not a run directory; choose another place with --out" in text


def test_a_device_table_decides_the_depth_and_the_file(odn, refused, finished, tmp_path):
    table, out = tmp_path / "table.json", tmp_path / "small"
    write_device_table(TABLE, table)
    bounded = ("specialize", finished, "--max-latency-ms", TABLE.predict_ms(4), "--device", table, "--out", out)
    assert "measured in onnx, the artifact gets torch, int8; add --to onnx" in refused(*bounded, "--to", "int8", code=2)
    code, text, err = odn(*bounded, "--json")
    assert code == 0, err
    assert json.loads(text)["depth"] <= 4
    assert (out / "artifact" / "model.onnx").is_file()
    write_device_table(dataclasses.replace(TABLE, runtime="torch"), table)
    assert odn(*bounded, "--force")[0] == 0
    assert not (out / "artifact" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (("--max-parameters", 10), 1, "--max-parameters 10 binds: with the rest as it is, "),
        (("--target", 93), 2, "for 93.0 % write 0.93"),
        (("--target", 0.9, "--within", 0.1), 2, "--target and --within exclude each other"),
        (("--within", 2), 2, "--within is 2.0; allowed: 0 to below 1"),
        (("--within", -0.1), 2, "--within is -0.1; allowed: 0 to below 1"),
        (("--max-macs", -5), 2, "--max-macs is -5; allowed: above 0"),
        (("--max-latency-ms", "inf"), 2, "--max-latency-ms is inf; allowed: above 0"),
        (("--max-parameters", 0), 2, "--max-parameters is 0; allowed: above 0"),
        (("--max-latency-ms", 1), 2, "--max-latency-ms needs --device TABLE.json; measure one with: odn profile RUN"),
        (
            ("--device", "nowhere.json"),
            1,
            "nowhere.json is missing; make a device table with odn profile --latency --out",
        ),
        (("--to", "tflite"), 2, "unknown runtime 'tflite'"),
    ],
)
def test_wrong_requests_to_specialize(refused, finished, flags, code, text):
    assert text in refused("specialize", finished, *flags, code=code)


def test_the_confidence_of_a_run_holds_when_it_is_specialised(odn, refused, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    config = read_run_config(run / "config.toml")
    write_config(dataclasses.replace(config, expand=dataclasses.replace(config.expand, confidence=0.95)), run)
    best = max(record.valid_score for record in curve_of(read_history(run / "history.jsonl")))
    assert "a lower bound of" in refused("specialize", run, "--target", best, code=1)
    # What is within the best was seen on these very scores.
    code, text, err = odn("specialize", run, "--within", 0.0, "--out", tmp_path / "small", "--json")
    assert (code, json.loads(text)["valid_score"]) == (0, pytest.approx(best, abs=0.03)), err
    assert read_run_config(tmp_path / "small" / "config.toml").expand.confidence == 0


def test_specialising_what_is_no_run(refused, tmp_path):
    assert "is not a run directory" in refused("specialize", tmp_path, code=1)


def test_one_shot_can_be_asked_for_in_a_recipe_alone(odn, tmp_path, npz):
    recipe = tmp_path / "one.toml"
    recipe.write_text('mode = "one-shot"\n[oneshot]\nepochs = 1\n[report]\nlatency_seconds = 0\n')
    flags = ("--backbone", "cifar_resnet20", "--width", 0.25, "--target", 0.99, "--finetune-epochs", 0)
    code, _, err = odn("run", npz, "--config", recipe, *flags, "--run", tmp_path / "run")
    assert code == 3, err
    assert dataclasses.asdict(OneShotConfig())["epochs"] == 0
