"""The benchmarks' own rules: what an oracle says, how a search is held against it, and which cells are kept."""

import argparse
import dataclasses
import json
import math

import pytest
from benchmarks import depth_choice
from benchmarks.common import ROOT, Cells, parse, write_page
from benchmarks.depth_choice import Plan, bare, growth_target, judge, search_code, searches, summarise
from benchmarks.yardstick import growth_exponent, judged, oracle_of

PLAN = Plan(grid=(("fashion-mnist", "cifar_resnet20", (1, 2, 3, 5)),), seeds=(0, 1), growth=("cifar_resnet20", "other"))
# Two seeds a point apart at every depth: the difference of two means has a standard error of 0.005 * sqrt(2).
CURVE = {1: 0.70, 2: 0.80, 3: 0.805, 5: 0.90}


def scratch(**changed):
    return [
        {
            "kind": "scratch", "data": "fashion-mnist", "backbone": "cifar_resnet20", "depth": depth, "seed": seed,
            "epochs": 30, "train_limit": 4_000, "valid": valid + (0.005 if seed else -0.005), "test": valid - 0.01,
            "train_macs": 100 * depth, "learning_macs": 80 * depth, "seconds": 10.0 * depth,
            "machine": "one", **changed,
        }
        for depth, valid in CURVE.items()
        for seed in (0, 1)
    ]  # fmt: skip


def found(target, depth, **changed):
    return {
        "kind": "search" if target else "auto", "data": "fashion-mnist", "backbone": "cifar_resnet20", "seed": 0,
        "target": target, "train_limit": 4_000, "search": search_code(), "depth": depth, "blocks": 9, "reached": True,
        "within": 0.002, "test": 0.8, "train_macs": 250, "seconds": 20.0,
        "machine": "one", **changed,
    }  # fmt: skip


def test_targets_lie_where_neighbouring_depths_differ_by_more_than_two_standard_errors():
    oracle = oracle_of(scratch())
    assert oracle.targets == ((0.75, 2), (0.8525, 5))
    assert (oracle.flat, oracle.overtaken) == (1, 0)
    assert oracle.error[0] is None
    assert oracle.error[1:] == pytest.approx([0.005 * math.sqrt(2)] * 3)
    assert oracle_of(scratch(), most_targets=1).targets == ((0.75, 2),)


def test_a_depth_that_an_earlier_one_has_overtaken_is_never_the_right_one():
    rows = [row | {"valid": row["valid"] - (0.3 if row["depth"] == 2 else 0)} for row in scratch()]
    oracle = oracle_of(rows)
    # 1 to 2 falls, 2 to 3 rises to a target above all before it, 3 to 5 rises.
    assert oracle.targets == ((0.8525, 5),)
    assert (oracle.flat, oracle.overtaken) == (0, 2)


def test_a_search_is_held_against_the_depth_that_is_right_for_its_target():
    oracle = oracle_of(scratch())
    row = judged(found(0.8525, 3), oracle)
    assert (row["oracle_depth"], row["blocks_off"], row["max_depth"]) == (5, -1, 5)
    assert row["test_minus_scratch"] == pytest.approx(0.8 - 0.795)
    assert row["test_minus_right"] == pytest.approx(0.8 - 0.89)
    assert row["cost_vs_full"] == pytest.approx(250 / 500)
    assert row["cost_vs_full_learning"] == pytest.approx(250 / 400)
    # Evaluating adds a quarter to learning; after every thirteenth epoch it adds less than a fiftieth.
    assert row["cost_vs_full_seldom"] == pytest.approx(250 / (400 + 100 / 13))
    assert row["cost_vs_oracle"] == pytest.approx(250 / 1100)
    assert (row["seconds_vs_full"], row["seconds_vs_oracle"]) == pytest.approx((20 / 50, 20 / 110))
    other = judged(found(0.8525, 3, machine="another"), oracle)
    assert (other["seconds_vs_full"], other["seconds_vs_oracle"], other["cost_vs_full"]) == (None, None, 0.5)
    assert judged(found(0.9999, 3), oracle) is None


def test_without_a_target_the_right_depth_is_the_shallowest_that_is_nearly_as_good_as_the_best():
    oracle = oracle_of(scratch())
    assert judged(found(0.0, 5), oracle)["oracle_depth"] == 5
    assert judged(found(0.0, 5, within=0.1), oracle)["oracle_depth"] == 2
    figures = summarise([*scratch(), found(0.0, 3), found(0.0, 1, seed=1), found(0.75, 5)], PLAN)
    assert figures["auto_cells"] == 2
    assert figures["auto_within_one_block_share"] == pytest.approx(1 / 2)  # 3 is next to 5 in the plan
    assert figures["auto_depth_std_max"] == pytest.approx(math.sqrt(2))
    assert figures["auto_accuracy_minus_scratch_mean"] == pytest.approx((0.8 - 0.795 + 0.8 - 0.69) / 2)
    assert figures["auto_accuracy_minus_right_mean"] == pytest.approx(0.8 - 0.89)
    assert figures["auto_cost_vs_oracle_mean"] == pytest.approx(250 / 1100)


def test_searches_that_miss_their_target_count_as_wrong():
    rows = [*scratch(), found(0.8525, 5), found(0.8525, 5, seed=1, reached=False), found(0.75, 1)]
    figures = summarise(rows, PLAN)
    assert (figures["cells"], figures["cells_planned"]) == (3, 4)  # two targets, two seeds
    assert figures["within_one_block_share"] == pytest.approx(2 / 3)
    assert figures["exact_share"] == pytest.approx(1 / 3)
    assert figures["reached_share"] == pytest.approx(2 / 3)
    assert figures["cost_vs_full_first_half_max"] == pytest.approx(0.5)
    assert figures["depth_std_max"] == 0
    assert figures["auto_within_one_block_share"] is None


@pytest.mark.parametrize(
    "stale",
    [
        scratch(train_limit=10_000),
        scratch(epochs=60),
        scratch(seed=7),
        [found(0.8525, 1, search="another")],
        [found(0.8525, 1, train_limit=0)],
        [found(0.1234, 1)],
    ],
)
def test_cells_of_another_plan_search_or_oracle_do_not_count(stale):
    rows = [*scratch(), found(0.8525, 5)]
    assert summarise([*stale, *rows], PLAN) == summarise(rows, PLAN)


def test_rows_of_an_earlier_search_that_takes_the_same_steps_count(monkeypatch):
    rows = [*scratch(), found(0.8525, 5)]
    monkeypatch.setattr(depth_choice, "SAME_SEARCH", {search_code(): ("another",)})
    other = [found(0.8525, 1, search="unlike")]
    assert summarise([*other, *scratch(), found(0.8525, 5, search="another")], PLAN) == summarise(rows, PLAN)


def test_what_a_search_says_of_itself_does_not_make_it_another():
    code = "GAIN = 1\n\n\ndef f(x):\n    return x\n"
    told = '"""Module."""\n\nGAIN = 1  # why\n\ndef f(x):\n    """Double it."""\n    return x\n'
    assert bare(told).replace("pass", "").split() == bare(code).split()
    assert bare(told) == bare(told.replace("why", "because").replace("Double", "Keep"))
    assert bare(told) != bare(told.replace("GAIN = 1", "GAIN = 2"))


@pytest.mark.parametrize("page", ["depth_choice", "depth_choice_larger"])
def test_the_rows_of_the_page_are_of_the_search_as_it_is_or_one_that_takes_the_same_steps(page):
    rows = json.loads((ROOT / "benchmarks" / "results" / f"{page}.json").read_text())["rows"]
    assert {row["search"] for row in rows if "search" in row} <= set(searches())


def test_an_oracle_that_is_not_complete_judges_nothing():
    oracles, rows = judge([*scratch()[:-1], found(0.8525, 5)], PLAN)
    assert (oracles, rows) == ({}, [])
    assert growth_target(oracles, PLAN) is None
    assert growth_target(oracles, dataclasses.replace(PLAN, growth=())) is None


def test_growth_is_fitted_over_searches_that_reached_the_target():
    rows = [
        found(0.8525, 5, blocks=9, train_macs=9.0**0.5),
        found(0.8525, 5, backbone="other", blocks=27, train_macs=27.0**0.5),
        found(0.8525, 5, backbone="other", blocks=27, train_macs=1e9, reached=False),
        found(0.8525, 5, backbone="third", blocks=54, train_macs=1e9),
    ]
    assert growth_exponent(rows, PLAN.growth) == pytest.approx(0.5)
    assert growth_exponent(rows[:1], PLAN.growth) is None
    assert summarise([*scratch(), *rows], PLAN)["cost_growth_exponent"] == pytest.approx(0.5)


def options(path, *only):
    return argparse.Namespace(out=path, only=[*only])


def test_two_processes_keep_each_others_cells(tmp_path):
    path = tmp_path / "results.json"
    one, two = (Cells(options(path), lambda rows: {"cells": len(rows)}) for _ in range(2))
    assert one.run({"cell": "a"}, lambda: {"value": (1, 2)})["value"] == [1, 2]
    two.run({"cell": "b"}, lambda: {"value": 2})
    one.save()
    kept = json.loads(path.read_text())
    assert [row["cell"] for row in kept["rows"]] == ["a", "b"]
    assert kept["summary"] == {"cells": 2}


def test_finished_cells_are_kept_and_others_are_left_where_they_are_not_asked_for(tmp_path):
    path = tmp_path / "results.json"
    Cells(options(path), lambda rows: {}).run({"cell": "a", "seed": 0}, lambda: {"value": 1})
    cells = Cells(options(path, ("seed", ["1", "2"])), lambda rows: {})
    assert cells.run({"cell": "a", "seed": 0}, lambda: {"value": 2})["value"] == 1
    assert cells.run({"cell": "b", "seed": 0}, lambda: {"value": 2}) is None
    assert cells.run({"cell": "b", "seed": 2}, lambda: {"value": 3})["value"] == 3
    assert cells.run({"cell": "c"}, lambda: {"value": 4})["value"] == 4  # has no seed to choose by


def test_a_page_says_which_machine_measured_what(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    for number, name in enumerate(("one machine", "another")):
        monkeypatch.setattr("benchmarks.common.machine", lambda name=name: name)
        cells = Cells(options(path), lambda rows: {})
        cells.run({"cell": number}, lambda: {"value": 0.5})
        write_page(path, "Title", "Text.", [], cells.rows, ("cell", "value"))
        page = path.with_suffix(".md").read_text()
        assert ("on: one machine." in page) == (number == 0)
    assert "on: [1] one machine; [2] another." in page
    assert "| 0 | 0.5000 | [1] |" in page
    assert "| 1 | 0.5000 | [2] |" in page


def test_conditions_are_named_and_have_values(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "--only", "seed=0,1", "kind=search"])
    assert parse("name", "").only == [("seed", ["0", "1"]), ("kind", ["search"])]
    monkeypatch.setattr("sys.argv", ["benchmark", "--only", "seed"])
    with pytest.raises(SystemExit):
        parse("name", "")
    assert "seed is no condition; give NAME=VALUE or NAME=VALUE,VALUE" in capsys.readouterr().err
