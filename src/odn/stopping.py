"""When a depth is done: a pure function of the records so far, and the interval it may rest on."""

import math
from collections.abc import Sequence
from itertools import groupby, takewhile
from statistics import NormalDist

from odn.config import ExpandConfig, require
from odn.records import ENDING_PHASES, EpochRecord, Phase, StopReason
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
    return bool(config.target_accuracy) and held(metric, score, error, count, config) >= config.target_accuracy


def held_score(record: EpochRecord, config: ExpandConfig) -> float:
    """Say what of an evaluation has to reach a target.

    Args:
        record: the evaluation.
        config: the confidence that is asked for.

    Returns:
        The validation score, or with a confidence its lower bound.
    """
    return held(record.metric, record.valid_score, record.valid_error, record.valid_count, config)


def held(metric: Metric, score: float, error: float, count: int, config: ExpandConfig) -> float:
    """Say what of a score has to reach a target.

    Args:
        metric: what the score is of.
        score: value of the metric.
        error: its standard error.
        count: samples it was measured on.
        config: the confidence that is asked for.

    Returns:
        The score, or with a confidence its lower bound.
    """
    return score_interval(metric, score, error, count, config.confidence)[0] if config.confidence else score


def check_attainable(metric: Metric, count: int, config: ExpandConfig) -> None:
    """Refuse a target that no network can hold with the confidence asked for.

    Args:
        metric: of the target.
        count: validation samples.
        config: target and confidence.

    Raises:
        UsageError: where the lower bound stays below the target although every sample is right.
    """
    most = held(metric, 1.0, 0.0, count, config)
    require(
        most >= config.target_accuracy,
        f"--confidence {config.confidence} asks for a lower bound of {config.target_accuracy}, and {count} validation "
        f"samples give {most:.4f} at most, without any mistake; lower --target or --confidence, or give more data",
    )


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


def scores_by_depth(record: EpochRecord, depths: Sequence[int]) -> dict[int, EpochRecord]:
    """Take the planned depths out of an epoch in which several were trained together.

    Args:
        record: of the epoch.
        depths: the plan.

    Returns:
        A record of its own for each.
    """
    return {one.depth: one for one in record.by_depth() if one.depth in depths}


def newest_stage(records: Sequence[EpochRecord]) -> list[EpochRecord]:
    """Take the epochs of what was trained last.

    Args:
        records: oldest first, one or more.

    Returns:
        Those of one network in one phase, oldest first.
    """
    last = records[-1]
    return list(takewhile(lambda r: (r.phase, r.depth) == (last.phase, last.depth), reversed(records)))[::-1]


def confirmed_depths(stage: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> list[int]:
    """List the depths that ever met the target in consecutive epochs, as many as confirmations are asked for.

    Args:
        stage: the epochs of one network in one phase, oldest first.
        depths: the plan, ascending.
        config: target and number of confirmations.

    Returns:
        Ascending depths.
    """
    apart = [scores_by_depth(record, depths) for record in stage]
    return [depth for depth in apart[0] if confirmed([scores[depth] for scores in apart], config)]


def met_depths(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> list[int]:
    """List the depths that meet the target in the newest epochs of one network, as many as confirmations are asked for.

    Args:
        records: oldest first.
        depths: the plan, ascending.
        config: target and number of confirmations.

    Returns:
        Ascending depths.
    """
    newest = newest_stage(records)[-config.confirmations :]
    if len(newest) < config.confirmations:
        return []
    apart = [scores_by_depth(record, depths) for record in newest]
    return [depth for depth in apart[-1] if all(_met(scores[depth], config) for scores in apart)]


def cap_of(phase: Phase, config: ExpandConfig, steps_per_epoch: int, images: int) -> int:
    """Return the most epochs that a phase of expansion may take at one depth.

    Args:
        phase: ``expand``, ``settle`` or ``refine``.
        config: the caps.
        steps_per_epoch: of the optimizer; small datasets need more epochs for as many steps.
        images: samples in the training split.

    Returns:
        Number of epochs; of growing, where it has no cap of its own, 4, or as many as 500 steps take, at most 20. Those
        of settling are raised likewise where an epoch has less than 64 steps or 2,000 samples, to three times as many
        at most; looking back takes a third of them.
    """
    if phase == "expand":
        return config.epochs_per_depth or min(max(4, math.ceil(500 / steps_per_epoch)), 20)
    settle = math.ceil(config.settle_epochs * min(max(1.0, 64 / steps_per_epoch, 2000 / images), 3.0))
    return settle if phase == "settle" else max(math.ceil(settle / 3), config.confirmations)


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


def decide(records: Sequence[EpochRecord], config: ExpandConfig, depths: Sequence[int]) -> StopReason | None:
    """Decide whether the network trained last is done (ODN, arXiv 2510.10764: expand once converged).

    A network that has learnt nothing yet has not converged: it is given its whole budget of epochs.

    Args:
        records: all records so far, oldest first; only those of the last phase and depth count.
        config: target, confirmations, patience and caps.
        depths: the plan, ascending.

    Returns:
        The reason to stop training it, or None to train another epoch.
    """
    if not records:
        return None
    last = records[-1]
    if last.train_loss is None:
        return StopReason.NON_FINITE
    stage = newest_stage(records)
    if last.phase in ENDING_PHASES:  # annealed to the end: what comes of it is used
        if last.epoch < last.cap:
            return None
        return StopReason.TARGET_REACHED if confirmed_depths(stage, depths, config) else StopReason.EPOCH_BUDGET
    if met_depths(records, depths, config):
        return StopReason.TARGET_REACHED
    if last.epoch >= last.cap:
        return StopReason.EPOCH_BUDGET
    # An evaluation that meets the target is waiting for its confirmation: growing now would waste it.
    waiting = any(_met(one, config) for one in scores_by_depth(last, depths).values())
    if len(stage) > config.patience and has_begun(stage) and not waiting:
        before = max(record.valid_score for record in stage[: -config.patience])
        recent = max(record.valid_score for record in stage[-config.patience :])
        if recent < before + config.min_improvement:
            return StopReason.PLATEAU
    return None
