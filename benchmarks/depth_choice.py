"""Judge the search: depths, accuracies and costs of ``odn.expand`` against an oracle that trains every depth.

The oracle trains each depth from scratch with a one-cycle schedule. A target lies midway between two neighbouring
depths of its mean validation curve, where these differ by more than two standard errors; the oracle's depth for that
target is the deeper of the two. Flat stretches have no right answer: they give no cell and are counted. Without a
target the right depth is the shallowest one within ``ExpandConfig.within`` of the oracle's best.
"""

import ast
import hashlib
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch

import odn
from benchmarks.common import Cells, Row, cifar_folder, parse, table, write_page
from benchmarks.yardstick import Oracle, Pair, figures_of, growth_exponent, judged, oracles_of
from odn.allocator import reuse_freed_memory
from odn.data import Data, load_data
from odn.defaults import DATASETS
from odn.evaluation import evaluate
from odn.expansion import expand_epochs
from odn.extraction import finetune_epochs
from odn.measure import macs_by_depth, macs_together, train_macs
from odn.network import build_network
from odn.outcome import finetuning_of
from odn.records import EpochRecord
from odn.stopping import confirmed

Result = TypeVar("Result")
SPLIT_SEED = 0  # subset and split stay the same: the depth that is right is the one for these data
GROWTH, GROWTH_DATA = ("cifar_resnet20", "cifar_resnet32", "cifar_resnet56", "cifar_resnet110"), "fashion-mnist"
SEARCH_CODE = (
    "config/training.py",
    "expansion.py",
    "search.py",
    "growth.py",
    "outcome.py",
    "stopping.py",
    "extraction.py",
    "supervision.py",
)
# Code, and other code of which rows are kept because its searches take the same steps. be1e865d and 396b566d differ
# where they resume what earlier code began. c807a53d settles for longer where an epoch has 64 to 79 steps: 4,000 images
# have 125, and what was searched for with 10,000, which have 78, was measured anew. dfec0f86 grew the first network
# before it was trained to its end, also where nothing was grown after it: such searches were measured anew, the others
# take the same steps in another order; and it differs where a confidence is asked for and scores are no accuracies,
# which no row has. 8761c985 is the same code as that, written otherwise. 840ffae2 differs where a target allows less
# than half an error or a score makes none, where growing alone decides, and where weights that were grown and weights
# that were trained to their end score the same and none holds: no row. edd7301f settles less than 2,000 images for
# fewer epochs, and does not count what settling brings to a network that growing had taught nothing: rows are of 4,000
# images, and growing has taught their networks something. 2f66b476, which came and went, ended a search without a
# target where two networks together gained a standard error at most; in no row did that differ from each by itself.
# 4a231211 differs where a grown network is kept although its depth was refined, which is no row. 825c4487 differs from
# it where a network scored less after training to its end than before, had learnt nothing yet or makes no mistake,
# where targets are automatic and growing alone decides, where a depth was refined without becoming better, and where
# growing goes on after a network that was trained to its end without a look: no row has one of these. 825c4487 and
# 3d4c9602 differ where targets are to be reached for certain, which none is here. 3d4c9602 refines what falls short by
# a hundredth wherever it is; be195537 did so only before the deepest network, and not where two had fallen short:
# searches that may have met that were measured anew. eccbe16d differs from be195537 without a target, and where two
# networks were trained before a look that ended in passing on; the one search that met it was measured anew.
SAME_SEARCH = {
    "7270e79f": (
        "be1e865d",
        "396b566d",
        "c807a53d",
        "dfec0f86",
        "8761c985",
        "840ffae2",
        "edd7301f",
        "2f66b476",
        "4a231211",
        "825c4487",
        "3d4c9602",
        "be195537",
        "eccbe16d",
    )
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        grid: pairs of dataset and backbone, each with the depths that may be chosen; none means all.
        seeds: of weights, order and augmentation.
        epochs: of the oracle at every depth, and of the reference at full depth.
        train_limit: training images; 0 means all.
        most_targets: cells of one pair at most, evenly spread over its steep stretches; 0 takes all.
        growth: backbones over which the growth of the cost is fitted, the shallowest first, or none; the target is the
            deepest one that the oracle of the first gives.
    """

    grid: tuple[tuple[str, str, tuple[int, ...]], ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 30
    train_limit: int = 4_000
    most_targets: int = 3
    growth: tuple[str, ...] = GROWTH

    @property
    def pairs(self) -> list[tuple[Pair, list[int]]]:
        """Dataset and backbone, with every depth that may be chosen."""
        return [((data, name), list(depths) or every_depth(name)) for data, name, depths in self.grid]


DATA = ("fashion-mnist", "cifar10_jpeg", "mnist")
OF_27 = (1, 2, 3, 4, 6, 9, 12, 18, 27)
# On two cores every depth of cifar_resnet56 would take 10,000 images half a day per seed.
CPU = Plan(
    grid=(
        ("fashion-mnist", "resnet18", ()),
        ("fashion-mnist", "cifar_resnet20", ()),
        ("cifar10_jpeg", "resnet18", ()),
        ("cifar10_jpeg", "cifar_resnet20", ()),
        ("mnist", "cifar_resnet20", ()),
        ("mnist", "resnet18", ()),
    )
)
CUDA = Plan(
    grid=(
        *((name, "resnet18", ()) for name in DATA),
        *((name, "cifar_resnet56", OF_27) for name in DATA),
        (GROWTH_DATA, GROWTH[0], ()),
    ),
    train_limit=0,
)
QUICK = Plan(
    grid=((GROWTH_DATA, GROWTH[0], (1, 5, 9)),),
    seeds=(0, 1),
    epochs=4,
    train_limit=2_000,
    most_targets=1,
    growth=GROWTH[:2],
)


@cache
def every_depth(backbone: str) -> list[int]:
    """List the depths of a backbone.

    Args:
        backbone: its name.

    Returns:
        From 1 to the full depth.
    """
    return list(range(1, build_network(backbone, (1, 28, 28), 10, device="meta").max_depth + 1))


@cache
def search_code() -> str:
    """Name the search that is measured.

    Returns:
        Eight hexadecimal digits of a hash over the code that decides, without its comments and docstrings: the cells of
        another one are measured anew, but for those that ``SAME_SEARCH`` keeps.
    """
    folder = Path(odn.__file__).parent
    return hashlib.sha256("".join(bare((folder / name).read_text()) for name in SEARCH_CODE).encode()).hexdigest()[:8]


def searches() -> tuple[str, ...]:
    """Name the searches whose rows count: the one that is measured, then those that take the same steps."""
    return search_code(), *SAME_SEARCH.get(search_code(), ())


def bare(source: str) -> str:
    """Take comments and docstrings out of code.

    Args:
        source: of a module.

    Returns:
        What is left, in the one way in which it can be laid out.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


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


def row_of(
    network: torch.nn.Module, data: Data, backbone: str, valid: float, records: Sequence[EpochRecord], seconds: float
) -> Row:
    """Describe a trained network.

    Args:
        network: as it would be deployed.
        data: with the test split.
        backbone: its name.
        valid: validation accuracy.
        records: of everything that was trained to get there.
        seconds: of the processor, for the same.

    Returns:
        Accuracies and costs.
    """
    shape, classes = data.spec.input_shape, len(data.spec.classes)
    macs = macs_of(backbone, shape, classes)
    together = macs_together(records, build_network(backbone, shape, classes, device="meta").trunk, shape)
    return {
        "valid": valid,
        "test": evaluate(network, data.test).value,
        "train_macs": train_macs(records, macs, together),
        "learning_macs": sum(3 * record.train_samples * macs[record.depth - 1] for record in records),
        "seconds": round(seconds, 1),
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
    begin = _clock()
    network = odn.extract(odn.partition(backbone, data.spec, seed=seed), depth)
    config = odn.FinetuneConfig(epochs=epochs, rate=1.0)
    plain = odn.TrainConfig(evaluation_share=math.inf)  # as plain training loops do, after every epoch
    run = finetune_epochs(network, data.train, data.valid, config=config, training=plain, seed=seed)
    records, result = finished(run)
    return row_of(network, data, backbone, result.valid_score, records, _clock() - begin)


def search(data: Data, backbone: str, depths: tuple[int, ...], target: float, seed: int) -> Row:
    """Do what ``odn run`` does: expand, extract, fine-tune, with the defaults.

    Args:
        data: train and validation split.
        backbone: its name.
        depths: that may be chosen; none means all.
        target: validation accuracy; 0 is ``--target auto``.
        seed: of weights, order and augmentation.

    Returns:
        The figures of one row of the product.
    """
    begin = _clock()
    network = odn.partition(backbone, data.spec, seed=seed)
    config = odn.ExpandConfig(target_accuracy=target, depths=depths)
    grown, chosen = finished(expand_epochs(network, data.train, data.valid, config=config, seed=seed))
    small = odn.extract(network, chosen.depth)
    finetune = finetuning_of(odn.FinetuneConfig(), grown, chosen.depth)
    confirmations = config.confirmations
    tuning = finetune_epochs(small, data.train, data.valid, config=finetune, seed=seed, confirmations=confirmations)
    tuned, result = finished(tuning)
    seconds = _clock() - begin
    steps = groupby(grown, key=lambda record: (record.phase, record.depth))
    path = [(key, sum(record.epochs for record in group)) for key, group in steps]
    tuned_epochs = sum(record.epochs for record in tuned)
    return {
        "depth": chosen.depth,
        "blocks": network.max_depth,
        # As the report has it: fine-tuning may lift what the search left short of its target.
        "reached": chosen.reached or (result.valid_score >= chosen.target_accuracy and confirmed(tuned, config)),
        "settled": chosen.target_accuracy,
        "within": config.within,
        "path": " ".join([*(f"{phase[0]}{depth}:{epochs}" for (phase, depth), epochs in path), f"f:{tuned_epochs}"]),
        **row_of(small, data, backbone, result.valid_score, [*grown, *tuned], seconds),
    }


def _clock() -> float:
    """Seconds that do not run while another process has the processor; beside a GPU those of the wall."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def of_plan(rows: Sequence[Row], plan: Plan) -> list[Row]:
    """Leave out what another plan or another search has put into the same file.

    Args:
        rows: of all cells.
        plan: what is measured.

    Returns:
        Rows with the plan's images, seeds, epochs, and the search as it is now.
    """
    now = {"seed": plan.seeds, "train_limit": (plan.train_limit,), "epochs": (plan.epochs,), "search": searches()}
    return [row for row in rows if all(row[name] in values for name, values in now.items() if name in row)]


def judge(rows: Sequence[Row], plan: Plan) -> tuple[dict[Pair, Oracle], list[Row]]:
    """Hold every search against its oracle.

    Args:
        rows: of all cells.
        plan: what is measured.

    Returns:
        Oracle by pair, and the searches that have one.
    """
    rows = of_plan(rows, plan)
    oracles = oracles_of(rows, plan.pairs, plan.seeds, plan.most_targets)
    pairs = ((row, (row["data"], row["backbone"])) for row in rows if row["kind"] != "scratch")
    found = [judged(row, oracles[pair]) for row, pair in pairs if pair in oracles]
    return oracles, [row for row in found if row is not None]


def growth_target(oracles: dict[Pair, Oracle], plan: Plan) -> float | None:
    """Choose the target that all backbones of the growth are searched for.

    Args:
        oracles: by pair.
        plan: what is measured.

    Returns:
        The deepest target of the first of these backbones; None while its oracle is not known or has none.
    """
    oracle = oracles.get((GROWTH_DATA, plan.growth[0])) if plan.growth else None
    return oracle.targets[-1][0] if oracle and oracle.targets else None


def summarise(rows: Sequence[Row], plan: Plan) -> Row:
    """Compute the figures of the contract.

    Args:
        rows: of all cells.
        plan: what is measured.

    Returns:
        Figure by name; None where no cell was measured.
    """
    oracles, found = judge(rows, plan)
    searches, autos = ([row for row in found if row["kind"] == kind] for kind in ("search", "auto"))
    target = growth_target(oracles, plan)
    grown = [row for row in of_plan(rows, plan) if row["kind"] == "search" and row["data"] == GROWTH_DATA]
    return {
        **figures_of(searches, autos, list(oracles.values())),
        "cells_planned": len(plan.seeds) * sum(len(oracle.targets) for oracle in oracles.values()),
        "cost_growth_exponent": growth_exponent([row for row in grown if row["target"] == target], plan.growth),
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
    "kind", "data", "backbone", "target", "seed", "oracle_depth", "depth", "blocks", "reached", "valid", "test",
    "test_minus_scratch", "test_minus_right", "cost_vs_full", "cost_vs_full_seldom", "cost_vs_full_learning",
    "cost_vs_oracle", "seconds_vs_full", "seconds_vs_oracle", "path", "commit",
)  # fmt: skip
CURVES = ("data", "backbone", "depth", "valid", "error", "test", "target", "train_macs", "seconds")


def main(name: str = "depth_choice", cpu: Plan = CPU) -> None:
    """Measure every cell, then print and write the page.

    Args:
        name: of the benchmark.
        cpu: what is measured where there is no GPU.
    """
    options = parse(name, __doc__ or "")
    plan = QUICK if options.quick else CUDA if torch.cuda.is_available() else cpu
    reuse_freed_memory()
    cells = Cells(options, partial(summarise, plan=plan))
    for (name, backbone), depths in plan.pairs:
        data = data_of(name, plan.train_limit, options.data_dir)
        for seed in plan.seeds:
            for depth in depths:
                key: Row = {"kind": "scratch", "data": name, "backbone": backbone, "depth": depth, "seed": seed}
                key |= {"epochs": plan.epochs, "train_limit": plan.train_limit}
                cells.run(key, partial(scratch, data, backbone, depth, seed, plan.epochs))
    oracles, _ = judge(cells.rows, plan)
    for (name, backbone), oracle in oracles.items():
        planned = next(depths for data, known, depths in plan.grid if (data, known) == (name, backbone))
        for target, _ in oracle.targets:
            seek(cells, plan, options.data_dir, (name, backbone), planned, target)
        seek(cells, plan, options.data_dir, (name, backbone), planned, 0.0)
    deepest = growth_target(oracles, plan)
    for backbone in plan.growth if deepest else ():
        seek(cells, plan, options.data_dir, (GROWTH_DATA, backbone), (), deepest)
    cells.save()
    publish(cells, plan)


def seek(cells: Cells, plan: Plan, data_dir: Path, pair: Pair, depths: tuple[int, ...], target: float | None) -> None:
    """Search for one target with every seed.

    Args:
        cells: keeps what is finished.
        plan: seeds and sizes.
        data_dir: where the datasets lie.
        pair: dataset and backbone.
        depths: that may be chosen; none means all.
        target: validation accuracy; 0 is ``--target auto``.
    """
    data = data_of(pair[0], plan.train_limit, data_dir)
    for seed in plan.seeds:
        key: Row = {"kind": "search" if target else "auto", "data": pair[0], "backbone": pair[1], "seed": seed}
        key |= {"target": target, "train_limit": plan.train_limit}
        measured = {row["search"] for row in cells.rows if key.items() <= row.items()}
        key["search"] = next((code for code in searches() if code in measured), search_code())
        cells.run(key, partial(search, data, pair[1], depths, target or 0.0, seed))


def publish(cells: Cells, plan: Plan) -> None:
    """Print the page and write it beside the JSON file.

    Args:
        cells: those that are finished.
        plan: what was measured.
    """
    summary = summarise(cells.rows, plan)
    oracles, found = judge(cells.rows, plan)
    bars = [{"figure": name, "bar": BARS.get(name, "told"), "measured": value} for name, value in summary.items()]
    curves = [
        {"data": pair[0], "backbone": pair[1], **point} for pair, oracle in oracles.items() for point in _points(oracle)
    ]
    missing = [f"{data} with `{backbone}`" for (data, backbone), _ in plan.pairs if (data, backbone) not in oracles]
    unknown = f" Planned and without an oracle yet: {', '.join(missing)}." if missing else ""
    text = (
        f"{f'Subsets of {plan.train_limit:,}' if plan.train_limit else 'All'} training images, the same ones and the "
        "same split for every seed; seeds differ in initial weights, order and augmentation. `full` is a one-cycle "
        f"training of the full depth, `oracle` one of every depth, each {plan.epochs} epochs. Costs are training MACs "
        "as the report counts them, expansion, fine-tuning and evaluation together. The trainings from scratch are "
        "evaluated after every epoch, as a plain loop would, the search as seldom as `train.evaluation_share` allows; "
        "`cost_vs_full_seldom` is the ratio to a full training evaluated as seldom, `cost_vs_full_learning` to one "
        "without any evaluation. Seconds are those of "
        "the processor, compared only where search and oracle ran on one kind of machine. `path` lists the epochs of "
        "each step: e expand, s settle, r refine, f fine-tune. `test_minus_scratch` compares test accuracy with that "
        "of the same depth from scratch, `test_minus_right` with that of the right one. "
        "`blocks_off` counts planned depths. A search that missed its target counts as wrong. The settings of the "
        "search were chosen on validation curves of both backbones on Fashion-MNIST and `resnet18` on CIFAR-10 "
        "(docs/log.md), and of one seed of MNIST: what is found there tells less about other data than "
        "`cifar_resnet20` on CIFAR-10 does, on which none was chosen. Rows of kind auto have no target, and the "
        "shallowest depth within 0.002 of the oracle's best is right; seeds that are missing were not searched for. A "
        "target whose searches are not here, `cells` being less than `cells_planned`, has not been searched for "
        "yet: the figures say nothing of it. Rows of earlier commits are kept where the search of today takes the same "
        f"steps; a comment on `SAME_SEARCH` says why.{unknown}\n\n"
        "The oracle: means over seeds; `error` is the standard error of the difference to the depth before, `target` "
        "what is asked of the search for which this depth is right.\n\n" + table(curves, CURVES)
    )
    judged_keys = [{name: row[name] for name in ("kind", "data", "backbone", "target", "seed")} for row in found]
    others = [
        row
        for row in of_plan(cells.rows, plan)
        if row["kind"] != "scratch" and not any(key.items() <= row.items() for key in judged_keys)
    ]
    write_page(cells.path, "Depth choice: the search against an oracle", text, bars, [*found, *others], COLUMNS)


def _points(oracle: Oracle) -> list[dict[str, Any]]:
    target: Callable[[int], float | None] = {depth: value for value, depth in oracle.targets}.get
    names = ("depth", "valid", "error", "test", "train_macs", "seconds")
    columns = (oracle.depths, oracle.valid, oracle.error, oracle.test, oracle.train_macs, oracle.seconds)
    points = [dict(zip(names, point, strict=True)) for point in zip(*columns, strict=True)]
    return [{**point, "target": target(point["depth"])} for point in points]


if __name__ == "__main__":
    main()
