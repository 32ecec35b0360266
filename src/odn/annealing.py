"""Annealing a network that is already good, and keeping the best of its averaged weights."""

import dataclasses
import math
from collections.abc import Generator, Sequence

from odn.checkpoint import Checkpoints
from odn.data import Split
from odn.durable import durable_epochs
from odn.records import EpochRecord, Narrowed, Phase
from odn.schedules import anneal
from odn.stage import Stage


def annealed_epochs(
    stage: Stage,
    train: Split,
    valid: Split,
    *,
    phase: Phase,
    epochs: int,
    seed: int,
    checkpoints: Checkpoints,
    kept: str,
    before: float,
    done: Sequence[EpochRecord],
    last: int = 1,
    peak: float = 1.0,
    narrowed: Narrowed | None = None,
) -> Generator[EpochRecord, None, float]:
    """Anneal the learning rate to zero, one evaluation at a time.

    Args:
        stage: what is trained, in the state that the checkpoints hold.
        train: the training split.
        valid: the validation split.
        phase: for the records.
        epochs: length of the schedule.
        seed: of the run.
        checkpoints: the memory of the run; the network as it came is kept there already.
        kept: name under which the weights that are best on the validation split are kept.
        before: validation score of the network as it came; minus infinity for one that starts at random.
        done: records of this schedule from before an interruption.
        last: so many epochs at the end are evaluated each, those before as often as ``evaluation_share`` allows.
        peak: of the learning rate, by that of fresh weights.
        narrowed: for the records.

    Yields:
        The record of every evaluation.

    Returns:
        Validation score of the kept weights; never below ``before``.
    """
    best = max([before, *(record.valid_score for record in done)])
    for record in durable_epochs(
        stage,
        train,
        valid,
        phase=phase,
        schedule=anneal(epochs, stage.config.warmup_epochs, peak),
        epochs=epochs,
        seed=seed,
        checkpoints=checkpoints,
        last=last,
    ):
        # The look at the network as it came is part of the cost.
        looked = record.evaluated_samples + (len(valid) if record.epoch == record.epochs and before > -math.inf else 0)
        record = dataclasses.replace(record, evaluated_samples=looked, narrowed=narrowed)
        # Of equals the later epoch wins: its learning rate was lower.
        if record.valid_score >= best:
            best = record.valid_score
            checkpoints.keep(kept, stage.averaged)
        checkpoints.commit(record, stage)
        yield record
    return best
