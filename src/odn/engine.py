"""Training as a visible loop: the caller looks at each evaluation's record and stops with a plain ``break``.

Shapes: B batch, C channels, H height, W width.
"""

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol, TypeVar, cast

import torch

from odn.data import Split, derive_seed, training_batches
from odn.evaluation import evaluate, evaluate_depths, recalibrate, seed_torch
from odn.metrics import NotFiniteError
from odn.network import PartitionedNetwork
from odn.processes import agree, copy_from_first, total
from odn.records import EpochRecord, Phase
from odn.schedules import Schedule, is_evaluated
from odn.stage import Stage, describe_break

Result = TypeVar("Result")


class Watch(Protocol):
    """Runs a training generator to its end, and may show its records on the way."""

    def __call__(self, epochs: Generator[EpochRecord, None, Result], /) -> Result:
        """Return the generator's result."""


def finish(epochs: Generator[EpochRecord, None, Result]) -> Result:
    """Run a training generator to its end.

    Args:
        epochs: yields records and returns a result.

    Returns:
        That result.
    """
    while True:
        try:
            next(epochs)
        except StopIteration as stop:
            return cast(Result, stop.value)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands within one phase of one depth.

    Attributes:
        epoch: the epoch that is going on or comes next, from 1.
        batches: batches of it that are done.
        epochs: whole ones before it that no evaluation has followed yet.
        loss_sum: summed over the samples of both.
        seconds: spent on them.
    """

    epoch: int = 1
    batches: int = 0
    epochs: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0


class DivergedError(Exception):
    """The loss or what the network answers is no longer finite; the message says since when and where."""


def train_epochs(
    stage: Stage,
    train: Split,
    valid: Split,
    *,
    phase: Phase,
    schedule: Schedule,
    epochs: int,
    seed: int,
    last: int | None = None,
    start: Progress | None = None,
    pause_seconds: float = math.inf,
) -> Iterator[EpochRecord | Progress]:
    """Train epoch by epoch, judging the averaged weights on the validation split after each, or after some.

    All randomness of a batch follows from the seed, the phase, the depth, the epoch and its number, so that a
    resumed training continues exactly as an uninterrupted one, also within an epoch.

    Args:
        stage: what is trained.
        train: the training split.
        valid: the validation split.
        phase: for the records.
        schedule: factor on the learning rate as a function of the epochs trained.
        epochs: last epoch to train.
        seed: of the run.
        last: so many epochs at the end are evaluated each, those before them as ``evaluation_share`` allows; None
            evaluates every epoch, for a caller who may stop after any.
        start: where to continue; None means at the first epoch.
        pause_seconds: yield the progress after so much training without an evaluation, for it to be saved.

    Yields:
        The record of every evaluation, its ``stop`` still open, and where these are long in coming, how far training
        has come.

    Raises:
        DivergedError: when the loss or the answers stop being finite.
    """
    interval = evaluation_interval(stage, train, valid)
    progress = start or Progress()
    pausing = time.perf_counter() + pause_seconds
    while progress.epoch <= epochs:
        epoch = progress.epoch
        progress, late = _train_on(stage, train, phase, schedule, seed, progress, pausing)
        if progress.epoch > epoch and is_evaluated(epoch, epochs, interval, epochs if last is None else last):
            yield _judge(stage, train, valid, phase, schedule, epochs, seed, progress)
            progress = Progress(epoch=progress.epoch)
        elif late:
            yield progress
        else:
            continue
        pausing = time.perf_counter() + pause_seconds


def evaluation_interval(stage: Stage, train: Split, valid: Split) -> int:
    """Say how many epochs pass from one evaluation to the next where nothing is decided between them.

    Args:
        stage: the training.
        train: the training split.
        valid: the validation split.

    Returns:
        The fewest with which the forward passes of evaluating cost at most ``evaluation_share`` of learning.
    """
    evaluated = min(stage.config.recalibration_images, len(train)) + len(valid)
    learnt = 3 * stage.steps_per_epoch * stage.images_per_step  # backward costs twice as much as forward
    return max(math.ceil(evaluated / (learnt * stage.config.evaluation_share)), 1)


def _train_on(
    stage: Stage, train: Split, phase: Phase, schedule: Schedule, seed: int, progress: Progress, pausing: float
) -> tuple[Progress, bool]:
    """Train to the end of an epoch or until it is late, and say how far training has come and whether it is late."""
    depth, epoch, done = stage.network.depth, progress.epoch, progress.batches
    begin = time.perf_counter()
    epoch_seed = derive_seed(seed, phase, depth, epoch)
    loss_sum = torch.tensor(progress.loss_sum, device=stage.device)
    late = False
    batches = training_batches(train, stage.batch_size, stage.device, seed=epoch_seed, first=done, share=stage.share)
    stage.model.train()
    with torch.random.fork_rng():
        for x_BCHW, labels_B in batches:
            seed_torch(stage.device, derive_seed(epoch_seed, "step", done))
            loss_sum += stage.train_step(x_BCHW, labels_B, schedule) * stage.images_per_step
            done += 1
            # Looking at the loss makes GPUs and other processes wait, so there it is looked at now and then.
            seldom = stage.device.type != "cpu" or stage.share.world > 1
            if seldom and done % 16 and done < stage.steps_per_epoch:
                continue
            passed = torch.tensor(float(time.perf_counter() > pausing), device=stage.device)
            state = total(torch.stack([loss_sum, passed]))
            if not math.isfinite(float(state[0])):
                raise DivergedError(describe_break(stage, train, depth, epoch, done, epoch_seed))
            late = bool(state[1] > 0)
            if late:
                break
    over = done >= stage.steps_per_epoch
    reached = Progress(
        epoch=epoch + over,
        batches=0 if over else done,
        epochs=progress.epochs + over,
        loss_sum=float(total(loss_sum)) / stage.share.world,
        seconds=progress.seconds + time.perf_counter() - begin,
    )
    return reached, late


def _judge(
    stage: Stage, train: Split, valid: Split, phase: Phase, schedule: Schedule, cap: int, seed: int, progress: Progress
) -> EpochRecord:
    """Evaluate the averaged weights as they are before the epoch at which training stands."""
    depth, epoch = stage.network.depth, progress.epoch - 1
    begin = time.perf_counter()
    for network in (stage.network, stage.averaged):
        copy_from_first(network.buffers())
    recalibrated = recalibrate(stage.averaged, train, stage.config.recalibration_images, seed=seed, together=True)
    averaged = stage.averaged
    try:
        apart = evaluate_depths(averaged, valid, together=True) if isinstance(averaged, PartitionedNetwork) else []
        scores = apart or [evaluate(averaged, valid, together=True)]
    except NotFiniteError as error:
        epoch_seed = derive_seed(seed, phase, depth, epoch)
        raise DivergedError(describe_break(stage, train, depth, epoch, stage.steps_per_epoch, epoch_seed)) from error
    samples = progress.epochs * stage.steps_per_epoch * stage.images_per_step
    record = EpochRecord(
        phase=phase,
        depth=depth,
        epoch=epoch,
        cap=cap,
        learning_rate=stage.learning_rate(schedule),
        train_loss=progress.loss_sum / samples,
        valid_score=fmean(score.value for score in scores),
        valid_error=fmean(score.error for score in scores),
        valid_count=scores[0].count,
        metric=scores[0].metric,
        trivial_score=valid.spec.trivial_score,
        epochs=progress.epochs,
        scores=tuple(score.value for score in apart),
        errors=tuple(score.error for score in apart),
        train_samples=samples,
        evaluated_samples=recalibrated + len(valid),
        seconds=progress.seconds + time.perf_counter() - begin,
    )
    return agree(record)
