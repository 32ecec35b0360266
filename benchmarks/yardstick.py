"""The yardstick of ``benchmarks.depth_choice``: an oracle read from its rows, and searches held against it. Pure.

A row of kind ``scratch`` is one depth trained from scratch, one of kind ``search`` what the product found for a target,
one of kind ``auto`` what it found without one. Targets and ratios are computed here from those raw rows alone, so that
they change together when seeds or depths are added.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev, variance
from typing import Any

import numpy as np

from benchmarks.common import Row
from odn.config import TrainConfig

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """What training every depth from scratch says of one dataset and backbone.

    Attributes:
        depths: that were trained, ascending.
        valid: mean validation accuracy by depth.
        error: standard error of the difference of each depth to the one before; None for the first.
        test: mean test accuracy by depth.
        train_macs: mean cost of training each depth.
        learning_macs: of it, without the evaluations after every epoch.
        seconds: mean processor time of training each depth.
        machines: that trained them.
        targets: pairs of target and the depth that is right for it.
        flat: neighbouring depths that differ by less than two standard errors: no target can be placed there.
        overtaken: neighbouring depths that differ by more, but where an earlier depth is better already.
    """

    depths: tuple[int, ...]
    valid: tuple[float, ...]
    error: tuple[float | None, ...]
    test: tuple[float, ...]
    train_macs: tuple[float, ...]
    learning_macs: tuple[float, ...]
    seconds: tuple[float, ...]
    machines: frozenset[str]
    targets: tuple[tuple[float, int], ...]
    flat: int
    overtaken: int


def oracle_of(rows: Sequence[Row], most_targets: int = 0) -> Oracle:
    """Read the oracle from its rows.

    Args:
        rows: every planned depth of one dataset and backbone, with two seeds or more.
        most_targets: targets to keep, evenly spread; 0 keeps all.

    Returns:
        Curves and targets.
    """
    depths = sorted({row["depth"] for row in rows})
    groups = [[row for row in rows if row["depth"] == depth] for depth in depths]
    valid = [fmean(row["valid"] for row in group) for group in groups]
    # That of two or three seeds is worth little alone, and it shrinks with depth: the neighbours' count as well.
    own = [variance([row["valid"] for row in group]) for group in groups]
    errors: list[float | None] = [None]
    targets, flat, overtaken = [], 0, 0
    for shallow, deep in pairwise(range(len(depths))):
        pooled = fmean(own[max(shallow - 1, 0) : deep + 2])
        error = math.sqrt(pooled / len(groups[shallow]) + pooled / len(groups[deep]))
        errors.append(error)
        target = (valid[shallow] + valid[deep]) / 2
        if abs(valid[deep] - valid[shallow]) <= 2 * error:
            flat += 1
        elif target <= max(valid[: shallow + 1]):
            overtaken += 1
        else:
            targets.append((round(target, 4), depths[deep]))
    if 0 < most_targets < len(targets):
        targets = [targets[round(i)] for i in np.linspace(0, len(targets) - 1, most_targets)]

    def means(name: str) -> tuple[float, ...]:
        return tuple(fmean(row[name] for row in group) for group in groups)

    return Oracle(
        depths=tuple(depths),
        valid=tuple(valid),
        error=tuple(errors),
        test=means("test"),
        train_macs=means("train_macs"),
        learning_macs=means("learning_macs"),
        seconds=means("seconds"),
        machines=frozenset(row["machine"] for row in rows),
        targets=tuple(targets),
        flat=flat,
        overtaken=overtaken,
    )


def oracles_of(
    rows: Sequence[Row], plan: Sequence[tuple[Pair, Sequence[int]]], seeds: Sequence[int], most_targets: int
) -> dict[Pair, Oracle]:
    """Read the oracle of every pair whose rows are complete.

    Args:
        rows: of all cells.
        plan: pairs of dataset and backbone, each with its depths.
        seeds: of every depth.
        most_targets: targets to keep of each.

    Returns:
        Oracle by pair.
    """
    found = {}
    for pair, depths in plan:
        own = {
            (row["depth"], row["seed"]): row
            for row in rows
            if row["kind"] == "scratch" and (row["data"], row["backbone"]) == pair
        }
        cells = [(depth, seed) for depth in depths for seed in seeds]
        if all(cell in own for cell in cells):
            found[pair] = oracle_of([own[cell] for cell in cells], most_targets)
    return found


def judged(row: Row, oracle: Oracle) -> Row | None:
    """Compare a search with the oracle.

    Args:
        row: of the product.
        oracle: of the same dataset and backbone.

    Returns:
        The row with its ratios, those of seconds where one machine measured all of it; None where it is for a target
        that the oracle does not have (any more).
    """
    if row["kind"] == "search":
        right = dict(oracle.targets).get(row["target"])
    else:
        enough = max(oracle.valid) - row["within"]
        right = next(depth for depth, valid in zip(oracle.depths, oracle.valid, strict=True) if valid >= enough)
    if right is None:
        return None
    same = oracle.machines == {row["machine"]}  # seconds of two machines say nothing of each other
    full, learning = oracle.train_macs[-1], oracle.learning_macs[-1]
    evaluating = full / learning - 1
    seldom = learning * (1 + evaluating / max(math.ceil(evaluating / TrainConfig().evaluation_share), 1))
    return {
        **row,
        "oracle_depth": right,
        "max_depth": oracle.depths[-1],
        "blocks_off": _steps(oracle, right, row["depth"]),
        "test_minus_scratch": row["test"] - oracle.test[oracle.depths.index(row["depth"])],
        "test_minus_right": row["test"] - oracle.test[oracle.depths.index(right)],
        "cost_vs_full": row["train_macs"] / full,
        "cost_vs_full_seldom": row["train_macs"] / seldom,
        "cost_vs_full_learning": row["train_macs"] / learning,
        "cost_vs_oracle": row["train_macs"] / sum(oracle.train_macs),
        "seconds_vs_full": row["seconds"] / oracle.seconds[-1] if same else None,
        "seconds_vs_oracle": row["seconds"] / sum(oracle.seconds) if same else None,
    }


def _steps(oracle: Oracle, right: int, depth: int) -> int:
    """Count planned depths from the right one to the chosen one; negative is shallower."""
    return oracle.depths.index(depth) - oracle.depths.index(right)


def growth_exponent(rows: Sequence[Row], backbones: Sequence[str]) -> float | None:
    """Fit how the cost of one target grows with the number of blocks: cost = a * blocks ** exponent.

    Args:
        rows: of searches for one target on one dataset, with ``blocks`` and ``train_macs``.
        backbones: that the fit is made over.

    Returns:
        The exponent, over searches that reached the target; None unless there are such of two backbones.
    """
    used = [row for row in rows if row["backbone"] in backbones and row["reached"]]
    if len({row["blocks"] for row in used}) < 2:
        return None
    blocks, cost = (np.log([row[name] for row in used]) for name in ("blocks", "train_macs"))
    return float(np.polyfit(blocks, cost, 1)[0])


def figures_of(searches: Sequence[Row], autos: Sequence[Row], oracles: Sequence[Oracle]) -> Row:
    """Compute the figures of the contract, all but growth.

    Args:
        searches: judged rows with a target.
        autos: judged rows without one.
        oracles: of all pairs.

    Returns:
        Figure by name; None where no cell was measured.
    """
    early = [row for row in searches if 2 * row["oracle_depth"] <= row["max_depth"]]

    def spread(rows: Sequence[Row]) -> float | None:
        groups = defaultdict(list)
        for row in rows:
            groups[row["data"], row["backbone"], row["target"]].append(row["depth"])
        return max((stdev(depths) for depths in groups.values() if len(depths) > 1), default=None)

    def over(rows: Sequence[Row], value: Callable[[Row], float], combine: Callable[[list[float]], float]) -> Any:
        return combine([value(row) for row in rows]) if rows else None

    return {
        # A search that missed its target found no depth, whichever it hands back.
        "within_one_block_share": over(searches, lambda row: row["reached"] and abs(row["blocks_off"]) <= 1, fmean),
        "exact_share": over(searches, lambda row: row["reached"] and not row["blocks_off"], fmean),
        "reached_share": over(searches, lambda row: row["reached"], fmean),
        "shallower_share": over(searches, lambda row: row["reached"] and row["blocks_off"] < -1, fmean),
        "blocks_off_mean": over(searches, lambda row: row["blocks_off"], fmean),
        "cost_vs_full_first_half_max": over(early, lambda row: row["cost_vs_full"], max),
        "cost_vs_full_max": over(searches, lambda row: row["cost_vs_full"], max),
        "cost_vs_full_seldom_first_half_max": over(early, lambda row: row["cost_vs_full_seldom"], max),
        "cost_vs_full_seldom_max": over(searches, lambda row: row["cost_vs_full_seldom"], max),
        "cost_vs_full_learning_max": over(searches, lambda row: row["cost_vs_full_learning"], max),
        "cost_vs_oracle_mean": over(searches, lambda row: row["cost_vs_oracle"], fmean),
        "cost_vs_oracle_max": over(searches, lambda row: row["cost_vs_oracle"], max),
        "accuracy_minus_scratch_mean": over(searches, lambda row: row["test_minus_scratch"], fmean),
        "depth_std_max": spread(searches),
        "auto_within_one_block_share": over(autos, lambda row: abs(row["blocks_off"]) <= 1, fmean),
        "auto_depth_std_max": spread(autos),
        "auto_accuracy_minus_scratch_mean": over(autos, lambda row: row["test_minus_scratch"], fmean),
        "auto_accuracy_minus_right_mean": over(autos, lambda row: row["test_minus_right"], fmean),
        "auto_cost_vs_full_max": over(autos, lambda row: row["cost_vs_full"], max),
        "auto_cost_vs_oracle_mean": over(autos, lambda row: row["cost_vs_oracle"], fmean),
        "auto_cells": len(autos),
        "cells": len(searches),
        "flat_stretches": sum(oracle.flat for oracle in oracles),
        "overtaken_stretches": sum(oracle.overtaken for oracle in oracles),
    }
