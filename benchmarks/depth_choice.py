"""Judge the search: depths, accuracies and costs of ``odn.expand`` against an oracle that trains every depth.

The oracle trains each depth from scratch with a one-cycle schedule. A target lies midway between two neighbouring
depths of its mean validation curve, where these differ by more than two standard errors; the oracle's depth for that
target is the deeper of the two. Flat stretches have no right answer: they give no cell and are counted.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any, TypeVar

import numpy as np
import torch

import odn
from benchmarks.common import Cells, Row, cifar_folder, parse, write_page
from odn.data import Data, load_data
from odn.defaults import DATASETS
from odn.engine import evaluate
from odn.expansion import expand_epochs
from odn.extraction import finetune_epochs
from odn.measure import macs_by_depth, train_macs
from odn.network import build_network
from odn.records import EpochRecord

Result = TypeVar("Result")
SPLIT_SEED = 0  # subset and split stay the same: the depth that is right is the one for these data
GROWTH = ("cifar_resnet20", "cifar_resnet32", "cifar_resnet56", "cifar_resnet110")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        grid: pairs of dataset and backbone.
        seeds: of weights, order and augmentation.
        epochs: of the oracle at every depth, and of the reference at full depth.
        train_limit: training images; 0 means all.
        most_targets: cells of one pair at most, evenly spread over its steep stretches; 0 takes all.
        growth: backbones over which the growth of the cost is fitted.
        growth_target: their common target on Fashion-MNIST.
    """

    grid: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 30
    train_limit: int = 4_000
    most_targets: int = 0
    growth: tuple[str, ...] = GROWTH
    growth_target: float = 0.8


DATA = ("fashion-mnist", "cifar10_jpeg", "mnist")
# On two cores every depth of cifar_resnet56 would take 10,000 images half a day per seed.
CPU = Plan(grid=tuple((name, backbone) for backbone in ("resnet18", "cifar_resnet20") for name in DATA))
CUDA = Plan(
    grid=tuple((name, backbone) for backbone in ("resnet18", "cifar_resnet56") for name in DATA),
    train_limit=0,
    growth_target=0.92,
)
QUICK = Plan(
    grid=(("fashion-mnist", "resnet18"),),
    seeds=(0, 1),
    epochs=4,
    train_limit=2_000,
    most_targets=1,
    growth=GROWTH[:2],
    growth_target=0.5,
)


@cache
def data_of(name: str, train_limit: int, data_dir: Path) -> Data:
    """Load a stratified subset, always the same.

    Args:
        name: of the dataset.
        train_limit: training images.
        data_dir: where the datasets lie.

    Returns:
        Its splits.
    """
    config = odn.DataConfig(train_limit=train_limit)
    if name == "cifar10_jpeg":
        augment = DATASETS["cifar10"].augment
        return load_data(str(cifar_folder(data_dir)), seed=SPLIT_SEED, config=config, augment=augment)
    augment = DATASETS[name].augment
    return load_data(name, data_dir=str(data_dir), seed=SPLIT_SEED, config=config, augment=augment)


@cache
def macs_of(backbone: str, input_shape: tuple[int, int, int], classes: int) -> list[int]:
    """Count the multiply-accumulates of every depth.

    Args:
        backbone: its name.
        input_shape: of the images.
        classes: number of logits.

    Returns:
        MACs by depth, from depth 1.
    """
    return macs_by_depth(build_network(backbone, input_shape, classes, device="meta").prefixes(), input_shape)


def row_of(network: torch.nn.Module, data: Data, backbone: str, valid: float, records: Sequence[EpochRecord]) -> Row:
    """Describe a trained network.

    Args:
        network: as it would be deployed.
        data: with the test split.
        backbone: its name.
        valid: validation accuracy.
        records: of everything that was trained to get there.

    Returns:
        Accuracies and costs.
    """
    macs = macs_of(backbone, data.spec.input_shape, len(data.spec.classes))
    return {
        "valid": valid,
        "test": evaluate(network, data.test).value,
        "train_macs": train_macs(records, macs),
        "seconds": round(sum(record.seconds for record in records), 1),
        "threads": torch.get_num_threads(),
    }


def finished(epochs: Generator[EpochRecord, None, Result]) -> tuple[list[EpochRecord], Result]:
    """Run a training generator to its end.

    Args:
        epochs: yields records and returns a result.

    Returns:
        Both.
    """
    records = []
    while True:
        try:
            records.append(next(epochs))
        except StopIteration as stop:
            return records, stop.value


def scratch(data: Data, backbone: str, depth: int, seed: int, epochs: int) -> Row:
    """Train one depth from scratch with a one-cycle schedule.

    Args:
        data: train and validation split.
        backbone: its name.
        depth: blocks.
        seed: of weights, order and augmentation.
        epochs: length of the cycle.

    Returns:
        The figures of one row of the oracle.
    """
    network = odn.extract(odn.partition(backbone, data.spec, seed=seed), depth)
    config = odn.FinetuneConfig(epochs=epochs)
    records, result = finished(finetune_epochs(network, data.train, data.valid, config=config, seed=seed))
    return row_of(network, data, backbone, result.valid_score, records)


def search(data: Data, backbone: str, target: float, seed: int) -> Row:
    """Do what ``odn run`` does: expand, extract, fine-tune, with the defaults.

    Args:
        data: train and validation split.
        backbone: its name.
        target: validation accuracy.
        seed: of weights, order and augmentation.

    Returns:
        The figures of one row of the product.
    """
    network = odn.partition(backbone, data.spec, seed=seed)
    config = odn.ExpandConfig(target_accuracy=target)
    grown, chosen = finished(expand_epochs(network, data.train, data.valid, config=config, seed=seed))
    small = odn.extract(network, chosen.depth)
    tuned, result = finished(finetune_epochs(small, data.train, data.valid, seed=seed))
    path = [(key, len(list(group))) for key, group in groupby(grown, key=lambda r: (r.phase, r.depth))]
    return {
        "depth": chosen.depth,
        "reached": chosen.reached,
        "path": " ".join(f"{phase[0]}{depth}:{epochs}" for (phase, depth), epochs in path) + f" f:{len(tuned)}",
        **row_of(small, data, backbone, result.valid_score, [*grown, *tuned]),
    }


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """What training every depth from scratch says of one dataset and backbone.

    Attributes:
        valid: mean validation accuracy by depth.
        test: mean test accuracy by depth.
        train_macs: mean cost of training each depth.
        seconds: mean time of training each depth.
        targets: pairs of target and the depth that is right for it.
        flat: neighbouring depths between which no target can be placed.
    """

    valid: tuple[float, ...]
    test: tuple[float, ...]
    train_macs: tuple[float, ...]
    seconds: tuple[float, ...]
    targets: tuple[tuple[float, int], ...]
    flat: int


def oracle_of(rows: Sequence[Row], most_targets: int = 0) -> Oracle:
    """Read the oracle from its rows.

    Args:
        rows: every depth of one dataset and backbone, with every seed.
        most_targets: targets to keep, evenly spread; 0 keeps all.

    Returns:
        Curves and targets.
    """
    depths = sorted({row["depth"] for row in rows})
    by_depth = [[row for row in rows if row["depth"] == depth] for depth in depths]
    valid = [fmean(row["valid"] for row in group) for group in by_depth]
    # The variance over seeds is pooled over the depths: that of two or three values alone is worth little.
    pooled = fmean(variance([row["valid"] for row in group]) for group in by_depth)
    error = math.sqrt(2 * pooled / len(by_depth[0]))
    targets = []
    for shallow, deep in pairwise(range(len(depths))):
        target = (valid[shallow] + valid[deep]) / 2
        # A depth that an earlier one has already overtaken is never the right one.
        if valid[deep] - valid[shallow] > 2 * error and target > max(valid[: shallow + 1]):
            targets.append((round(target, 4), depths[deep]))
    flat = len(depths) - 1 - len(targets)
    if 0 < most_targets < len(targets):
        targets = [targets[round(i)] for i in np.linspace(0, len(targets) - 1, most_targets)]
    return Oracle(
        valid=tuple(valid),
        test=tuple(fmean(row["test"] for row in group) for group in by_depth),
        train_macs=tuple(fmean(row["train_macs"] for row in group) for group in by_depth),
        seconds=tuple(fmean(row["seconds"] for row in group) for group in by_depth),
        targets=tuple(targets),
        flat=flat,
    )


def judged(row: Row, oracle: Oracle, right_depth: int) -> Row:
    """Compare a search with the oracle.

    Args:
        row: of the product.
        oracle: of the same dataset and backbone.
        right_depth: the oracle's depth for that target.

    Returns:
        The row with its ratios.
    """
    scratch_test = oracle.test[row["depth"] - 1]
    return {
        **row,
        "oracle_depth": right_depth,
        "max_depth": len(oracle.valid),
        "test_minus_scratch": row["test"] - scratch_test,
        "cost_vs_full": row["train_macs"] / oracle.train_macs[-1],
        "cost_vs_oracle": row["train_macs"] / sum(oracle.train_macs),
        "seconds_vs_full": row["seconds"] / oracle.seconds[-1],
        "seconds_vs_oracle": row["seconds"] / sum(oracle.seconds),
    }


def summarise(rows: Sequence[Row]) -> Row:
    """Compute the figures of the contract.

    Args:
        rows: of all cells.

    Returns:
        Figure by name; None where no cell was measured.
    """
    found = [row for row in rows if row["kind"] == "search"]
    early = [row for row in found if 2 * row["oracle_depth"] <= row["max_depth"]]
    groups = defaultdict(list)
    for row in found:
        groups[row["data"], row["backbone"], row["target"]].append(row["depth"])
    growth = [row for row in rows if row["kind"] == "growth"]

    def over(chosen: Sequence[Row], value: Callable[[Row], float], combine: Callable[[list[float]], float]) -> Any:
        return combine([value(row) for row in chosen]) if chosen else None

    spreads = [stdev(depths) for depths in groups.values() if len(depths) > 1]
    blocks = sorted({row["max_depth"] for row in growth})
    exponent = None
    if len(blocks) > 1:
        x, y = (np.log([row[name] for row in growth]) for name in ("max_depth", "train_macs"))
        exponent = float(np.polyfit(x, y, 1)[0])
    return {
        "within_one_block_share": over(found, lambda row: abs(row["depth"] - row["oracle_depth"]) <= 1, fmean),
        "exact_share": over(found, lambda row: row["depth"] == row["oracle_depth"], fmean),
        "cost_vs_full_first_half_max": over(early, lambda row: row["cost_vs_full"], max),
        "cost_vs_full_max": over(found, lambda row: row["cost_vs_full"], max),
        "cost_vs_oracle_mean": over(found, lambda row: row["cost_vs_oracle"], fmean),
        "cost_vs_oracle_max": over(found, lambda row: row["cost_vs_oracle"], max),
        "accuracy_minus_scratch_mean": over(found, lambda row: row["test_minus_scratch"], fmean),
        "depth_std_max": max(spreads, default=None),
        "cost_growth_exponent": exponent,
        "cells": len(found),
        "flat_stretches": sum(row["flat_stretches"] for row in rows if row["kind"] == "oracle"),
    }


BARS = {
    "within_one_block_share": ">= 0.9",
    "exact_share": "stretch >= 0.8",
    "cost_vs_full_first_half_max": "<= 1.0",
    "cost_vs_full_max": "<= 1.5",
    "cost_vs_oracle_mean": "<= 0.25",
    "cost_vs_oracle_max": "<= 0.5",
    "accuracy_minus_scratch_mean": ">= -0.001",
    "depth_std_max": "<= 1",
    "cost_growth_exponent": "<= 1.0",
}


COLUMNS = (
    "kind", "data", "backbone", "target", "seed", "oracle_depth", "depth", "max_depth", "reached", "valid", "test",
    "test_minus_scratch", "cost_vs_full", "cost_vs_oracle", "seconds_vs_full", "seconds_vs_oracle", "path", "commit",
)  # fmt: skip


def main() -> None:
    """Measure every cell, then print and write the page."""
    options = parse("depth_choice", __doc__ or "")
    plan = QUICK if options.quick else CUDA if torch.cuda.is_available() else CPU
    cells = Cells(options.out, summarise)
    for name, backbone in plan.grid:
        measure(cells, plan, name, backbone, options.data_dir)
    data = data_of("fashion-mnist", plan.train_limit, options.data_dir)
    for backbone in plan.growth:
        key = {"kind": "growth", "data": "fashion-mnist", "backbone": backbone, "target": plan.growth_target}
        for seed in plan.seeds:
            cells.run({**key, "seed": seed}, partial(search, data, backbone, plan.growth_target, seed))
    cells.save()
    publish(cells, plan)


def measure(cells: Cells, plan: Plan, name: str, backbone: str, data_dir: Path) -> None:
    """Measure the oracle of one dataset and backbone, then the search for each of its targets.

    Args:
        cells: keeps what is finished.
        plan: seeds and sizes.
        name: of the dataset.
        backbone: its name.
        data_dir: where the datasets lie.
    """
    data = data_of(name, plan.train_limit, data_dir)
    pair = {"data": name, "backbone": backbone}
    depths = range(1, len(macs_of(backbone, data.spec.input_shape, len(data.spec.classes))) + 1)
    for seed in plan.seeds:
        for depth in depths:
            key = {"kind": "scratch", **pair, "depth": depth, "seed": seed}
            cells.run(key, partial(scratch, data, backbone, depth, seed, plan.epochs))
    found = [row for row in cells.rows if {"kind": "scratch", **pair}.items() <= row.items()]
    oracle = oracle_of(found, plan.most_targets)
    cells.run({"kind": "oracle", **pair}, lambda: {"targets": len(oracle.targets), "flat_stretches": oracle.flat})
    for target, right_depth in oracle.targets:
        for seed in plan.seeds:
            key = {"kind": "search", **pair, "target": target, "seed": seed}
            cells.run(
                key,
                lambda target=target, right_depth=right_depth, seed=seed: judged(
                    search(data, backbone, target, seed), oracle, right_depth
                ),
            )


def publish(cells: Cells, plan: Plan) -> None:
    """Print the page and write it beside the JSON file.

    Args:
        cells: those that are finished.
        plan: what was measured.
    """
    summary = summarise(cells.rows)
    bars = [{"figure": name, "bar": BARS.get(name, "told"), "measured": value} for name, value in summary.items()]
    text = (
        f"{f'Subsets of {plan.train_limit:,}' if plan.train_limit else 'All'} training images, the same ones and the "
        "same split for every seed; seeds "
        "differ in initial weights, order and augmentation. `full` is a one-cycle training of the full depth, `oracle` "
        f"one of every depth, each {plan.epochs} epochs. Costs are training MACs as the report counts them, expansion "
        "and fine-tuning together; seconds were taken beside other work, each process with one thread, so they compare "
        "with each other only. `path` lists the epochs of each step: e expand, c cool-down, l look back, f fine-tune."
    )
    rows = [row for row in cells.rows if row["kind"] != "scratch"]
    write_page(cells.path, "Depth choice: the search against an oracle", text, bars, rows, COLUMNS)


if __name__ == "__main__":
    main()
