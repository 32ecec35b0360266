"""What to train next: pure functions of the records, so that resuming needs no other state.

Networks double until one is deep enough. Every depth of the network in training has a head, so that one annealing says
how all of them do beside each other; the shallowest that should hold the target is then trained on its own. No torch
here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from odn.config import ExpandConfig
from odn.errors import UsageError
from odn.outcome import holding_depths
from odn.records import EpochRecord, Phase
from odn.stopping import growth_is_over, near, settle_target, trunk_of

MOST_SETTLED = 3  # depths of one network that are trained on their own
_LONGER = 1.5  # times the epochs of settling, where a miss would cost another network or the target
_LONGER_GAIN = 0.95  # times the errors that it leaves then
_SHALLOWER = 1.07  # times what one depth made of its errors, a shallower one should make of its own


@dataclass(frozen=True, kw_only=True)
class Step:
    """What to train next.

    Attributes:
        phase: of training.
        depth: blocks in training.
        source: for a depth that is trained on its own, how deep the network was whose kept weights it starts from.
        stretch: times the epochs that its phase takes by default.
    """

    phase: Phase
    depth: int
    source: int | None = None
    stretch: float = 1.0


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


def settling(depths: Sequence[int], depth: int, trunk: int) -> Step:
    """Describe the training of one depth on its own.

    Args:
        depths: the plan, ascending.
        depth: one of them.
        trunk: how deep the network is that it is taken from.

    Returns:
        The step. After the deepest depth of a network comes another network, after the deepest network nothing: these
        take longer.
    """
    return Step(phase="settle", depth=depth, source=trunk, stretch=_LONGER if trunk in (depth, depths[-1]) else 1.0)


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
        return settling(depths, last.depth, trunk) if last.phase == "settle" else Step(phase=last.phase, depth=trunk)
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
        return settling(depths, chosen, trunk)
    return None if automatic or holding_depths(records, depths, settled) else grow


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


def _judged_before(records: Sequence[EpochRecord]) -> int:
    """Return how deep the network before the newest was, where it was annealed: its depths have had their say."""
    trunk = trunk_of(records)
    before = max((record.depth for record in records if record.phase != "settle" and record.depth < trunk), default=0)
    return before if any((record.phase, record.depth) == ("cooldown", before) for record in records) else 0


def _candidate(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> int | None:
    """Return the shallowest depth of which enough is expected once it is trained on its own; None without one."""
    joint = {one.depth: 1 - one.valid_score for one in _joint(records).by_depth() if one.depth in depths}
    tried = _settled(records)
    held = {depth for depth in tried if depth in holding_depths(records, depths, config)}
    low = max((depth for depth in tried if depth not in held), default=_judged_before(records))
    high = min(held, default=depths[-1] + 1)
    open_ = [depth for depth in joint if low < depth < high]
    trunk = trunk_of(records)
    deepest = trunk == depths[-1]
    if len(tried) >= MOST_SETTLED or (held and deepest):
        return None  # a shallower one would cost as much again as the one that was trained for longer
    gain = _gain(joint, tried, held, config.gain)
    expected = {depth: gain * joint[depth] for depth in open_}
    if trunk in expected and not deepest:
        expected[trunk] *= _LONGER_GAIN  # of the deepest network a block too many is cheaper than a miss
    hopeful = next((depth for depth in open_ if expected[depth] <= 1 - config.target_accuracy), None)
    if hopeful is not None or tried or not deepest:
        return hopeful
    # Nothing deeper can be had: the one that does best is trained to its end before it is given up.
    return min(open_, key=lambda depth: joint[depth])


def _gain(joint: dict[int, float], tried: dict[int, EpochRecord], held: set[int], expected: float) -> float:
    """Say how many times the errors that it makes among the others a depth should make on its own.

    Args:
        joint: error among the others by depth.
        tried: best epoch alone of the depths that were trained on their own, newest first.
        held: those of them that hold the target.
        expected: the answer before anything was tried.

    Returns:
        What the newest one tried has shown; at most what was expected for a deeper one after a miss.
    """
    if not tried:
        return expected
    depth, record = next(iter(tried.items()))
    measured = (1 - record.valid_score) / joint[depth] if joint[depth] else 1.0
    if depth not in held:
        return min(measured, expected)
    if depth == max(joint):
        measured /= _LONGER_GAIN  # shallower ones do not settle for longer
    # The heads of deeper depths do worse among the others than those of shallower ones.
    return min(measured * _SHALLOWER, 1.0)
