"""What came of an expansion, read from its records: the depth that is kept, and the weights kept for every depth.

No torch here.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from odn.config import ExpandConfig, FinetuneConfig
from odn.growth import settle_target
from odn.records import ENDING_PHASES, EpochRecord, Phase
from odn.starting import Start
from odn.stopping import confirmed_depths, held_score, met_depths, newest_stage


@dataclass(frozen=True, kw_only=True)
class ExpandResult:
    """What expansion found.

    Attributes:
        depth: the depth kept: the shallowest one tried that holds the target, or, where none does, the one with the
            best validation score.
        reached: whether the target was reached and confirmed.
        target_accuracy: the target, or with an automatic one what it came to be.
        valid_score: of the averaged weights kept for that depth, in the metric of the data.
        records: every evaluation, oldest first.
        start: what a pretrained network brought along, with its probes; None where it started at random.
    """

    depth: int
    reached: bool
    target_accuracy: float
    valid_score: float
    records: tuple[EpochRecord, ...]
    start: Start | None = None


def holding_depths(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> set[int]:
    """Tell which depths hold the target.

    Args:
        records: of the expansion, oldest first.
        depths: the plan, ascending.
        config: a target that is known; without ``settle_epochs`` the newest network's own heads are believed.

    Returns:
        Depths, each confirmed, and whose kept weights hold it: those of the best score may have the wider interval.
    """
    if config.settle_epochs:
        ended = ended_stages(records)
        confirmed = {depth for stage in ended for depth in confirmed_depths(stage, depths, config)}
    else:
        confirmed = set(met_depths(records, depths, config))
    kept = (record for record in best_by_depth(records) if record.depth in confirmed)
    return {record.depth for record in kept if held_score(record, config) >= config.target_accuracy}


def ended_stages(records: Sequence[EpochRecord]) -> list[list[EpochRecord]]:
    """Take the epochs in which depths were trained to their end last.

    Args:
        records: of the expansion, oldest first, one or more.

    Returns:
        Those of the newest network, then those of each depth that was refined since; none where another network is
        growing or one of them is under way.
    """
    if records[-1].phase not in ENDING_PHASES or records[-1].stop is None:
        return []
    newest = newest_stage(records)
    earlier = ended_stages(records[: -len(newest)]) if newest[-1].phase == "refine" else []
    return [*earlier, newest]


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
    known = {record.depth: record for record in best_by_depth(records) if record.depth in depths}
    if config.target_accuracy:
        holding = holding_depths(records, depths, config)
    else:  # an automatic target was seen on these very scores, so that none has to be confirmed
        target = settled.target_accuracy
        holding = {depth for depth, one in known.items() if target and one.valid_score >= target}
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
    to its end.

    Args:
        records: of the expansion, oldest first.

    Returns:
        By ascending depth its own record, and the one whose weights are kept: the same where it was trained to its end,
        otherwise that of the network it is part of.
    """
    kept: dict[str, EpochRecord] = {}
    for record in records:
        for one in record.by_depth() if record.phase in ENDING_PHASES else [record]:
            name = kept_name(one.phase, one.depth)
            if one.phase not in ENDING_PHASES or name not in kept or one.valid_score >= kept[name].valid_score:
                kept[name] = one
    best: dict[int, tuple[EpochRecord, EpochRecord]] = {}
    for record in kept.values():
        for one in record.by_depth():
            # Of equals the later one, which was trained for longer.
            if one.depth not in best or _rank((one, record)) >= _rank(best[one.depth]):
                best[one.depth] = one, record
    return dict(sorted(best.items()))


def _rank(found: tuple[EpochRecord, EpochRecord]) -> tuple[float, bool]:
    """Put weights that were trained to their end above others of the same score."""
    own, kept = found
    return own.valid_score, kept.phase in ENDING_PHASES


def best_by_depth(records: Sequence[EpochRecord]) -> list[EpochRecord]:
    """Find how every depth of an expansion does with the weights kept for it.

    Args:
        records: of the expansion, oldest first.

    Returns:
        A record per depth, ascending.
    """
    return [record for record, _ in kept_by_depth(records).values()]


def finetuning_of(config: FinetuneConfig, records: Sequence[EpochRecord], depth: int) -> FinetuneConfig:
    """Say how a depth is fine-tuned after what training it has seen.

    Args:
        config: as asked for.
        records: of a run, oldest first.
        depth: number of blocks.

    Returns:
        The settings with their defaults filled in: none where the search has refined that depth already.
    """
    expansion = [record for record in records if record.verb == "expand"]
    kept = kept_by_depth(expansion)
    phase = kept[depth][1].phase if depth in kept else None
    annealed = phase in ENDING_PHASES
    # Where a grown network is kept, it was never annealed, whatever refining made of other weights.
    if config.epochs < 0 and annealed and any((one.phase, one.depth) == ("refine", depth) for one in expansion):
        config = dataclasses.replace(config, epochs=0)
    return config.resolved(annealed=annealed)


def kept_name(phase: Phase, depth: int) -> str:
    """Return the name under which weights are kept.

    Args:
        phase: in which they were trained.
        depth: number of blocks.

    Returns:
        The name of a directory: that of one depth, or of a grown network with the heads of all depths up to it.
    """
    return f"depth_{depth:03d}" if phase in ENDING_PHASES else f"trunk_{depth:03d}"
