"""What to train next: pure functions of the records, so that resuming needs no other state.

Networks double until one is deep enough. Every depth of the network in training has a head, so that one annealing says
how all of them do beside each other; the shallowest that should hold the target is then trained on its own. No torch
here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from odn.config import ExpandConfig
from odn.errors import UsageError
from odn.outcome import holding_depths
from odn.records import EpochRecord, Phase
from odn.stopping import growth_is_over, near, settle_target, trunk_of

MOST_SETTLED = 3  # depths of one network that are trained on their own
_FEW = 4  # blocks of a network whose depths gain by what they learnt beside each other, or lose nothing
_LAST = 0.95  # times the errors expected of the last depth that is much cheaper than the deepest network
_OTHERS = 1.12  # times those of others: they gain less alone, and where they are passed over the next is near


@dataclass(frozen=True, kw_only=True)
class Step:
    """What to train next.

    Attributes:
        phase: of training.
        depth: blocks in training.
        source: for a depth that is trained on its own, how deep the network was whose kept weights it starts from;
            None for the weights that expansion began with.
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
        The step. It begins anew where the network has more than four blocks, and where none deeper could make up for
        it: blocks that learnt beside many heads end up worse alone.
    """
    return Step(phase="settle", depth=depth, source=trunk if trunk <= _FEW and trunk < depths[-1] else None)


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
    chosen = _candidate(records, depths, settled, automatic=automatic)
    if chosen is not None and config.settle_epochs:
        return settling(depths, chosen, trunk)
    return None if automatic or holding_depths(records, depths, settled) else grow


def _networks(records: Sequence[EpochRecord]) -> Iterator[tuple[EpochRecord, dict[int, EpochRecord]]]:
    """Yield the networks so far: the last epoch of all depths together, the best of those trained on their own."""
    for together, group in groupby(records, key=lambda record: record.phase != "settle"):
        if together:
            *_, joint = group
            alone: dict[int, EpochRecord] = {}
        else:
            for record in group:
                if record.depth not in alone or record.valid_score >= alone[record.depth].valid_score:
                    alone[record.depth] = record
            yield joint, alone
    if together:
        yield joint, {}


def _judged_before(records: Sequence[EpochRecord]) -> int:
    """Return how deep the network before the newest was, where it was annealed: its depths have had their say."""
    trunk = trunk_of(records)
    before = max((record.depth for record in records if record.phase != "settle" and record.depth < trunk), default=0)
    return before if any((record.phase, record.depth) == ("cooldown", before) for record in records) else 0


def _candidate(
    records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig, *, automatic: bool
) -> int | None:
    """Return the shallowest depth of which enough is expected once it is trained on its own; None without one."""
    *_, (joint, tried) = _networks(records)
    errors = {one.depth: 1 - one.valid_score for one in joint.by_depth() if one.depth in depths}
    held = holding_depths(records, depths, config).intersection(tried)
    low = max((depth for depth in tried if depth not in held), default=_judged_before(records))
    high = min(held, default=depths[-1] + 1)
    open_ = [depth for depth in errors if low < depth < high]
    deepest = joint.depth == depths[-1]
    if len(tried) >= MOST_SETTLED or (held and deepest):
        return None  # a shallower one would cost nearly as much again
    gain = _gain(records, depths, config, held)
    shares = {depth: 1.0 if automatic else _share(depth, joint.depth, depths) for depth in open_}
    expected = {depth: errors[depth] * gain * shares[depth] for depth in open_}
    hopeful = next((depth for depth in open_ if expected[depth] <= 1 - config.target_accuracy), None)
    if hopeful is not None or tried or not deepest:
        return hopeful
    # Nothing deeper can be had: the one that does best is trained to its end before it is given up.
    return min(open_, key=lambda depth: errors[depth])


def _share(depth: int, trunk: int, depths: Sequence[int]) -> float:
    """Say how many times the errors are expected of a depth that ``gain`` alone leads to expect."""
    deeper = next_trunk(depths, trunk)
    if deeper is None:
        return 1.0  # nothing deeper could make up for one that is passed over
    return _LAST if depth == trunk and deeper == depths[-1] else _OTHERS


def _gain(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig, held: set[int]) -> float:
    """Say how many times the errors that they make among the others depths make on their own.

    Args:
        records: of the expansion, oldest first.
        depths: the plan, ascending.
        config: the answer before anything was tried.
        held: the depths of the newest network that hold the target.

    Returns:
        What the newest depth that held has shown. One that fell short counts half: deeper ones may gain more, and
        those of other networks, too.
    """
    gain = config.gain
    for joint, alone in _networks(records):
        errors = {one.depth: 1 - one.valid_score for one in joint.by_depth()}
        for depth, record in alone.items():
            measured = (1 - record.valid_score) / errors[depth] if errors[depth] else 1.0
            share = _share(depth, joint.depth, depths)
            if depth in held and joint.depth == trunk_of(records):
                gain = measured / min(share, 1.0)
            else:
                gain = math.sqrt(gain * measured / share)
    return min(gain, 1.0)
