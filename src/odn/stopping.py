"""When a depth is done: a pure function of the records so far, and the interval it may rest on."""

import math
from collections.abc import Sequence
from itertools import groupby, takewhile
from statistics import NormalDist

from odn.config import ExpandConfig
from odn.records import EpochRecord, StopReason


def wilson_interval(correct: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided Wilson score interval of an accuracy.

    Args:
        correct: images classified correctly, 0 to ``count``.
        count: images in all, 1 or more.
        confidence: coverage of the interval, above 0 and below 1.

    Returns:
        Lower and upper bound, fractions in [0, 1] (Wilson, J. Am. Stat. Assoc. 22, 1927).
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    accuracy = correct / count
    centre = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def meets_target(correct: int, count: int, config: ExpandConfig) -> bool:
    """Tell whether one evaluation reaches the target.

    Args:
        correct: validation images classified correctly.
        count: validation images.
        config: the target and, where asked for, the confidence it must be reached with.

    Returns:
        True when the accuracy, or with ``config.confidence`` its lower Wilson bound, is at the target or above.
    """
    if config.confidence:
        return wilson_interval(correct, count, config.confidence)[0] >= config.target_accuracy
    return correct / count >= config.target_accuracy


def confirmed(records: Sequence[EpochRecord], config: ExpandConfig) -> bool:
    """Tell whether consecutive evaluations of one phase at one depth ever reached the target.

    Args:
        records: of a run, oldest first.
        config: target and number of confirmations.

    Returns:
        True when as many in a row as ``config.confirmations`` did.
    """
    for _, phase in groupby(records, key=lambda record: (record.phase, record.depth)):
        row = 0
        for record in phase:
            row = row + 1 if meets_target(record.valid_correct, record.valid_count, config) else 0
            if row >= config.confirmations:
                return True
    return False


def almost_reached(records: Sequence[EpochRecord], config: ExpandConfig) -> bool:
    """Tell whether a depth that has converged deserves to be annealed before the next block is attached.

    At a constant learning rate averaged weights stay short of what annealing reaches (warm-up, stable, decay: Hu et
    al., arXiv 2404.06395), so that a depth that would do is passed over without this second look.

    Args:
        records: of that depth at a constant learning rate, one or more.
        config: target, and how far from it is near.

    Returns:
        True when the best error is at most ``config.reach`` times the target's.
    """
    error = 1 - max(record.valid_accuracy for record in records)
    return config.cooldown_epochs > 0 and error <= config.reach * (1 - config.target_accuracy)


def decide(records: Sequence[EpochRecord], config: ExpandConfig) -> StopReason | None:
    """Decide whether the depth trained last is done (ODN, arXiv 2510.10764: expand once converged).

    Args:
        records: all records so far, oldest first; only those of the last phase and depth count.
        config: target, confirmations, patience and caps.

    Returns:
        The reason to stop training this depth, or None to train another epoch.
    """
    if not records:
        return None
    last = records[-1]
    stage = list(takewhile(lambda r: (r.phase, r.depth) == (last.phase, last.depth), reversed(records)))[::-1]
    if last.train_loss is None:
        return StopReason.NON_FINITE
    met = [meets_target(record.valid_correct, record.valid_count, config) for record in stage]
    if len(met) >= config.confirmations and all(met[-config.confirmations :]):
        return StopReason.TARGET_REACHED
    if len(stage) >= (config.cooldown_epochs if last.phase == "cooldown" else config.epochs_per_depth):
        return StopReason.EPOCH_BUDGET
    if last.phase == "cooldown":
        return None
    # An evaluation that meets the target is waiting for its confirmation: growing now would waste it.
    if len(stage) > config.patience and not met[-1]:
        before = max(record.valid_accuracy for record in stage[: -config.patience])
        recent = max(record.valid_accuracy for record in stage[-config.patience :])
        if recent < before + config.min_improvement:
            return StopReason.PLATEAU
    return None
