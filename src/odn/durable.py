"""Training that goes on where its checkpoint stands, saves long epochs, and steps back when it diverges."""

import logging
from collections.abc import Iterator

from odn.checkpoint import Checkpoints
from odn.data import Split
from odn.engine import DivergedError, Progress, train_epochs
from odn.errors import OdnError
from odn.processes import check_copies
from odn.records import EpochRecord, Phase
from odn.schedules import Schedule
from odn.stage import Stage

MOST_ROLLBACKS = 3
_log = logging.getLogger("odn")


def durable_epochs(
    stage: Stage,
    train: Split,
    valid: Split,
    *,
    phase: Phase,
    schedule: Schedule,
    epochs: int,
    seed: int,
    checkpoints: Checkpoints,
    last: int | None = None,
) -> Iterator[EpochRecord]:
    """Train epoch by epoch from where the checkpoints stand.

    When the loss stops being finite, training goes back to the newest saved state with half the learning rate, three
    times at most in the run of a network; the learning rate stays lowered. The caller commits every record.

    Args:
        stage: what is trained, in the state that the checkpoints hold.
        train: the training split.
        valid: the validation split.
        phase: for the records.
        schedule: factor on the learning rate as a function of the epochs trained.
        epochs: last epoch to train.
        seed: of the run.
        checkpoints: the memory of the run, begun or restored for this phase.
        last: so many epochs at the end are evaluated each, those before as often as they may; None evaluates each.

    Yields:
        The record of each evaluation, its ``stop`` still open.

    Raises:
        OdnError: when training diverges once more than it may.
    """
    pause = 60 * stage.config.checkpoint_minutes
    while True:
        try:
            for item in train_epochs(
                stage,
                train,
                valid,
                phase=phase,
                schedule=schedule,
                epochs=epochs,
                seed=seed,
                last=last,
                start=checkpoints.progress,
                pause_seconds=pause,
            ):
                if isinstance(item, Progress):
                    checkpoints.save(phase, item, stage)
                else:
                    if not stage.sharded:
                        check_copies(stage.network, stage.averaged)
                    yield item
            return
        except DivergedError as error:
            if stage.rate_factor <= 0.5**MOST_ROLLBACKS:
                raise OdnError(
                    f"{error}; lowering the learning rate {MOST_ROLLBACKS} times did not help: look at these images, "
                    "lower train.learning_rate in the recipe, or use --precision fp32"
                ) from error
            factor = stage.rate_factor / 2
            checkpoints.restore(stage)
            stage.rate_factor = factor
            checkpoints.save(phase, checkpoints.progress, stage)
            _log.warning("%s; going back to the last good state with the learning rate times %g", error, factor)
