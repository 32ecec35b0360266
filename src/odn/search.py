"""What to train next, and what came of it: pure functions of the records, so that resuming needs no other state.

Depths are doubled until one holds the target, then the search bisects back. No torch here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from odn.config import ExpandConfig
from odn.errors import UsageError
from odn.records import EpochRecord, Phase, StopReason
from odn.starting import Start
from odn.stopping import almost_reached, knee, passed_over, settle_target


@dataclass(frozen=True, kw_only=True)
class ExpandResult:
    """What expansion found.

    Attributes:
        depth: the depth kept: the shallowest one tried that holds the target, or, where none does, the one with the
            best validation score.
        reached: whether the target was reached and confirmed.
        target_accuracy: the target, or with an automatic one what it came to be.
        valid_score: of the averaged weights kept for that depth, in the metric of the data.
        records: every epoch, oldest first.
        start: what a pretrained network brought along, with its probes; None where it started at random.
    """

    depth: int
    reached: bool
    target_accuracy: float
    valid_score: float
    records: tuple[EpochRecord, ...]
    start: Start | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """What to train next.

    Attributes:
        phase: of training.
        depth: of the prefix.
        source: for looking back, the network from whose kept weights it starts: a deeper one, or with an automatic
            target first of all its own.
    """

    phase: Phase
    depth: int
    source: int | None = None


def plan_depths(config: ExpandConfig, max_depth: int) -> list[int]:
    """List the depths that may be chosen.

    Args:
        config: may name them.
        max_depth: of the backbone.

    Returns:
        Ascending depths.

    Raises:
        UsageError: when the backbone has no such depth.
    """
    if config.depths and config.depths[-1] > max_depth:
        raise UsageError(f"depth {config.depths[-1]} is in the plan; allowed: 1 to {max_depth} for this backbone")
    return list(config.depths) or list(range(1, max_depth + 1))


def next_step(
    records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig, first: int = 0
) -> Step | None:
    """Say what to train next.

    Growing doubles the number of planned depths passed: 1, 2, 4, 8 and so on, the deepest last. As soon as one holds
    the target, the search bisects between it and the deepest one that did not. Where growing began at a deeper one
    (``first``), the deepest of those passed over speaks for them all: only when it holds the target, they are bisected.

    Args:
        records: of the expansion, oldest first.
        depths: the plan, ascending.
        config: targets, and when to anneal or look back.
        first: the depth at which growing begins; 0 is the shallowest.

    Returns:
        The step, or None when expansion is over.
    """
    if not records:
        return Step(phase="expand", depth=first or depths[0])
    last = records[-1]
    if last.stop is None:
        return Step(phase=last.phase, depth=last.depth)
    settled = settle_target(records, depths, config)
    holding = _holding(records, depths, config)
    if holding and not settled.target_accuracy:  # anneal the depth at the knee as those will be that it is held against
        return Step(phase="lookback", depth=min(holding), source=min(holding))
    config = settled
    at_depth = [record for record in records if record.depth == last.depth]
    if not holding and last.phase == "expand" and almost_reached(at_depth, config):
        return Step(phase="cooldown", depth=last.depth)
    if not holding:
        grown = depths.index(max(record.depth for record in records)) + 1
        return Step(phase="expand", depth=depths[min(2 * grown, len(depths)) - 1]) if grown < len(depths) else None
    deep = min(holding)
    between = passed_over(records, depths, deep)
    if not between or not config.lookback_epochs:
        return None
    skipped = between[-1] < first <= deep
    return Step(phase="lookback", depth=between[-1 if skipped else (len(between) - 1) // 2], source=deep)


def _holding(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> set[int]:
    """Depths that hold the target, each confirmed; of an automatic target the depth that it was derived from does."""
    reached = {record.depth for record in records if record.stop == StopReason.TARGET_REACHED}
    derived = None if config.target_accuracy else knee(records, depths[-1], config)
    return reached | ({derived} if derived is not None else set())


def expand_result(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> ExpandResult:
    """Read the outcome of an expansion from its records.

    Args:
        records: of the expansion, oldest first, one or more.
        depths: the plan, ascending.
        config: the target.

    Returns:
        The chosen depth and how it was found.
    """
    settled = settle_target(records, depths, config)
    holding = _holding(records, depths, config)
    candidates = [record for record in records if record.depth == min(holding)] if holding else records
    # max() keeps the first of equals: the shallowest depth.
    best = max(candidates, key=lambda record: record.valid_score)
    return ExpandResult(
        depth=best.depth,
        reached=bool(holding),
        target_accuracy=settled.target_accuracy,
        valid_score=best.valid_score,
        records=tuple(records),
    )
