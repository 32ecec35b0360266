"""One training for all depths against a training per depth, and against expansion; choosing; predicting latencies.

Every depth alone gets the schedule, the data and the seed of the training that serves all of them. Expansion looks for
the target that the full depth alone meets with ``MARGIN`` to spare, by its own defaults, fine-tuning included.
"""

import dataclasses
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import odn
from benchmarks.common import ROOT, Cells, Row, cifar_folder, parse, write_page
from odn.curve import curve_of
from odn.data import Data
from odn.defaults import DATASETS, complete
from odn.evaluation import evaluate, evaluate_depths
from odn.measure import macs_by_depth, macs_together, train_macs
from odn.network import build_network
from odn.oneshot import KEPT
from odn.profiling import measure_device
from odn.recipe import RunConfig
from odn.records import read_history
from odn.run import run as run_whole
from odn.rundata import load_run_data
from odn.storage import load_partitioned
from odn.tables import to_table
from odn.training import train_run


class Training(NamedTuple):
    """A dataset and a backbone.

    Attributes:
        dataset: its name.
        backbone: its name.
        depths: that are trained alone, the full one last.
        train_limit: training images.
    """

    dataset: str
    backbone: str
    depths: tuple[int, ...]
    train_limit: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        grid: the trainings.
        seeds: of data, weights, order and augmentation.
        epochs: of every training.
        seconds: spent on timing each part of a backbone.
    """

    grid: tuple[Training, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 12
    seconds: float = 0.3


MARGIN = 0.01
OF_8, OF_27 = (1, 2, 4, 6, 8), (1, 9, 18, 27)
NAMES = ("fashion-mnist", "mnist", "cifar10_jpeg")
FULL = Plan(
    grid=(
        *(Training(name, "resnet18", OF_8, 4_000) for name in NAMES),
        *(Training(name, "cifar_resnet56", OF_27, 2_000) for name in NAMES),
    )
)
QUICK = Plan(grid=(Training("fashion-mnist", "resnet18", (1, 8), 1_000),), seeds=(0,), epochs=2, seconds=0.02)
BARS = {
    "accuracy_minus_alone_mean": ">= -0.002",
    "cost_vs_each_alone": "<= 0.35",
    "cost_vs_full_alone": "<= 1.3",
    "seconds_vs_full_alone": "published",
    "specialise_seconds": "<= 60",
    "latency_mape": "<= 0.10",
    "latency_spearman": ">= 0.95",
}
COLUMNS = (
    "kind",
    "dataset",
    "backbone",
    "seed",
    "depth",
    "valid",
    "test",
    "target",
    "oneshot_depth",
    "oneshot_test",
    "cost_ratio",
    "cost_to_full",
    "cost_to_oneshot",
    "seconds",
    "mape",
    "spearman",
    "commit",
)


def settings(training: Training, seed: int, epochs: int, data_dir: Path) -> RunConfig:
    """Write down a run of all depths.

    Args:
        training: dataset and backbone.
        seed: of everything.
        epochs: of the training.
        data_dir: where the datasets lie.

    Returns:
        Every setting.
    """
    jpeg = training.dataset == "cifar10_jpeg"
    augment = DATASETS["cifar10" if jpeg else training.dataset].augment
    return complete(
        {
            "dataset": str(cifar_folder(data_dir)) if jpeg else training.dataset,
            "data_dir": str(data_dir),
            "backbone": training.backbone,
            "mode": "one-shot",
            "seed": seed,
            "data": {"train_limit": training.train_limit},
            "augment": to_table(augment),
            "oneshot": {"epochs": epochs},
            "expand": {"target_accuracy": 0.0},
        }
    )


def alone(depth: int, config: RunConfig, data: Data, epochs: int) -> Row:
    """Train one depth from scratch.

    Args:
        depth: number of blocks.
        config: of the run that it is compared with.
        data: its splits.
        epochs: of the training.

    Returns:
        Accuracies and seconds.
    """
    begin = time.perf_counter()
    small = odn.extract(odn.partition(config.backbone, data.spec, seed=config.seed), depth)
    result = odn.finetune(
        small,
        data.train,
        data.valid,
        config=odn.FinetuneConfig(epochs=epochs, rate=1.0),
        training=config.train,
        seed=config.seed,
    )
    seconds = round(time.perf_counter() - begin, 1)
    return {"depth": depth, "valid": result.valid_score, "test": evaluate(small, data.test).value, "seconds": seconds}


def together(config: RunConfig, data: Data, run: Path) -> Row:
    """Train all depths at once.

    Args:
        config: of the run.
        data: its splits.
        run: the run directory; an interrupted training there is continued.

    Returns:
        Accuracies by depth, and the cost as a share of training every depth alone and of the full depth alone.
    """
    _, result = train_run(config, run, resume=(run / "config.toml").is_file())
    network = load_partitioned(run / "checkpoints" / KEPT)
    spec = network.spec
    assert spec is not None
    meta = build_network(spec.backbone, spec.input_shape, spec.classes, device="meta")
    macs = macs_by_depth(meta.prefixes(), spec.input_shape)
    records = read_history(run / "history.jsonl")
    cost = train_macs(records, macs, macs_together(records, meta.trunk, spec.input_shape))
    passes = sum(3 * record.train_samples + record.evaluated_samples for record in records)
    return {
        "depth": None,
        "valid": [record.valid_score for record in curve_of(result.records)],
        "test": [score.value for score in evaluate_depths(network, data.test)],
        "train_macs": cost,
        "cost_ratio": cost / (passes * sum(macs)),
        "cost_to_full": cost / (passes * macs[-1]),
        "seconds": round(sum(record.seconds for record in records), 1),
    }


def grown(config: RunConfig, joint: Row, target: float, run: Path) -> Row:
    """Look for a target by expansion, and in the curve of a training of all depths.

    Args:
        config: of that training.
        joint: what it reached.
        target: validation accuracy to hold.
        run: the run directory of expansion; an interrupted run there is continued.

    Returns:
        Depth, accuracies and cost of both.
    """
    config = dataclasses.replace(
        config, mode="expand", expand=dataclasses.replace(config.expand, target_accuracy=target)
    )
    found = run_whole(config, run, resume=(run / "config.toml").is_file()).figures
    holds = [depth for depth, valid in enumerate(joint["valid"], 1) if valid >= target]
    mine = found["networks"][1]
    return {
        "target": target,
        "depth": found["depth"],
        "valid": mine["valid_score"],
        "test": mine["test_score"],
        "train_macs": found["cost"]["train_macs"],
        "seconds": round(found["cost"]["seconds"], 1),
        "oneshot_depth": holds[0] if holds else None,
        "oneshot_test": joint["test"][holds[0] - 1] if holds else None,
        "cost_to_oneshot": found["cost"]["train_macs"] / joint["train_macs"],
    }


def chosen(config: RunConfig, run: Path) -> Row:
    """Time the choice for a new constraint, in a fresh process, without fine-tuning.

    Args:
        config: of the run.
        run: the run directory, trained.

    Returns:
        Seconds of the whole process.
    """
    out = run.with_name(run.name + "_chosen")
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    command = [sys.executable, "-m", "odn", "specialize", run, "--within", "0.02", "--out", out]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return {"depth": None, "seconds": round(time.perf_counter() - begin, 2)}


def latencies(backbone: str, data: Data, seconds: float) -> Row:
    """Measure a device table, and how far off it is at the depths that were held out.

    Args:
        backbone: its name.
        data: for the shape of its images.
        seconds: spent on each part.

    Returns:
        Mean absolute error as a fraction, and rank correlation.
    """
    network = odn.partition(backbone, data.spec)
    begin = time.perf_counter()
    table = measure_device(network, data.spec.preprocessing, runtime="onnx", seconds=seconds)
    return {"depth": None, **table.check(), "seconds": round(time.perf_counter() - begin, 1)}


def subsets(plan: Plan) -> str:
    """Say how many training images each backbone sees."""
    images = {training.backbone: training.train_limit for training in plan.grid}
    return "Stratified subsets of " + " and ".join(f"{n:,} training images for `{name}`" for name, n in images.items())


def summarise(rows: list[Row]) -> Row:
    """Compute the figures of the contract.

    Args:
        rows: of all cells.

    Returns:
        Figure by name; None where no cell was measured.
    """

    def of(kind: str) -> list[Row]:
        return [row for row in rows if row["kind"] == kind]

    def key(row: Row) -> tuple[str, str, int]:
        return row["dataset"], row["backbone"], row["seed"]

    joint = {key(row): row for row in of("together")}
    whole = {key(row): row for row in sorted(of("alone"), key=lambda row: row["depth"])}
    slower = [row["seconds"] / whole[key(row)]["seconds"] for row in joint.values() if key(row) in whole]
    gaps = [joint[key(row)]["test"][row["depth"] - 1] - row["test"] for row in of("alone") if key(row) in joint]
    correlations = [row["spearman"] for row in of("latency") if row["spearman"] is not None]
    errors = [row["mape"] for row in of("latency") if row["mape"] is not None]
    return {
        "accuracy_minus_alone_mean": fmean(gaps) if gaps else None,
        "cost_vs_each_alone": max((row["cost_ratio"] for row in joint.values()), default=None),
        "cost_vs_full_alone": max((row["cost_to_full"] for row in joint.values()), default=None),
        "seconds_vs_full_alone": fmean(slower) if slower else None,
        "specialise_seconds": max((row["seconds"] for row in of("specialise")), default=None),
        "latency_mape": max(errors, default=None),
        "latency_spearman": min(correlations, default=None),
    }


def main() -> None:
    """Measure every cell, then print and write the page."""
    options = parse("oneshot", __doc__ or "")
    plan = QUICK if options.quick else FULL
    cells = Cells(options, summarise)
    runs = ROOT / "runs" / ("oneshot_quick" if options.quick else "oneshot")
    for training in plan.grid:
        dataset, backbone, depths, _ = training
        for seed in plan.seeds:
            config = settings(training, seed, plan.epochs, options.data_dir)
            data = load_run_data(config)
            run = runs / f"{dataset}-{backbone}-{seed}"
            key: Row = {"dataset": dataset, "backbone": backbone, "seed": seed}
            joint = cells.run({"kind": "together", **key}, partial(together, config, data, run))
            cells.run({"kind": "specialise", **key}, partial(chosen, config, run))
            whole = None
            for depth in depths:
                train = partial(alone, depth, config, data, plan.epochs)
                whole = cells.run({"kind": "alone", **key, "depth": depth}, train)
            if joint and whole:
                target = round(whole["valid"] - MARGIN, 4)
                grow = partial(grown, config, joint, target, run.with_name(run.name + "_grown"))
                cells.run({"kind": "expansion", **key}, grow)
            if seed == plan.seeds[0]:
                cells.run({"kind": "latency", **key}, partial(latencies, backbone, data, plan.seconds))
    cells.save()
    bars: list[Row] = [
        {"figure": name, "bar": BARS[name], "measured": value} for name, value in summarise(cells.rows).items()
    ]
    shown = [
        {**row, **{name: None for name in ("valid", "test") if isinstance(row.get(name), list)}} for row in cells.rows
    ]
    text = (
        f"{subsets(plan)}, {plan.epochs} epochs for every training. "
        "`together` is one training of all depths, whose accuracies by depth are in the JSON file; its `cost_ratio` is "
        "its multiply-accumulates over those of training every depth alone, its `cost_to_full` those over training the "
        "full depth alone. `alone` is one depth from scratch with the same schedule. `expansion` is "
        f"`odn run --mode expand` with its defaults for a target of {MARGIN} below the full depth alone; beside it the "
        "shallowest depth of the training of all depths that holds the same target, without any fine-tuning; "
        "`cost_to_oneshot` is the cost of expansion over that of the training of all depths, in multiply-accumulates. "
        "`specialise` is the whole command in a fresh process. "
        "`latency` holds predictions against depths that were measured and used for nothing else, in onnxruntime with "
        "one thread."
    )
    write_page(cells.path, "One training for all depths", text, bars, shown, COLUMNS)


if __name__ == "__main__":
    main()
