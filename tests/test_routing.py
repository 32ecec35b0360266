"""Dynamic depth: policies, calibration, networks that stop, their stages in onnxruntime, and the command."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import stripes, tiny_data
from odn.calibration import _temperature, calibrate
from odn.cli import main
from odn.data import shared_samples
from odn.data.splits import FileSplit
from odn.devices import DeviceTable, write_device_table
from odn.errors import OdnError, UsageError
from odn.gates import POLICIES, Costs, Exit, Route, confidence, depths_left, follow, probabilities
from odn.manifest import read_manifest
from odn.network import PartitionedNetwork
from odn.route_record import read_routing, write_routing
from odn.routing import RoutedNetwork, costs_of, logits_of, route
from odn.routing_page import routing_sentences
from odn.routing_report import routing_of
from odn.texts import TextPreprocessing
from test_devices import TABLE
from test_expansion import network
from test_network import by_hand


def sample(depths: int = 4, count: int = 600, classes: int = 5, seed: int = 0):
    """Logits of heads that get surer with depth, on inputs of which some are hard; and the labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    ease = generator.random(count)
    logits = {}
    for depth in range(1, depths + 1):
        values = generator.normal(size=(count, classes))
        values[np.arange(count), labels] += (2 + 5 * depth / depths) * (0.3 + ease)
        logits[depth] = values
    return logits, labels


COSTS = Costs(trunk=(1.0, 2.0, 3.0, 4.0), heads=(0.1,) * 4)
SURE = st.sampled_from(POLICIES[:3])


@given(policy=SURE, seed=st.integers(0, 99), temperature=st.floats(0.1, 10))
def test_confidence_lies_between_nothing_and_certainty(policy, seed, temperature):
    logits = np.random.default_rng(seed).normal(size=(20, 4)) * 5
    sure = confidence(policy, logits, temperature)
    assert sure.shape == (20,)
    assert ((sure >= 0) & (sure <= 1)).all()
    assert confidence(policy, np.zeros((1, 4)), temperature)[0] == pytest.approx(0.25 if policy == POLICIES[0] else 0)
    assert confidence(policy, np.array([[1000.0, 0, 0, 0]]), temperature)[0] == pytest.approx(1)
    # A higher temperature makes nobody surer.
    assert (confidence(policy, logits, 2 * temperature) <= sure + 1e-9).all()


def test_confidences_are_what_they_are_called():
    shares = np.array([[0.6, 0.3, 0.1]])
    logits = np.log(shares)
    assert probabilities(logits) == pytest.approx(shares)
    assert confidence("max-probability", logits, 1.0) == pytest.approx(0.6)
    assert confidence("margin", logits, 1.0) == pytest.approx(0.3)
    assert confidence("entropy", logits, 1.0) == pytest.approx(1 + (shares * np.log(shares)).sum() / np.log(3))


def answers(*labels):
    return np.eye(3)[list(labels)]


def test_patience_waits_for_exits_that_agree():
    exits = tuple(Exit(depth=depth, temperature=1.0, threshold=2) for depth in (1, 2, 3))
    logits = {1: answers(0, 0, 1), 2: answers(0, 1, 0), 3: answers(2, 1, 2), 4: answers(2, 2, 2)}
    assert depths_left(Route(policy="patience", exits=exits, last=4), logits).tolist() == [2, 3, 4]


@given(
    policy=st.sampled_from(POLICIES),
    thresholds=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    seed=st.integers(0, 20),
    count=st.integers(1, 40),
)
def test_stage_by_stage_inputs_leave_where_all_logits_say(policy, thresholds, seed, count):
    logits, _ = sample(count=count, seed=seed)
    if policy == "patience":
        thresholds = [1 + round(3 * value) for value in thresholds]
    exits = tuple(Exit(depth=d, temperature=1.5, threshold=t) for d, t in zip((1, 2, 3), thresholds, strict=True))
    plan = Route(policy=policy, exits=exits, last=4)
    computed = []

    def hop(depth):
        def run(rows):
            computed.append(len(rows))
            return rows, logits[depth][rows]

        return run

    found, left = follow(plan, [hop(depth) for depth in plan.depths], np.arange(count))
    expected = depths_left(plan, logits)
    assert left.tolist() == expected.tolist()
    assert np.allclose(found, [logits[depth][row] for row, depth in enumerate(expected)], atol=1e-5)
    # Nobody is computed who has left.
    assert computed == [n for n in (int((expected >= depth).sum()) for depth in plan.depths) if n]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"exits": (Exit(depth=4, temperature=1, threshold=1),)}, r"exits at depths \[4, 4\]; allowed: ascending"),
        ({"exits": tuple(Exit(depth=d, temperature=1, threshold=1) for d in (2, 1))}, r"exits at depths \[2, 1, 4\]"),
    ],
)
def test_routes_that_lead_nowhere(change, text):
    with pytest.raises(UsageError, match=text):
        Route(**{"policy": "margin", "exits": (), "last": 4, **change})


@pytest.mark.parametrize(
    ("exit_", "text"), [((0, 1.0), "an exit at depth 0"), ((1, 0.0), "temperature 0.0 at depth 1")]
)
def test_exits_that_are_none(exit_, text):
    with pytest.raises(UsageError, match=text):
        Exit(depth=exit_[0], temperature=exit_[1], threshold=0.5)


def test_costs_add_up_the_heads_that_are_passed():
    costs = Costs(trunk=(1.0, 2.0, 4.0), heads=(0.1, 0.2, 0.4), call=0.01, gate=0.002)
    assert costs.of([3]) == pytest.approx({3: 4.4})
    assert costs.of([1, 3]) == pytest.approx({1: 1.102, 3: 4.512})
    plan = Route(policy="margin", exits=(Exit(depth=1, temperature=1, threshold=0),), last=3)
    assert costs.mean(plan, np.array([1, 1, 3, 3])) == pytest.approx((1.102 + 4.512) / 2)


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_temperatures_are_found(true):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 3))
    labels = np.array([generator.choice(3, p=row) for row in probabilities(logits, 1.0)])
    assert _temperature(logits * true, labels) == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize("policy", [None, *POLICIES])
@pytest.mark.parametrize("drop", [0.0, 0.01, 0.05])
def test_the_route_holds_the_drop_and_saves(policy, drop):
    logits, labels = sample()
    found = calibrate(logits, labels, COSTS, max_drop=drop, policy=policy)
    assert found.full_accuracy - found.accuracy <= drop
    assert found.mean_cost <= found.full_cost + 1e-9
    assert found.samples == 300
    check = {depth: values[1::2] for depth, values in logits.items()}
    left = depths_left(found.route, check)
    assert found.mean_cost == pytest.approx(COSTS.mean(found.route, left))
    right = [
        check[depth][row].argmax() == label for row, (depth, label) in enumerate(zip(left, labels[1::2], strict=True))
    ]
    assert found.accuracy == pytest.approx(np.mean(right))
    if policy is not None:
        assert found.mean_cost < 0.95 * found.full_cost
        assert found.route.policy == policy


def test_all_policies_together_are_as_good_as_the_best():
    logits, labels = sample()
    alone = [calibrate(logits, labels, COSTS, max_drop=0.01, policy=policy).mean_cost for policy in POLICIES]
    assert calibrate(logits, labels, COSTS, max_drop=0.01).mean_cost == min(alone)


@pytest.mark.parametrize("most", [1.5, 2.5, 3.5])
def test_a_mean_cost_is_kept(most):
    logits, labels = sample(count=2000)
    found = calibrate(logits, labels, COSTS, mean_cost=most)
    assert found.mean_cost <= 1.05 * most
    assert found.accuracy > calibrate(logits, labels, COSTS, mean_cost=1.2).accuracy


def test_heads_that_are_never_right_are_no_exits():
    logits, labels = sample()
    logits = {**logits, 1: -logits[1]}
    found = calibrate(logits, labels, COSTS, max_drop=0.0, policy="margin")
    assert all(exit_.depth != 1 or exit_.threshold > 0.5 for exit_ in found.route.exits)


def test_too_few_samples_and_contradicting_goals_are_refused():
    logits, labels = sample(count=199)
    with pytest.raises(UsageError, match="thresholds on 199 samples; allowed: 200 or more"):
        calibrate(logits, labels, COSTS, max_drop=0.01)
    for goals in ({}, {"max_drop": 0.1, "mean_cost": 1.0}):
        with pytest.raises(UsageError, match=r"give either a drop \(max_drop\) or a mean cost \(mean_cost\)"):
            calibrate(*sample(), COSTS, **goals)
    for goal, text in (
        ({"max_drop": -0.1}, "the drop is -0.1; allowed: 0 to below 1"),
        ({"max_drop": float("nan")}, "the drop is nan; allowed: 0 to below 1"),
        ({"mean_cost": float("nan")}, "the mean cost is nan; allowed: above 0"),
        ({"mean_cost": float("inf")}, "the mean cost is inf; allowed: above 0"),
    ):
        with pytest.raises(UsageError, match=text):
            calibrate(*sample(), COSTS, **goal)


def whole(seed: int = 0) -> PartitionedNetwork:
    return network(seed).eval()


def test_a_network_without_exits_is_the_static_one():
    static = whole()
    x = torch.randn(7, 1, 8, 8)
    logits, depths = RoutedNetwork(static, Route(policy="margin", exits=(), last=9)).eval()(x)
    torch.testing.assert_close(logits, static.prefix(9)(x).detach(), rtol=0, atol=1e-6)
    assert depths.tolist() == [9] * 7


@pytest.mark.parametrize("batch", [1, 13])
def test_inputs_leave_with_the_logits_of_their_exit(batch):
    static = whole()
    x = torch.randn(batch, 1, 8, 8)
    bounds = {1: 0.35, 4: 0.36}
    exits = tuple(Exit(depth=d, temperature=1.0, threshold=t) for d, t in bounds.items())
    plan = Route(policy="max-probability", exits=exits, last=9)
    logits, depths = RoutedNetwork(static, plan).eval()(x)
    with torch.inference_mode():
        every = static(x)
    assert depths.tolist() == depths_left(plan, {d: every[d - 1].numpy() for d in plan.depths}).tolist()
    expected = torch.stack([every[int(depth) - 1][row] for row, depth in enumerate(depths)])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_blocks_behind_the_last_exit_are_not_run():
    static = whole()
    calls = []
    for number, block in enumerate(static.blocks, 1):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    plan = Route(policy="margin", exits=(Exit(depth=2, temperature=1.0, threshold=0.0),), last=9)
    RoutedNetwork(static, plan).eval()(torch.randn(3, 1, 8, 8))
    assert calls == [1, 2]


def test_costs_of_a_network_are_exact():
    hand = by_hand(3)
    costs = costs_of(hand, (1, 8, 8))
    from odn.measure import measure_cost

    for depth in (1, 2, 3):
        assert costs.of([depth])[depth] == measure_cost(hand.prefix(depth), (1, 8, 8)).macs


def test_costs_on_a_device_are_milliseconds():
    table = DeviceTable(
        backbone="cifar_resnet20", width=0.25, input_shape=(1, 8, 8), classes=3, runtime="onnx", threads=1, machine={},
        versions={}, date="", call_ms=0.01, stem_ms=0.1, blocks_ms=(0.2,) * 9, heads_ms=(0.05,) * 9,
        whole_ms={"1": 0.3, "9": 2.0}, held_out_ms={},
    )  # fmt: skip
    costs = costs_of(whole(), (1, 8, 8), table)
    assert costs.of([1])[1] == pytest.approx(0.3)
    assert costs.of([9])[9] == pytest.approx(2.0)
    head = 0.05 - 0.01
    assert costs.of([1, 9])[9] == pytest.approx(2.0 + head + 0.01 + costs.gate)
    assert 0 < costs.gate < 1
    with pytest.raises(UsageError, match="measured with backbone resnet18"):
        costs_of(whole(), (1, 8, 8), dataclasses.replace(table, backbone="resnet18"))


def test_logits_of_all_depths():
    data = tiny_data(valid=300)
    logits, labels = logits_of(whole(), data.valid)
    assert labels.tolist() == data.valid.labels.tolist()
    assert {depth: values.shape for depth, values in logits.items()} == dict.fromkeys(range(1, 10), (300, 3))


def test_calibration_on_trained_samples_is_refused():
    data = tiny_data(train=400, valid=300)
    assert shared_samples(data.train, data.train) == 400
    assert shared_samples(data.valid, data.train) == 0
    with pytest.raises(UsageError, match="400 of the 400 calibration samples are in the training split"):
        route(whole(), data.train, train=data.train, max_drop=0.01)


def test_copies_of_trained_files_are_found_under_any_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    generator = np.random.default_rng(0)
    for number in range(6):
        pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{number}.png")
        if number < 2:
            shutil.copy(tmp_path / "a" / f"{number}.png", tmp_path / "b" / f"copy {number}.png")
    Image.fromarray(255 - pixels).save(tmp_path / "b" / "other.png")
    spec = tiny_data().spec
    splits = [
        FileSplit(paths := sorted((tmp_path / folder).iterdir()), torch.zeros(len(paths), dtype=torch.long), spec)
        for folder in ("a", "b")
    ]
    assert shared_samples(splits[1], splits[0]) == 2


def test_a_mean_cost_below_the_cheapest_route_is_refused():
    data = tiny_data(valid=300)
    least = costs_of(whole(), (1, 8, 8)).of([1])[1]
    text = f"no route takes {0.5 * least / 1e6:,.2f} M MACs in the mean: the cheapest that was found"
    with pytest.raises(OdnError, match=re.escape(text)):
        route(whole(), data.valid, mean_cost=0.5 * least)
    found = route(whole(), data.valid, mean_cost=1.5 * least)
    assert found.found.mean_cost <= 1.05 * 1.5 * least
    assert found.worthwhile == (
        found.found.mean_cost < found.static_cost or found.static_accuracy < found.found.accuracy
    )


def test_a_network_of_one_block_has_no_exits():
    data = tiny_data(valid=300)
    only = route(by_hand(1), data.valid, max_drop=0.01)
    assert only.found.route.exits == ()
    assert (only.static_depth, only.worthwhile) == (1, False)


def test_the_static_rival_may_lose_as_much_as_the_route(caplog):
    data = tiny_data(valid=300)
    found = route(whole(), data.valid, max_drop=0.9)
    assert (found.static_depth, found.worthwhile) == (1, False)
    route(whole(), data.valid, max_drop=0.002)
    assert "a drop of 0.002 is less than one of the 150 samples" in caplog.text


def test_texts_have_no_exits():
    data = tiny_data(valid=300)
    data.valid.spec = dataclasses.replace(data.valid.spec, preprocessing=TextPreprocessing(tokens=4, vocabulary=300))
    with pytest.raises(UsageError, match="exits are for images"):
        route(whole(), data.valid, max_drop=0.01)


def test_only_classes_have_exits():
    data = tiny_data(valid=300)
    data.valid.spec = dataclasses.replace(data.valid.spec, task="regression", metric="r2")
    with pytest.raises(UsageError, match="exits are for classification, the task is regression"):
        route(whole(), data.valid, max_drop=0.01)


def test_exits_are_not_calibrated_in_what_is_not_the_metric_of_the_run():
    data = tiny_data(valid=300)
    data.valid.spec = dataclasses.replace(data.valid.spec, metric="balanced_accuracy")
    with pytest.raises(UsageError, match="calibrated in accuracy, the metric is balanced_accuracy, which .* spoil"):
        route(whole(), data.valid, max_drop=0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of all depths with enough validation data, routed."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx: pip install 'optimally-deep[onnx]'")
    folder = tmp_path_factory.mktemp("routed")
    x, y = stripes(900)
    np.savez(folder / "stripes.npz", x_train=x, y_train=y, x_test=x[:200], y_test=y[:200])
    (folder / "brief.toml").write_text(
        "[report]\nlatency_seconds = 0.0\n[oneshot]\nepochs = 4\ndepths_per_step = 0\n[data]\nvalid_fraction = 0.3\n"
        "[train]\nbatch_size = 16\nlearning_rate = 0.1\n"
    )
    flags = ("--mode", "one-shot", "--backbone", "cifar_resnet20", "--width", 0.25, "--finetune-epochs", 0)
    run = folder / "run"
    command("run", folder / "stripes.npz", "--config", folder / "brief.toml", *flags, "--target", 0.5, "--run", run)
    command("route", run, "--max-drop", 0.05)
    return run


def command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code in (0, 3)


def test_routing_is_written_and_predicts_without_torch(odn, finished, tmp_path):
    routing = read_routing(finished)
    assert routing.full_accuracy - routing.accuracy <= 0.05
    assert routing.samples == 135
    images, labels = stripes(30, seed=8)
    from PIL import Image

    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index:02}.png")
    code, out, err = odn("predict", finished / "artifact", tmp_path, "--runtime", "routed", "--json")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()] if out.lstrip().startswith("{") else json.loads(out)
    right = np.mean([row["label"] == str(label) for row, label in zip(rows, labels, strict=True)])
    assert right >= routing.accuracy - 0.15
    assert {row["depth"] for row in rows} <= {exit_.depth for exit_ in routing.exits} | {9}
    pytest.importorskip("fastapi", reason="needs the extra serve: pip install 'optimally-deep[serve]'")
    from fastapi.testclient import TestClient

    from odn.serve import build_app

    pages = [("files", path.read_bytes()) for path in sorted(tmp_path.iterdir())]
    with TestClient(build_app(finished / "artifact", runtime="routed")) as client:
        served = client.post("/predict", files=pages).json()["predictions"]
    assert [(row["label"], row["depth"]) for row in served] == [(row["label"], row["depth"]) for row in rows]


def test_the_report_tells_who_leaves_where(odn, finished):
    code, out, err = odn("report", finished)
    assert code in (0, 3), err
    report = json.loads((finished / "report.json").read_text())
    test = report["routing"]["test"]
    assert sum(row["share"] for row in test["exits"]) == pytest.approx(1)
    assert sum(row["count"] for row in test["exits"]) == 200
    shares = {row["depth"]: row["share"] for row in test["exits"]}
    costs = dict(zip(shares, report["routing"]["costs"], strict=True))
    assert test["mean_cost"] == pytest.approx(sum(shares[depth] * costs[depth] for depth in shares))
    assert set(test["by_depth"]) == {str(report["routing"]["static_depth"]), "9"}
    assert [row["name"] for row in report["networks"]] == ["full", "extracted", "cifar_resnet20"]
    page = (finished / "report.html").read_text()
    assert "<h2>Dynamic depth</h2>" in page
    assert page.count("data:image/png;base64,") >= 8
    assert page.count("<figcaption>") == page.count("data:image/png;base64,")
    assert "Easy inputs leave early" in " ".join(out.split())
    full = report["networks"][0]
    assert full["test_accuracy"] == pytest.approx(test["by_depth"]["9"])
    assert full["valid_accuracy"] == pytest.approx(report["curve"][8]["valid_score"], abs=0.01)


def test_where_no_exit_saves_anything_nothing_is_written(refused, finished, tmp_path, monkeypatch):
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / "artifact" / "manifest.json").read_text()
    monkeypatch.setattr("odn.calibration._fit", lambda policy, *_, **__: Route(policy=policy, exits=(), last=9))
    text = refused("route", run, "--max-drop", 0.01, code=1)
    assert "no exit saves anything within a drop of 0.01 on the 135 validation samples that check it; nothing" in text
    assert f"odn specialize {run} --depth " in text
    assert (run / "artifact" / "manifest.json").read_text() == before


ROUTING = {
    "policy": "margin", "samples": 100, "unit": "macs", "accuracy": 0.9, "mean_cost": 2e6, "full_accuracy": 0.91,
    "full_cost": 9e6, "static_depth": 3, "static_accuracy": 0.92, "static_cost": 3e6, "worthwhile": True, "test": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "costs more, and is 0.0200 more accurate: depth 3 alone is right on 0.9200 for 3.00 M MACs."),
        ({"static_accuracy": 0.9}, "costs more, and is no more accurate: depth 3"),
        ({"static_cost": 2e6, "worthwhile": False}, "costs no more, and is the better choice: depth 3"),
        (
            {"static_cost": 1e6, "static_accuracy": 0.8},
            "No static network is as accurate for less; the nearest: depth 3",
        ),
    ],
)
def test_the_static_rival_is_told_as_it_is(change, text):
    assert text in routing_sentences({**ROUTING, **change})


def test_a_new_route_replaces_the_old_one(odn, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    code, out, err = odn("route", run, "--mean-macs", 60_000, "--policy", "margin", "--json")
    assert code == 0, err
    assert json.loads(out)["policy"] == "margin"
    assert read_routing(run).policy == "margin"
    names = [export["runtime"] for export in json.loads((run / "artifact" / "manifest.json").read_text())["exports"]]
    assert names == ["routed"]
    listed = json.loads((run / "artifact" / "routed.json").read_text())["files"]
    assert sorted(listed) == sorted(f"routed/{path.name}" for path in (run / "artifact" / "routed").iterdir())


def test_figures_of_another_route_are_not_reported(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    other = dataclasses.replace(read_routing(run), exits=())
    write_routing(other, run)
    with pytest.raises(OdnError, match=r"are of another route than .*routing.json; run: odn route"):
        routing_of(run, read_manifest(run / "artifact"), None)


def swapped(artifact):
    stages = sorted((artifact / "routed").iterdir())
    stages[0].write_bytes(stages[-1].read_bytes())


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda artifact: (artifact / "routed" / "stage_1.onnx").unlink(), "is missing; route the network again"),
        (swapped, "was changed or swapped; route the network again"),
        (
            lambda artifact: (artifact / "routed.json").write_text("{}"),
            "routed.json was changed since it was exported; route the network again with: odn route RUN",
        ),
        (
            lambda artifact: (artifact / "routed.json").unlink(),
            "routed.json is missing; route the network again with: odn route RUN",
        ),
    ],
)
def test_stages_that_are_missing_or_swapped(refused, finished, tmp_path, damage, text):
    artifact = shutil.copytree(finished / "artifact", tmp_path / "artifact")
    damage(artifact)
    assert text in refused("predict", artifact, finished / "report.html", "--runtime", "routed", code=1)


@pytest.mark.parametrize(
    "change", [{"schema": 9}, {"files": ["../x.onnx"]}, {"sha256": []}, {"route": {}}, {"more": 1}]
)
def test_lists_of_stages_that_are_damaged(finished, tmp_path, change):
    from odn.runtimes.routed import read_stages

    artifact = shutil.copytree(finished / "artifact", tmp_path / "artifact")
    path = artifact / "routed.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(OdnError, match="route the network again"):
        read_stages(artifact)


def test_a_damaged_routing_file_is_told(refused, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "routing.json").write_text("{")
    assert "routing.json is damaged" in refused("report", run, code=1)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--max-drop", 0.1, "--mean-macs", 5), "--max-drop and --mean-macs exclude each other"),
        (("--max-drop", 1), "--max-drop is 1.0; allowed: 0 to below 1"),
        (("--max-drop", "nan"), "--max-drop is nan; allowed: 0 to below 1"),
        (("--mean-ms", "inf"), "--mean-ms is inf; allowed: above 0"),
        (("--mean-macs", -1), "--mean-macs is -1; allowed: above 0"),
        (("--mean-macs", 0), "--mean-macs is 0; allowed: above 0"),
        (("--mean-ms", 1), "--mean-ms goes with --device TABLE.json"),
        (("--policy", "hope"), "hope"),
    ],
)
def test_wrong_requests(refused, finished, flags, text):
    assert text in refused("route", finished, *flags, code=2)


def test_a_table_of_another_runtime_is_refused(refused, finished, tmp_path):
    write_device_table(dataclasses.replace(TABLE, runtime="torch"), tmp_path / "table.json")
    text = refused("route", finished, "--mean-ms", 1, "--device", tmp_path / "table.json", code=2)
    assert "the device table was measured in torch, the stages run in onnx; measure one with: odn profile" in text


def test_a_run_that_grew_cannot_be_routed(odn, refused, npz, tmp_path):
    flags = ("--backbone", "cifar_resnet20", "--width", 0.25, "--target", 0.1, "--finetune-epochs", 0)
    assert odn("run", npz, *flags, "--run", tmp_path / "run")[0] == 0
    assert "were trained apart, so that they share no blocks" in refused("route", tmp_path / "run", code=2)


def test_stages_are_not_exported(refused, finished):
    assert "--to routed: stages with exits are made by odn route RUN" in refused(
        "export", finished, "--to", "routed", code=2
    )


def test_the_benchmark_leaves_out_what_depends_on_the_input(odn, finished):
    code, out, err = odn("benchmark", finished / "artifact", "--seconds", 0.01, "--threads", 1, "--json")
    assert code == 0, err
    assert {row["runtime"] for row in json.loads(out)} == {"torch"}
