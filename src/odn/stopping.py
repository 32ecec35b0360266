"""When a depth is done: a pure function of the records so far, and the interval it may rest on."""

import dataclasses
import math
from collections.abc import Sequence
from itertools import groupby, takewhile
from statistics import NormalDist

from odn.config import ExpandConfig
from odn.records import EpochRecord, Phase, StopReason
from odn.tasks import Metric


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


def score_interval(
    metric: Metric, score: float, error: float, count: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the two-sided interval of a score.

    Args:
        metric: what it is a value of.
        score: the value.
        error: its standard error.
        count: samples, 1 or more.
        confidence: coverage of the interval, above 0 and below 1.

    Returns:
        Lower and upper bound: Wilson's for an accuracy, else the normal one, at most 1 and but for R² at least 0.
    """
    if metric == "accuracy":
        return wilson_interval(round(score * count), count, confidence)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return (score - half if metric == "r2" else max(0.0, score - half)), min(1.0, score + half)


def meets_target(metric: Metric, score: float, error: float, count: int, config: ExpandConfig) -> bool:
    """Tell whether one evaluation reaches the target.

    Args:
        metric: of the target.
        score: on the validation split.
        error: its standard error.
        count: validation samples.
        config: the target and, where asked for, the confidence it must be reached with.

    Returns:
        True when the score, or with ``config.confidence`` its lower bound, is at the target or above.
    """
    if not config.target_accuracy:
        return False
    if config.confidence:
        return score_interval(metric, score, error, count, config.confidence)[0] >= config.target_accuracy
    return score >= config.target_accuracy


def _met(record: EpochRecord, config: ExpandConfig) -> bool:
    return meets_target(record.metric, record.valid_score, record.valid_error, record.valid_count, config)


def confirmed(records: Sequence[EpochRecord], config: ExpandConfig) -> bool:
    """Tell whether consecutive evaluations of one network in one phase ever reached the target.

    Args:
        records: of a run, oldest first.
        config: target and number of confirmations.

    Returns:
        True when as many in a row as ``config.confirmations`` did.
    """
    for _, phase in groupby(records, key=lambda record: (record.phase, record.depth, record.narrowed)):
        row = 0
        for record in phase:
            row = row + 1 if _met(record, config) else 0
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
    error = 1 - max(record.valid_score for record in records)
    worthwhile = config.cooldown_epochs > 0 and config.target_accuracy > 0
    return worthwhile and error <= config.reach * (1 - config.target_accuracy)


def cap_of(phase: Phase, config: ExpandConfig, steps_per_epoch: int, *, deepest: bool) -> int:
    """Return the most epochs that a phase of expansion may take at one depth.

    Args:
        phase: ``expand``, ``cooldown`` or ``lookback``.
        config: the caps.
        steps_per_epoch: of the optimizer; small datasets need more epochs for as many steps.
        deepest: whether no deeper network is planned, so that only more training can help.

    Returns:
        Number of epochs; where growing has no cap of its own 16, or as many as 1,250 steps take, at most 64, and
        twice that for the deepest network.
    """
    if phase == "expand":
        return config.epochs_per_depth or min(max(16, math.ceil(1250 / steps_per_epoch)), 64) * (2 if deepest else 1)
    return config.cooldown_epochs if phase == "cooldown" else config.lookback_epochs


def has_begun(records: Sequence[EpochRecord]) -> bool:
    """Tell whether a network does better than an answer that is the same for every sample, beyond chance.

    On few or difficult data that takes many epochs, before which no curve has flattened, because there is none yet.

    Args:
        records: of it, one or more.

    Returns:
        Whether the 95 % interval of its best score lies above; True where nobody knows how such an answer scores.
    """
    best = max(records, key=lambda record: record.valid_score)
    if best.trivial_score is None:
        return True
    low, _ = score_interval(best.metric, best.valid_score, best.valid_error, best.valid_count)
    return low > best.trivial_score


def knee(records: Sequence[EpochRecord], deepest: int, config: ExpandConfig) -> int | None:
    """Find the shallowest depth that is nearly as good as the best, once growing has shown what the data give.

    Growing is over when the last two depths each gained less than one standard error over the best before them, which
    had learnt something, or when nothing deeper is planned.

    Args:
        records: of the expansion, oldest first.
        deepest: depth of the plan.
        config: how much is nearly.

    Returns:
        The depth; None while growing is not over.
    """
    growing = [record for record in records if record.phase == "expand"]
    best: EpochRecord | None = None
    idle = 0
    for _, group in groupby(growing, key=lambda record: record.depth):
        epochs = list(group)
        if epochs[-1].stop is None:
            return None
        top = max(epochs, key=lambda record: record.valid_score)
        if best is not None:
            flat = top.valid_score - best.valid_score < best.valid_error
            idle = idle + 1 if flat and has_begun([best]) else 0
        best = top if best is None else max(best, top, key=lambda record: record.valid_score)
    if best is None or (idle < 2 and growing[-1].depth < deepest):
        return None
    return min(record.depth for record in growing if record.valid_score >= best.valid_score - config.within)


def settle_target(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> ExpandConfig:
    """Fill in an automatic target once it is known.

    It is the best score less ``config.within``, among depths that were all trained alike: where shallower ones are to
    be annealed from the depth at the knee, that one is annealed first, because all gain by it.

    Args:
        records: of the expansion, oldest first.
        depths: the plan, ascending.
        config: the target; 0 stands for an automatic one.

    Returns:
        The settings with the target filled in, or as they were where it is given or not yet known.
    """
    if config.target_accuracy or (depth := knee(records, depths[-1], config)) is None:
        return config
    judged = [record for record in records if record.phase == "expand"]
    if config.lookback_epochs and passed_over(judged, depths, depth):
        judged = [record for record in records if (record.phase, record.depth) == ("lookback", depth)]
        if not judged or judged[-1].stop is None:
            return config
    best = max(record.valid_score for record in judged)
    return dataclasses.replace(config, target_accuracy=best - config.within)


def passed_over(records: Sequence[EpochRecord], depths: Sequence[int], depth: int) -> list[int]:
    """List the planned depths between one that holds the target and the deepest one before it that was tried.

    Args:
        records: of the expansion.
        depths: the plan, ascending.
        depth: that holds the target.

    Returns:
        Ascending depths.
    """
    shallow = max((record.depth for record in records if record.depth < depth), default=0)
    return [between for between in depths if shallow < between < depth]


def hopeless(records: Sequence[EpochRecord], config: ExpandConfig) -> bool:
    """Tell whether a depth will not come near the target within its budget of epochs.

    Accuracy is extrapolated along the logarithm of the epochs: once a doubling of the training brought no more than
    the one before, the next will not bring more either.

    Args:
        records: of that depth at a constant learning rate.
        config: target, budget, and how far from the target annealing reaches.

    Returns:
        True when the extrapolated error is beyond ``config.reach`` times the target's.
    """
    count = len(records)
    if count < max(8, records[-1].cap // 2) or not config.target_accuracy:
        return False  # at first learning curves may still steepen
    accuracies = [record.valid_score for record in records]
    first, second, third = (max(accuracies[: count // part]) for part in (4, 2, 1))
    if third - second > second - first:
        return False
    gain = (third - second) / math.log2(count / (count // 2))
    predicted = third + gain * math.log2(records[-1].cap / count)
    return 1 - predicted > config.reach * (1 - config.target_accuracy)


def decide(records: Sequence[EpochRecord], config: ExpandConfig) -> StopReason | None:
    """Decide whether the depth trained last is done (ODN, arXiv 2510.10764: expand once converged).

    A depth that has learnt nothing yet has not converged: it is given its whole budget of epochs.

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
    met = [_met(record, config) for record in stage]
    if len(met) >= config.confirmations and all(met[-config.confirmations :]):
        return StopReason.TARGET_REACHED
    if len(stage) >= last.cap:
        return StopReason.EPOCH_BUDGET
    if last.phase != "expand":
        return None
    if not has_begun(stage):
        return None
    if hopeless(stage, config):
        return StopReason.HOPELESS
    # An evaluation that meets the target is waiting for its confirmation: growing now would waste it.
    patience = max(config.patience, last.cap // 8)
    if len(stage) > patience and not met[-1]:
        before = max(record.valid_score for record in stage[:-patience])
        recent = max(record.valid_score for record in stage[-patience:])
        if recent < before + config.min_improvement:
            return StopReason.PLATEAU
    return None
