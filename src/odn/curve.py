"""How every depth does, read from the records of a training. No torch here."""

import dataclasses
from collections.abc import Sequence

from odn.config import ExpandConfig
from odn.growth import settle_target
from odn.outcome import ExpandResult, best_by_depth
from odn.records import EpochRecord
from odn.stopping import meets_target

# By ascending depth, the record of the epoch whose weights are kept for it.
Curve = tuple[EpochRecord, ...]


def curve_of(records: Sequence[EpochRecord]) -> Curve:
    """Find how every depth that was trained does with the weights kept.

    Args:
        records: of expansion, or of training all depths at once; others are left out.

    Returns:
        A record per depth. Those of training all depths at once are of one epoch, the best in their mean; of equals the
        later one, as ``annealed_epochs`` keeps it. Expansion keeps those that ``best_by_depth`` says.
    """
    best = {one.depth: one for one in best_by_depth([record for record in records if record.verb == "expand"])}
    together: EpochRecord | None = None
    for record in records:
        if record.verb == "oneshot":
            together = record if together is None or record.valid_score >= together.valid_score else together
    if together is not None:
        best |= {record.depth: record for record in together.by_depth()}
    return tuple(best[depth] for depth in sorted(best))


def curve_result(records: Sequence[EpochRecord], config: ExpandConfig) -> ExpandResult:
    """Choose a depth from a curve as expansion would: the shallowest that holds the target.

    Args:
        records: of training all depths at once, one or more.
        config: the target; an automatic one is the best score less ``config.within``.

    Returns:
        The chosen depth; where none holds the target, the shallowest of those with the best score.
    """
    curve = curve_of(records)
    best = max(curve, key=lambda record: record.valid_score)
    target = config.target_accuracy or best.valid_score - config.within
    settled = dataclasses.replace(config, target_accuracy=target) if target > 0 else config
    holding = [
        record
        for record in curve
        if meets_target(record.metric, record.valid_score, record.valid_error, record.valid_count, settled)
    ]
    chosen = holding[0] if holding else best
    return ExpandResult(
        depth=chosen.depth,
        reached=bool(holding),
        target_accuracy=settled.target_accuracy,
        valid_score=chosen.valid_score,
        records=tuple(records),
    )


def settle_goal(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> ExpandConfig:
    """Fill in an automatic target from what training showed, whichever way the backbone was trained.

    Args:
        records: of a run, oldest first.
        depths: the plan, ascending.
        config: the target; 0 stands for an automatic one.

    Returns:
        The settings with the target filled in, or as they were where it is given or not yet known.
    """
    if any(record.verb == "oneshot" for record in records):
        return dataclasses.replace(config, target_accuracy=curve_result(records, config).target_accuracy)
    return settle_target(records, depths, config)
