"""Training and evaluation as visible loops: the caller looks at each epoch's record and stops with a plain ``break``.

Shapes: B batch, C channels, H height, W width.
"""

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol, TypeVar, cast

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from odn.data import WHOLE, Split, derive_seed, plain_batches, training_batches
from odn.layers import lay_out
from odn.metrics import NotFiniteError, Score, Tally
from odn.network import PartitionedNetwork
from odn.processes import agree, copy_from_first, share, total
from odn.records import EpochRecord, Phase
from odn.schedules import Schedule
from odn.stage import Stage, describe_break

_EVALUATION_BATCH = 256


def evaluate(network: nn.Module, split: Split, device: torch.device | None = None, *, together: bool = False) -> Score:
    """Judge a network in the metric of a split's task, in fp32 and evaluation mode.

    Args:
        network: gives outputs of shape (B, K), for segmentation (B, K, H, W); its mode is restored.
        split: the samples.
        device: where to evaluate; None means where the network's weights are.
        together: several processes look at a part each; all have to call this.

    Returns:
        Its score.
    """
    return _evaluate(network, split, 1, device, together=together)[0]


def evaluate_depths(
    network: PartitionedNetwork, split: Split, device: torch.device | None = None, *, together: bool = False
) -> list[Score]:
    """Judge every depth of a network in one pass over a split, each as ``evaluate`` would.

    Args:
        network: its mode is restored.
        split: the samples.
        device: where to evaluate; None means where the network's weights are.
        together: several processes look at a part each; all have to call this.

    Returns:
        A score per depth that has a head, ascending.
    """
    return _evaluate(network, split, len(network.heads), device, together=together)


def _evaluate(
    network: nn.Module, split: Split, heads: int, device: torch.device | None, *, together: bool
) -> list[Score]:
    part = share() if together else WHOLE
    device = device or next(network.parameters()).device
    training = network.training
    network.eval()
    tallies = [Tally(split.spec.task, len(split.spec.classes), len(split), device) for _ in range(heads)]
    mine = torch.arange(len(split), device=device)[part.rank :: part.world].split(_EVALUATION_BATCH)
    with torch.no_grad():
        count = 0
        for x_BCHW, labels_B in plain_batches(split, _EVALUATION_BATCH, device, share=part):
            outputs = network(lay_out(x_BCHW))
            for tally, logits in zip(tallies, outputs if isinstance(outputs, list) else [outputs], strict=True):
                tally.add(logits, labels_B, mine[count])
            count += 1
        # Parts of a sharded network come from the others, who may have one batch more.
        most = math.ceil(math.ceil(len(split) / part.world) / _EVALUATION_BATCH)
        for _ in range(most - count):
            nothing = torch.zeros(1, *split.spec.input_shape, dtype=torch.uint8, device=device)
            network(split.spec.preprocessing.prepare(nothing))
    network.train(training)
    if together:
        for tally in tallies:
            tally.sums = total(tally.sums)
    return [tally.score(split.spec.metric) for tally in tallies]


def recalibrate(network: nn.Module, train: Split, count: int, *, seed: int, together: bool = False) -> int:
    """Recompute BatchNorm statistics for the weights as they are, from a fixed subset of training images.

    Args:
        network: its BatchNorm layers are reset and filled; a network without any is left alone.
        train: the training split.
        count: images to use.
        seed: of the subset.
        together: several processes look at a part each; all have to call this.

    Returns:
        Images that were passed forward, whole batches.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return 0
    part = share() if together else WHOLE
    device = next(network.parameters()).device
    count = min(count, len(train))
    batch_size = max(min(_EVALUATION_BATCH, count // part.world), 1)
    count -= count % (batch_size * part.world)  # every batch weighs the same, and every process has as many
    with torch.random.fork_rng():
        _seed(device, derive_seed(seed, "recalibrate"))
        batches = plain_batches(train, batch_size, device, count=count, seed=seed, share=part)
        update_bn((lay_out(x) for x, _ in batches), network)
    if part.world > 1:
        for statistics in (buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)):
            if statistics is not None:
                statistics.copy_(total(statistics) / part.world)
    return count


def _seed(device: torch.device, seed: int) -> None:
    if device.type == "cpu":
        # torch.manual_seed formats a stack for every accelerator that is not in use, 0.07 ms each time.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


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
        loss_sum: summed over their samples.
        seconds: spent on them.
    """

    epoch: int = 1
    batches: int = 0
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
    start: Progress | None = None,
    pause_seconds: float = math.inf,
) -> Iterator[EpochRecord | Progress]:
    """Train epoch by epoch, judging the averaged weights on the validation split after each.

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
        start: where to continue; None means at the first epoch.
        pause_seconds: yield the progress after so much training within an epoch, for it to be saved.

    Yields:
        The record of each epoch, its ``stop`` still open, and within long epochs how far they have come.

    Raises:
        DivergedError: when the loss or the answers stop being finite.
    """
    start = start or Progress()
    for epoch in range(start.epoch, epochs + 1):
        progress = start if epoch == start.epoch else Progress(epoch=epoch)
        yield from _train_epoch(
            stage,
            train,
            valid,
            phase=phase,
            schedule=schedule,
            cap=epochs,
            seed=seed,
            progress=progress,
            pause=pause_seconds,
        )


def _train_epoch(
    stage: Stage,
    train: Split,
    valid: Split,
    *,
    phase: Phase,
    schedule: Schedule,
    cap: int,
    seed: int,
    progress: Progress,
    pause: float,
) -> Iterator[EpochRecord | Progress]:
    depth, epoch = stage.network.depth, progress.epoch
    begin = time.perf_counter()
    epoch_seed = derive_seed(seed, phase, depth, epoch)
    loss_sum = torch.tensor(progress.loss_sum, device=stage.device)
    done, samples = progress.batches, progress.batches * stage.images_per_step
    batches = training_batches(train, stage.batch_size, stage.device, seed=epoch_seed, first=done, share=stage.share)
    stage.model.train()
    over = False
    while not over:
        over, pausing = True, time.perf_counter() + pause
        with torch.random.fork_rng():
            for x_BCHW, labels_B in batches:
                _seed(stage.device, derive_seed(epoch_seed, "step", done))
                loss_sum += stage.train_step(x_BCHW, labels_B, schedule) * stage.images_per_step
                done, samples = done + 1, samples + stage.images_per_step
                # Looking at the loss makes GPUs and other processes wait, so there it is looked at now and then.
                if done % 16 and (stage.device.type != "cpu" or stage.share.world > 1):
                    continue
                late = torch.tensor(float(time.perf_counter() > pausing), device=stage.device)
                state = total(torch.stack([loss_sum, late]))
                if not math.isfinite(float(state[0])):
                    raise DivergedError(describe_break(stage, train, depth, epoch, done, epoch_seed))
                if state[1] > 0:
                    over = False
                    break
        if not over:
            seconds = progress.seconds + time.perf_counter() - begin
            mean = float(total(loss_sum)) / stage.share.world
            yield Progress(epoch=epoch, batches=done, loss_sum=mean, seconds=seconds)
    loss = float(total(loss_sum)) / stage.share.world / samples
    if not math.isfinite(loss):
        raise DivergedError(describe_break(stage, train, depth, epoch, done, epoch_seed))
    for network in (stage.network, stage.averaged):
        copy_from_first(network.buffers())
    recalibrated = recalibrate(stage.averaged, train, stage.config.recalibration_images, seed=seed, together=True)
    averaged = stage.averaged
    try:
        apart = evaluate_depths(averaged, valid, together=True) if isinstance(averaged, PartitionedNetwork) else []
        scores = apart or [evaluate(averaged, valid, together=True)]
    except NotFiniteError as error:
        raise DivergedError(describe_break(stage, train, depth, epoch, done, epoch_seed)) from error
    record = EpochRecord(
        phase=phase,
        depth=depth,
        epoch=epoch,
        cap=cap,
        learning_rate=stage.learning_rate(schedule),
        train_loss=loss,
        valid_score=fmean(score.value for score in scores),
        valid_error=fmean(score.error for score in scores),
        valid_count=scores[0].count,
        metric=scores[0].metric,
        trivial_score=valid.spec.trivial_score,
        scores=tuple(score.value for score in apart),
        errors=tuple(score.error for score in apart),
        train_samples=samples,
        evaluated_samples=recalibrated + len(valid),
        seconds=progress.seconds + time.perf_counter() - begin,
    )
    yield agree(record)
