"""What to train next, and what came of it: pure functions of the records, so that resuming needs no other state.

Networks double until one is deep enough. Every depth of the network in training has a head, so that one annealing says
how all of them do beside each other; the shallowest that should hold the target is then trained on its own. No torch
here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from odn.config import ExpandConfig
from odn.errors import UsageError
from odn.records import EpochRecord, Phase, StopReason
from odn.starting import Start
from odn.stopping import growth_is_over, met_depths, near, settle_target, trunk_of

MOST_SETTLED = 3  # depths of one network that are trained on their own
_SHALLOWER = 1.07  # times what one depth made of its errors, a shallower one should make of its own


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
        depth: blocks in training.
        source: for a depth that is trained on its own, how deep the network was whose kept weights it starts from.
        longer: whether it takes longer than others do, because missing the target would be dear.
    """

    phase: Phase
    depth: int
    source: int | None = None
    longer: bool = False


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


def next_trunk(depths: Sequence[int], depth: int) -> int | None:
    """Say how deep the next network is: twice as many planned depths, or all where that is most of them.

    Args:
        depths: the plan, ascending.
        depth: of the network before, one of the plan.

    Returns:
        A depth of the plan; None after the deepest.
    """
    passed = depths.index(depth) + 1
    if passed == len(depths):
        return None
    # Another network that is nearly as deep as the deepest would cost as much and bring little.
    return depths[-1] if 8 * passed >= 3 * len(depths) else depths[2 * passed - 1]


def next_step(
    records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig, first: int = 0
) -> Step | None:
    """Say what to train next.

    Args:
        records: of the expansion, oldest first.
        depths: the plan, ascending.
        config: targets, and when to anneal.
        first: the depth at which growing begins; 0 is the shallowest.

    Returns:
        The step, or None when expansion is over.
    """
    if not records:
        return Step(phase="expand", depth=first or depths[0])
    last = records[-1]
    trunk = trunk_of(records)
    if last.stop is None:
        return _settle(records, depths, last.depth) if last.phase == "settle" else Step(phase=last.phase, depth=trunk)
    deeper = next_trunk(depths, trunk)
    grow = Step(phase="expand", depth=deeper) if deeper is not None else None
    if last.phase == "expand":
        over = near(last, depths, config) if config.target_accuracy else growth_is_over(records, depths)
        if not over and grow is not None:
            return grow
        if config.cooldown_epochs:
            return Step(phase="cooldown", depth=trunk)
    automatic = not config.target_accuracy
    if automatic and last.phase == "settle":
        return None  # what there is to be had is known
    settled = settle_target(records, depths, config)
    chosen = _candidate(records, depths, settled)
    if chosen is not None and config.settle_epochs:
        return _settle(records, depths, chosen)
    return None if automatic or holding_depths(records, depths, settled) else grow


def _settle(records: Sequence[EpochRecord], depths: Sequence[int], depth: int) -> Step:
    # After the deepest depth of a network comes another network, after the deepest network nothing.
    trunk = trunk_of(records)
    first = set(_settled(records)) <= {depth}
    return Step(phase="settle", depth=depth, source=trunk, longer=depth == trunk or (first and trunk == depths[-1]))


def _joint(records: Sequence[EpochRecord]) -> EpochRecord:
    """Return the newest epoch in which all depths were trained together."""
    return next(record for record in reversed(records) if record.phase != "settle")


def _settled(records: Sequence[EpochRecord]) -> dict[int, EpochRecord]:
    """Return the best epoch of every depth that was trained on its own from the newest network, newest first."""
    best: dict[int, EpochRecord] = {}
    for record in reversed(records):
        if record.phase != "settle":
            break
        if record.depth not in best or record.valid_score >= best[record.depth].valid_score:
            best[record.depth] = record
    return best


def holding_depths(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> set[int]:
    """Tell which depths hold the target.

    Args:
        records: of the expansion, oldest first.
        depths: the plan, ascending.
        config: a target that is known; without ``settle_epochs`` the newest network's own heads are believed.

    Returns:
        Depths, each confirmed.
    """
    reached = {r.depth for r in records if r.phase == "settle" and r.stop == StopReason.TARGET_REACHED}
    if config.settle_epochs:
        return reached
    return set(met_depths(records, depths, config))


def _judged_before(records: Sequence[EpochRecord]) -> int:
    """Return how deep the network before the newest was, where it was annealed: its depths have had their say."""
    trunk = trunk_of(records)
    before = max((record.depth for record in records if record.phase != "settle" and record.depth < trunk), default=0)
    return before if any((record.phase, record.depth) == ("cooldown", before) for record in records) else 0


def _candidate(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> int | None:
    # The shallowest depth of which enough is expected once it is trained on its own. It makes ``config.gain`` times
    # the errors that it made among the others, until another one has shown what comes of them.
    judged = _judged_before(records)
    joint = {one.depth: 1 - one.valid_score for one in _joint(records).by_depth() if one.depth in depths}
    tried = _settled(records)
    held = {depth for depth in tried if depth in holding_depths(records, depths, config)}
    gain = config.gain
    for depth, record in list(tried.items())[:1]:
        measured = (1 - record.valid_score) / joint[depth] if joint[depth] else 1.0
        # The heads of deeper depths do worse among the others than those of shallower ones.
        gain = min(measured * _SHALLOWER, 1.0) if depth in held else min(measured, gain)
    allowed = 1 - config.target_accuracy
    low = max((depth for depth in tried if depth not in held), default=judged)
    high = min(held, default=depths[-1] + 1)
    open_ = [depth for depth in joint if low < depth < high]
    deepest = trunk_of(records) == depths[-1]
    if len(tried) >= MOST_SETTLED or (held and deepest):
        return None  # a shallower one would cost as much again as the one that was trained for longer
    hopeful = next((depth for depth in open_ if gain * joint[depth] <= allowed), None)
    if hopeful is not None or tried or not deepest:
        return hopeful
    # Nothing deeper can be had: the one that does best is trained to its end before it is given up.
    return min(open_, key=lambda depth: joint[depth])


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
    holding = holding_depths(records, depths, settled)
    if not config.target_accuracy and records[-1].phase == "settle":
        holding = {records[-1].depth}  # an automatic target asks for no more than what it reached
    known = {record.depth: record for record in best_by_depth(records) if record.depth in depths}
    chosen = min(holding) if holding else max(known, key=lambda depth: (known[depth].valid_score, -depth))
    return ExpandResult(
        depth=chosen,
        reached=bool(holding),
        target_accuracy=settled.target_accuracy,
        valid_score=known[chosen].valid_score,
        records=tuple(records),
    )


def kept_by_depth(records: Sequence[EpochRecord]) -> dict[int, tuple[EpochRecord, EpochRecord]]:
    """Find for every depth of an expansion the best of the weights that were kept for it.

    Kept are those of the last epoch of every network that was grown, and the best ones of every depth that was trained
    on its own.

    Args:
        records: of the expansion, oldest first.

    Returns:
        By ascending depth its own record, and the one whose weights are kept: the same where it was trained on its own,
        otherwise that of the network it is part of.
    """
    kept: dict[str, EpochRecord] = {}
    for record in records:
        name = kept_name(record.phase, record.depth)
        if record.phase != "settle" or name not in kept or record.valid_score > kept[name].valid_score:
            kept[name] = record
    best: dict[int, tuple[EpochRecord, EpochRecord]] = {}
    for record in kept.values():
        for one in record.by_depth():
            # Of equals the later one: it was trained for longer, or on its own.
            if one.depth not in best or one.valid_score >= best[one.depth][0].valid_score:
                best[one.depth] = one, record
    return dict(sorted(best.items()))


def best_by_depth(records: Sequence[EpochRecord]) -> list[EpochRecord]:
    """Find how every depth of an expansion does with the weights kept for it.

    Args:
        records: of the expansion, oldest first.

    Returns:
        A record per depth, ascending.
    """
    return [record for record, _ in kept_by_depth(records).values()]


def is_settled(records: Sequence[EpochRecord], depth: int) -> bool:
    """Tell whether the weights kept for a depth were trained on its own, so that no fine-tuning is due.

    Args:
        records: of a run, oldest first.
        depth: number of blocks.

    Returns:
        True where they were.
    """
    kept = kept_by_depth([record for record in records if record.verb == "expand"])
    return depth in kept and kept[depth][1].phase == "settle"


def kept_name(phase: Phase, depth: int) -> str:
    """Return the name under which weights are kept.

    Args:
        phase: in which they were trained.
        depth: number of blocks.

    Returns:
        The name of a directory: that of one depth, or of a network with the heads of all depths up to it.
    """
    return f"depth_{depth:03d}" if phase == "settle" else f"trunk_{depth:03d}"
