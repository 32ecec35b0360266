"""Training and evaluation as visible loops: the caller looks at each epoch's record and stops with a plain ``break``.

Shapes: B batch, C channels, H height, W width.
"""

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from odn.data import Split, derive_seed, epoch_order, plain_batches, training_batches
from odn.layers import to_channels_last
from odn.records import EpochRecord, Phase
from odn.schedules import Schedule
from odn.stage import Stage

_EVALUATION_BATCH = 256


def evaluate(network: nn.Module, split: Split, device: torch.device | None = None) -> int:
    """Count the images that a network classifies correctly, in fp32 and evaluation mode.

    Args:
        network: gives logits of shape (B, K); its mode is restored.
        split: the images.
        device: where to evaluate; None means where the network's weights are.

    Returns:
        Number of correct images, 0 to ``len(split)``.
    """
    device = device or next(network.parameters()).device
    training = network.training
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with torch.no_grad():
        for x_BCHW, labels_B in plain_batches(split, _EVALUATION_BATCH, device):
            correct += (network(to_channels_last(x_BCHW)).argmax(1) == labels_B).sum()
    network.train(training)
    return int(correct)


def recalibrate(network: nn.Module, train: Split, count: int, *, seed: int) -> int:
    """Recompute BatchNorm statistics for the weights as they are, from a fixed subset of training images.

    Args:
        network: its BatchNorm layers are reset and filled; a network without any is left alone.
        train: the training split.
        count: images to use.
        seed: of the subset.

    Returns:
        Images that were passed forward, whole batches.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return 0
    device = next(network.parameters()).device
    batch_size = min(_EVALUATION_BATCH, count, len(train))
    count = min(count, len(train)) // batch_size * batch_size  # every batch weighs the same
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "recalibrate"))
        batches = plain_batches(train, batch_size, device, count=count, seed=seed)
        update_bn((to_channels_last(x) for x, _ in batches), network)
    return count


Result = TypeVar("Result")


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
    """The loss is no longer finite; the message says since when and where."""


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
        DivergedError: when the loss stops being finite.
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
    depth, epoch = stage.prefix.depth, progress.epoch
    begin = time.perf_counter()
    epoch_seed = derive_seed(seed, phase, depth, epoch)
    loss_sum = torch.tensor(progress.loss_sum, device=stage.device)
    done, samples = progress.batches, progress.batches * stage.batch_size
    batches = training_batches(train, stage.batch_size, stage.device, seed=epoch_seed, first=done)
    stage.model.train()
    over = False
    while not over:
        over, pausing = True, time.perf_counter() + pause
        with torch.random.fork_rng():
            for x_BCHW, labels_B in batches:
                torch.manual_seed(derive_seed(epoch_seed, "step", done))
                loss_sum += stage.train_step(x_BCHW, labels_B, schedule) * len(labels_B)
                done, samples = done + 1, samples + len(labels_B)
                # Looking at the loss makes a GPU wait, so there it is looked at now and then.
                if (stage.device.type == "cpu" or done % 16 == 0) and not math.isfinite(float(loss_sum)):
                    raise DivergedError(_where(stage, train, depth, epoch, done, epoch_seed))
                if time.perf_counter() > pausing:
                    over = False
                    break
        if not over:
            seconds = progress.seconds + time.perf_counter() - begin
            yield Progress(epoch=epoch, batches=done, loss_sum=float(loss_sum), seconds=seconds)
    loss = float(loss_sum) / samples
    if not math.isfinite(loss):
        raise DivergedError(_where(stage, train, depth, epoch, done, epoch_seed))
    recalibrated = recalibrate(stage.averaged, train, stage.config.recalibration_images, seed=seed)
    correct = evaluate(stage.averaged, valid)
    yield EpochRecord(
        phase=phase,
        depth=depth,
        epoch=epoch,
        cap=cap,
        learning_rate=stage.optimizer.param_groups[0]["lr"],
        train_loss=loss,
        valid_correct=correct,
        valid_count=len(valid),
        train_samples=samples,
        evaluated_samples=recalibrated + len(valid),
        seconds=progress.seconds + time.perf_counter() - begin,
    )


def _where(stage: Stage, train: Split, depth: int, epoch: int, batches: int, epoch_seed: int) -> str:
    broken = next((n for n, p in stage.prefix.named_parameters() if not bool(torch.isfinite(p).all())), "none yet")
    order = epoch_order(train, stage.batch_size, seed=epoch_seed)
    images = order[max(batches - 1, 0) * stage.batch_size :][: stage.batch_size]
    names = ", ".join(train.name(int(index)) for index in images[:3])
    return (
        f"the loss became infinite or NaN at depth {depth}, epoch {epoch}, step {batches} of {stage.steps_per_epoch}; "
        f"first broken parameter: {broken}; images of that step: {names} and {len(images) - 3} more"
    )
