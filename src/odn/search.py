"""What to train next: pure functions of the records, so that resuming needs no other state.

Networks double until one is near the target. The depths that it has more than the network before are then trained
together to their end, from fresh weights, each with a head, and the shallowest one that holds the target is kept. Two
depths would harm each other: there the deeper one is trained, and the other goes on from it. So does a depth that falls
short by little where a deeper one holds the target or only the deepest network is left, and one that falls short by
next to nothing wherever it is. The first network, unless it is more than a quarter of the deepest, costs least: it is
trained to its end at once, and grown as well only where a deeper one has to be, which then goes on from there. Without
a target networks are trained to their end in turn until they gain no more. No torch here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from odn.config import ExpandConfig
from odn.errors import UsageError
from odn.growth import deeper_will_do, gains_are_over, near, refined_next
from odn.outcome import ended_stages, expand_result, holding_depths
from odn.records import ENDING_PHASES, EpochRecord, Phase

_TELLING = 4  # a network of a quarter of all blocks costs little


@dataclass(frozen=True, kw_only=True)
class Step:
    """What to train next.

    Attributes:
        phase: of training.
        depth: blocks in training.
        lowest: the first depth that has a head.
    """

    phase: Phase
    depth: int
    lowest: int = 1

    @property
    def looks_back(self) -> bool:
        """Whether the blocks learn from the deepest head alone, for a shallower depth to go on from them.

        Two heads cost the deeper one up to 1.3 points of accuracy; of more of them, the blocks learn enough for all.
        """
        return self.phase == "settle" and self.depth - self.lowest <= 1


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
        config: targets, and how to train.
        first: the depth at which growing begins; 0 is the shallowest.

    Returns:
        The step, or None when expansion is over.
    """
    if not records:
        return _attach(first or depths[0], records, depths, config)
    last = records[-1]
    if last.stop is None:
        return Step(phase=last.phase, depth=last.depth, lowest=last.lowest)
    deeper = next_trunk(depths, max(record.depth for record in records))
    if config.settle_epochs and not config.target_accuracy:
        return _next_for_the_best(records, depths, config, deeper)
    grow = _attach(deeper, records, depths, config) if deeper is not None else None
    if last.phase in ENDING_PHASES:
        stages, found = ended_stages(records), expand_result(records, depths, config)
        # Before the deepest network others are cheap, and say more of which depth is right. Where two networks fell
        # short the curve is so flat that refining seldom helps, and one more in vain makes the search dear.
        # The first depth is trained to say what training brings, too, and was not expected to do.
        in_vain = {record.depth for record in records if record.phase == "settle"} - {depths[0]}
        pays = deeper in (None, depths[-1]) and len(in_vain) <= 1
        chosen = found.depth if found.reached else None
        refined = refined_next(stages, depths, config, chosen=chosen, guest=_guest(stages[0][-1]), pays=pays)
        if refined is not None:
            return Step(phase="refine", depth=refined, lowest=refined)
        if found.reached or deeper is None:
            return None
        return _settle(deeper, records, depths) if deeper_will_do(stages[0], depths, config) else grow
    if not config.settle_epochs:
        known = bool(config.target_accuracy)
        over = holding_depths(records, depths, config) if known else gains_are_over(records, depths, config)
        return None if over else grow
    if any((record.phase, record.depth) == ("settle", last.depth) for record in records):
        return grow  # the first network, which was trained to its end before
    # A run that an earlier version began may have grown the first network before.
    wanted = grow is None or _tells(last.depth, depths) or near(records, depths, config)
    return _settle(last.depth, records, depths) if wanted else grow


def _next_for_the_best(
    records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig, deeper: int | None
) -> Step | None:
    """Say what to train next where there is no target: networks to their end, for as long as they gain."""
    # Growing would not say when to stop: how much training to the end brings differs from depth to depth.
    if deeper is not None and not gains_are_over(records, depths, config):
        return _settle(deeper, records, depths)
    found = expand_result(records, depths, config)
    if not found.reached or records[-1].phase == "refine":  # nothing explains anything, or all is done
        return None
    guest = next(_guest(r) for r in records if r.phase == "settle" and r.lowest <= found.depth <= r.depth)
    return Step(phase="refine", depth=guest, lowest=guest) if guest is not None and guest < found.depth else None


def _attach(depth: int, records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> Step:
    """Describe what a network begins with: a look at how near it is, or training to its end where it needs none."""
    needs_look = depth < depths[-1] and config.target_accuracy and not (_tells(depth, depths) and not records)
    if config.settle_epochs and not needs_look:
        return _settle(depth, records, depths)
    # What training to its end brought the first network is only known once it has grown as well.
    grown = not records or any(record.phase == "expand" for record in records)
    return Step(phase="expand", depth=depth if grown else depths[0])


def _tells(depth: int, depths: Sequence[int]) -> bool:
    """Say whether a network is worth training to its end for what that says of the others."""
    return depth == depths[0] and _TELLING * depth <= depths[-1]


def _settle(depth: int, records: Sequence[EpochRecord], depths: Sequence[int]) -> Step:
    """Describe the training of the depths that a network has more than the one before."""
    before = max((record.depth for record in records if record.depth < depth), default=0)
    return Step(phase="settle", depth=depth, lowest=next(one for one in depths if one > before))


def _guest(settled: EpochRecord) -> int | None:
    """Say which depth was left aside while the one beyond it was trained, if any."""
    step = Step(phase=settled.phase, depth=settled.depth, lowest=settled.lowest)
    return settled.lowest if step.looks_back else None
