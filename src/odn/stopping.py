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


def scores_by_depth(record: EpochRecord, depths: Sequence[int]) -> dict[int, EpochRecord]:
    """Take the planned depths out of an epoch in which several were trained together.

    Args:
        record: of the epoch.
        depths: the plan.

    Returns:
        A record of its own for each.
    """
    return {one.depth: one for one in record.by_depth() if one.depth in depths}


def met_depths(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> list[int]:
    """List the depths that meet the target in the newest epochs of one network, as many as confirmations are asked for.

    Args:
        records: oldest first.
        depths: the plan, ascending.
        config: target and number of confirmations.

    Returns:
        Ascending depths.
    """
    last = records[-1]
    newest = list(takewhile(lambda r: (r.phase, r.depth) == (last.phase, last.depth), reversed(records)))
    newest = newest[: config.confirmations]
    if len(newest) < config.confirmations:
        return []
    apart = [scores_by_depth(record, depths) for record in newest]
    return [depth for depth in apart[0] if all(_met(scores[depth], config) for scores in apart)]


def near(record: EpochRecord, depths: Sequence[int], config: ExpandConfig) -> bool:
    """Tell whether a network whose growth has ended deserves to be annealed before more blocks are attached.

    At a constant learning rate averaged weights stay short of what annealing reaches (warm-up, stable, decay: Hu et
    al., arXiv 2404.06395).

    Args:
        record: its last epoch at a constant learning rate.
        depths: the plan.
        config: target, and how far from it is near.

    Returns:
        True when its best depth makes at most ``config.reach`` times as many errors per correct answer as the target
        allows: what annealing and training alone bring is much the same for easy data as for difficult ones then.
    """
    best = max(one.valid_score for one in scores_by_depth(record, depths).values())
    return _odds(best) <= config.reach * _odds(config.target_accuracy)


def _odds(score: float) -> float:
    return (1 - score) / score if score > 0 else math.inf  # R² may lie below


def trunk_of(records: Sequence[EpochRecord]) -> int:
    """Say how deep the newest network is in which all depths were trained together.

    Args:
        records: of the expansion, oldest first, one or more.

    Returns:
        Its blocks.
    """
    return next(record.depth for record in reversed(records) if record.phase != "settle")


def cap_of(phase: Phase, config: ExpandConfig, steps_per_epoch: int) -> int:
    """Return the most epochs that a phase of expansion may take at one depth.

    Args:
        phase: ``expand``, ``cooldown`` or ``settle``.
        config: the caps.
        steps_per_epoch: of the optimizer; small datasets need more epochs for as many steps.

    Returns:
        Number of epochs; of growing, where it has no cap of its own, 4, or as many as 500 steps take, at most 20. Those
        of annealing are raised likewise where an epoch has less than 80 steps, to three times as many at most.
    """
    if phase == "expand":
        return config.epochs_per_depth or min(max(4, math.ceil(500 / steps_per_epoch)), 20)
    epochs = config.cooldown_epochs if phase == "cooldown" else config.settle_epochs
    return math.ceil(epochs * min(max(1.0, 80 / steps_per_epoch), 3.0))


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


def growth_is_over(records: Sequence[EpochRecord], depths: Sequence[int]) -> bool:
    """Tell whether growing has shown what the data give, for an automatic target.

    It has when the last two networks each gained less than one standard error over the best before them, which had
    learnt something, or when nothing deeper is planned.

    Args:
        records: of the expansion, oldest first.
        depths: the plan, ascending.

    Returns:
        Whether it is over.
    """
    growing = [record for record in records if record.phase == "expand"]
    best: EpochRecord | None = None
    idle = 0
    for _, group in groupby(growing, key=lambda record: record.depth):
        last = list(group)[-1]
        if last.stop is None:
            return False
        top = max(scores_by_depth(last, depths).values(), key=lambda record: record.valid_score)
        if best is not None:
            flat = top.valid_score - best.valid_score < best.valid_error
            idle = idle + 1 if flat and has_begun([best]) else 0
        best = top if best is None else max(best, top, key=lambda record: record.valid_score)
    return idle >= 2 or growing[-1].depth == depths[-1]


def settle_target(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> ExpandConfig:
    """Fill in an automatic target once it is known.

    It is what the best depth of the annealed network would reach on its own, less ``config.within``; where the depth
    that was chosen for it falls short of that, what it did reach.

    Args:
        records: of the expansion, oldest first.
        depths: the plan, ascending.
        config: the target; 0 stands for an automatic one.

    Returns:
        The settings with the target filled in, or as they were where it is given, not yet known, or an R² that is not
        above that of one answer for every sample.
    """
    joint = [record for record in records if record.phase in ("expand", "cooldown")]
    if config.target_accuracy or not joint or joint[-1].stop is None:
        return config
    known = joint[-1].phase == "cooldown" or (not config.cooldown_epochs and growth_is_over(records, depths))
    if not known:
        return config
    best = max(one.valid_score for one in scores_by_depth(joint[-1], depths).values())
    if config.settle_epochs:
        best = 1 - config.gain * (1 - best)
    target = best - config.within
    last = records[-1]
    if last.phase == "settle" and last.stop is not None:
        alone = [record for record in records if (record.phase, record.depth) == (last.phase, last.depth)]
        reached = [*alone, scores_by_depth(joint[-1], depths)[last.depth]]
        target = min(target, max(record.valid_score for record in reached))
    return dataclasses.replace(config, target_accuracy=max(target, 0.0))


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
    stage = list(takewhile(lambda r: (r.phase, r.depth) == (last.phase, last.depth), reversed(records)))[::-1]
    if last.phase != "expand":  # annealed to the end: what comes of it is used
        if len(stage) < last.cap:
            return None
        held = confirmed(stage, config) if last.phase == "settle" else bool(met_depths(records, depths, config))
        return StopReason.TARGET_REACHED if held else StopReason.EPOCH_BUDGET
    if met_depths(records, depths, config):
        return StopReason.TARGET_REACHED
    if len(stage) >= last.cap:
        return StopReason.EPOCH_BUDGET
    # An evaluation that meets the target is waiting for its confirmation: growing now would waste it.
    if len(stage) > config.patience and has_begun(stage) and not _met(last, config):
        before = max(record.valid_score for record in stage[: -config.patience])
        recent = max(record.valid_score for record in stage[-config.patience :])
        if recent < before + config.min_improvement:
            return StopReason.PLATEAU
    return None
