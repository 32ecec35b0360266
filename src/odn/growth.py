"""How near a network is to its target, which depths are worth refining, and when deeper ones gain no more. No torch."""

import dataclasses
from collections.abc import Sequence
from itertools import groupby

from odn.config import ExpandConfig
from odn.records import EpochRecord, Phase
from odn.stopping import has_begun, held_score, scores_by_depth

# Refining left 0.91 to 0.99 times the odds of an error, twice the blocks 0.80 to 0.95 times (docs/log.md).
_SURE, _CLOSE, _NEXT = 1.01, 1.05, 1.1


def near(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> bool:
    """Tell whether a network whose growth has ended may hold the target once it is trained to its end.

    At a constant learning rate averaged weights stay short of what annealing reaches (warm-up, stable, decay: Hu et
    al., arXiv 2404.06395).

    Args:
        records: of the expansion, oldest first; the last is of that network's last epoch at a constant learning rate.
        depths: the plan.
        config: target, and how far from it is near.

    Returns:
        True when its best depth makes at most as many times the errors per correct answer that the target allows as
        training to the end has taken from the networks before it, from the one that gained most: a network whose
        training went badly rules out no other, nor one that holds the target already. ``config.reach`` times where none
        was trained.
    """
    *before, now = _networks(records)
    gains = [gain for network in before if (gain := _gain(records, network, depths)) is not None]
    best = max(held_score(one, config) for one in _apart(now, depths))
    return _odds(best) <= max(1.0, max(gains, default=config.reach)) * _allowed(now, config)


def _gain(records: Sequence[EpochRecord], grown: Sequence[EpochRecord], depths: Sequence[int]) -> float | None:
    """Divide the odds of an error after growing by those at the end of training; None where that says nothing."""
    ended = [record for record in records if (record.phase, record.depth) == ("settle", grown[-1].depth)]
    if not ended or not has_begun(ended):
        return None
    before, after = _best(grown, depths), _best(ended, depths)
    if before.valid_score <= 0:  # such odds have no bound
        return None
    return _odds(_doubted(before.valid_score, before)) / _odds(_doubted(after.valid_score, after))


def refined_next(
    stages: Sequence[Sequence[EpochRecord]],
    depths: Sequence[int],
    config: ExpandConfig,
    *,
    chosen: int | None,
    guest: int | None,
    pays: bool,
) -> int | None:
    """Say which of the depths that were trained to their end together may hold the target once it is refined.

    Args:
        stages: their epochs, then those of each depth that was refined since, oldest first.
        depths: the plan, ascending.
        config: a target that is known.
        chosen: the shallowest depth that holds it; None where none does.
        guest: a depth whose blocks did not learn for it, so that its score says little.
        pays: whether a depth that may well not hold is worth it; otherwise only one that nearly holds is.

    Returns:
        Where none holds, the best one if it makes at most 1.05 times as many errors per correct answer as the target
        allows, 1.01 times unless it ``pays``, and none was refined yet. Where one met it from the start, confirmed or
        not, one that is shallower and as close, or the guest: the middle of those that are left, so that the shallowest
        that holds is found by bisection. Otherwise None.
    """
    settled, *refined = stages
    errors = _errors_by_depth(settled, depths, config)
    if chosen is None:
        closest = min(errors, key=lambda depth: (errors[depth], depth))
        return closest if errors[closest] <= (_CLOSE if pays else _SURE) and not refined else None
    if min(errors.values()) > 1:  # refining alone made one meet it: what is shallower has less to spare
        return None
    failed = max((stage[-1].depth for stage in refined if stage[-1].depth < chosen), default=0)
    left = [d for d, times in errors.items() if failed < d < chosen and (times <= _CLOSE or d == guest)]
    return left[(len(left) - 1) // 2] if left else None


def deeper_will_do(settled: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> bool:
    """Tell whether the next network needs no look at how near it is.

    Args:
        settled: the epochs of the network that was trained to its end last, in vain.
        depths: the plan, ascending.
        config: a target that is known.

    Returns:
        True when the best of its depths makes at most 1.1 times as many errors per correct answer as the target allows.
    """
    return min(_errors_by_depth(settled, depths, config).values()) <= _NEXT


def _errors_by_depth(settled: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> dict[int, float]:
    """Say how many times as many errors per correct answer as the target allows each depth's best weights make."""
    scores = [scores_by_depth(record, depths) for record in settled]
    allowed = _allowed(settled, config)
    return {depth: _odds(max(held_score(epoch[depth], config) for epoch in scores)) / allowed for depth in scores[0]}


def _allowed(epochs: Sequence[EpochRecord], config: ExpandConfig) -> float:
    """Errors per correct answer that the target allows."""
    return _odds(_doubted(config.target_accuracy, epochs[-1]))


def _doubted(score: float, record: EpochRecord) -> float:
    """Assume half an error where there is none: that no sample is wrong does not say that none ever would be."""
    return min(score, 1 - 0.5 / record.valid_count)


def _apart(epochs: Sequence[EpochRecord], depths: Sequence[int]) -> list[EpochRecord]:
    """Take the planned depths of every epoch apart."""
    return [one for record in epochs for one in scores_by_depth(record, depths).values()]


def _best(epochs: Sequence[EpochRecord], depths: Sequence[int]) -> EpochRecord:
    """Return the best of the planned depths in any epoch, of equals the earliest."""
    return max(_apart(epochs, depths), key=_score)


def _score(record: EpochRecord) -> float:
    return record.valid_score


def _networks(records: Sequence[EpochRecord], phase: Phase = "expand") -> list[list[EpochRecord]]:
    """Take the epochs that speak for every network in one phase: of growing the last, else all of them."""
    own = [record for record in records if record.phase == phase]
    stages = [list(group) for _, group in groupby(own, key=lambda record: record.depth)]
    return [stage[-1:] for stage in stages] if phase == "expand" else stages


def _odds(score: float) -> float:
    """Errors per correct answer."""
    return (1 - score) / max(score, 1e-9) if score < 1 else 1e-9  # R² may lie below 0


def gains_are_over(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> bool:
    """Tell whether networks have shown what the data give, for an automatic target.

    They have when the last two each gained one standard error at most over the best before them, which had learnt
    something, when nothing is left to gain, or when nothing deeper is planned. Networks count once they were trained to
    their end; without ``settle_epochs`` as they ended growing.

    Args:
        records: of the expansion, oldest first.
        depths: the plan, ascending.
        config: whether networks are trained to their end.

    Returns:
        Whether it is over; not while one is under way.
    """
    networks = _networks(records, "settle" if config.settle_epochs else "expand")
    if not networks or networks[-1][-1].stop is None:
        return False
    best: EpochRecord | None = None
    idle = 0
    for network in networks:
        top = _best(network, depths)
        if best is not None:
            idle = idle + 1 if top.valid_score - best.valid_score <= best.valid_error and has_begun([best]) else 0
        best = top if best is None else max(best, top, key=_score)
    perfect = best is not None and best.valid_score >= 1
    return idle >= 2 or perfect or networks[-1][-1].depth == depths[-1]


def settle_target(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> ExpandConfig:
    """Fill in an automatic target once it is known.

    It is what the best of the depths that were trained to their end reached, less ``config.within``; without
    ``settle_epochs`` that of the networks as they ended growing, whose weights are kept.

    Args:
        records: of a run, oldest first.
        depths: the plan, ascending.
        config: the target; 0 stands for an automatic one.

    Returns:
        The settings with the target filled in, or as they were where it is given, not yet known, or an R² that is not
        above that of one answer for every sample.
    """
    expansion = [record for record in records if record.verb == "expand"]
    if config.target_accuracy or not gains_are_over(expansion, depths, config):
        return config
    # What looking back brings comes after the target is known.
    networks = _networks(expansion, "settle" if config.settle_epochs else "expand")
    best = max(_best(network, depths).valid_score for network in networks)
    return dataclasses.replace(config, target_accuracy=max(best - config.within, 0.0))
