"""Training and evaluation: the only code that knows of optimizers, devices and precision.

The loop is a generator: the caller looks at each epoch's record and stops with a plain ``break``.
Shapes: B batch, C channels, H height, W width.
"""

import math
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Literal, TypeVar, cast, final

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from odn.config import Precision, TrainConfig
from odn.data import Split, derive_seed, plain_batches, training_batches
from odn.network import Prefix
from odn.records import EpochRecord, Phase
from odn.schedules import Schedule

_Tensors = tuple[Tensor, ...] | list[Tensor]
_EVALUATION_BATCH = 256
_MAX_EMA_STEPS = 2000


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Choose the arithmetic of training.

    Args:
        precision: as asked for; ``auto`` takes bf16 where the hardware computes it natively.
        device: on which training runs.

    Returns:
        ``fp32`` or ``bf16``.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"


def training_device() -> torch.device:
    """Return the device on which this process trains and evaluates.

    Returns:
        As Accelerate chooses it: a GPU where there is one, else the CPU.
    """
    return torch.device(Accelerator().device)


def batch_size_for(config: TrainConfig, train_count: int) -> int:
    """Choose the number of images per step.

    Args:
        config: may name it.
        train_count: images in the training split.

    Returns:
        The batch size asked for, or a 64th of the images, rounded down to a power of two between 16 and 256.
    """
    if config.batch_size:
        return config.batch_size
    return min(max(1 << (max(train_count // 64, 1).bit_length() - 1), 16), 256)


@final
class Stage:
    """The training of one network: it owns the wrapper, the optimizer and the averaged weights.

    A new depth gets a new stage, because an optimizer or a distributed wrapper cannot grow.

    Args:
        prefix: the network, holding exactly the parameters to train; it moves to the training device.
        config: optimizer, batch size, averaging.
        train: the training split, for the number of steps per epoch.
        previous: the stage whose optimizer state is carried over, if any.
        same_as: for parameters that are copies of a parameter of ``previous``, that parameter; parameters
            shared by both stages are found by identity.
    """

    def __init__(
        self,
        prefix: Prefix,
        config: TrainConfig,
        train: Split,
        *,
        previous: "Stage | None" = None,
        same_as: Mapping[nn.Parameter, nn.Parameter] | None = None,
    ) -> None:
        self.config = config
        self.accelerator = Accelerator()
        self.device: torch.device = self.accelerator.device
        self.precision = resolve_precision(config.precision, self.device)
        self.batch_size = batch_size_for(config, len(train))
        self.steps_per_epoch = max(len(train) // self.batch_size, 1)
        self.step = 0
        # Convolutions of small images are up to twice as fast with channels last, on CPUs as on GPUs.
        self.prefix = prefix.to(self.device).to(memory_format=torch.channels_last)
        self.ema = AveragedModel(self.prefix, multi_avg_fn=self._average)
        self.optimizer: torch.optim.Optimizer = _make_optimizer(self.prefix, config, self.batch_size)
        if previous is not None:
            _carry_over(previous.optimizer, self.optimizer, same_as or {})
        self.model, self._stepper = self.accelerator.prepare(self.prefix, self.optimizer)

    @property
    def averaged(self) -> Prefix:
        """The network with averaged weights: the one that is judged, kept and deployed."""
        module = self.ema.module
        assert isinstance(module, Prefix)
        return module

    def train_step(self, x_BCHW: Tensor, labels_B: Tensor, schedule: Schedule) -> Tensor:
        """Train on one batch.

        Args:
            x_BCHW: normalised images.
            labels_B: their classes.
            schedule: factor on the learning rate.

        Returns:
            Mean loss of the batch, a tensor without gradient.
        """
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule(self.step / self.steps_per_epoch)
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = F.cross_entropy(self.model(x_BCHW), labels_B, label_smoothing=self.config.label_smoothing)
        self.accelerator.backward(loss)
        if self.config.max_gradient_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
        self._stepper.step()
        self._stepper.zero_grad()
        self.ema.update_parameters(self.prefix)
        return loss.detach()

    def _average(self, averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        horizon = min(max(self.config.ema_epochs * self.steps_per_epoch, 10.0), _MAX_EMA_STEPS)
        # Early on, the average reaches back over a fixed share of the steps so far: it forgets its start.
        decay = min(1 - 1 / horizon, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(averaged, current, count)


def _make_optimizer(prefix: Prefix, config: TrainConfig, batch_size: int) -> torch.optim.Optimizer:
    sgd = config.optimizer == "sgd"
    # Linear scaling for SGD (Goyal et al., arXiv 1706.02677), square root for Adam (Malladi et al., arXiv 2205.10287).
    batches = batch_size / 128
    rate = config.learning_rate or (0.1 * batches if sgd else 0.002 * math.sqrt(batches))
    decay = config.weight_decay if config.weight_decay >= 0 else (5e-4 if sgd else 0.05)
    weights = [p for p in prefix.parameters() if p.ndim >= 2]
    others = [p for p in prefix.parameters() if p.ndim < 2]
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    for group in groups:
        group["initial_lr"] = rate
    if sgd:
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=rate)


def _carry_over(
    old: torch.optim.Optimizer, new: torch.optim.Optimizer, same_as: Mapping[nn.Parameter, nn.Parameter]
) -> None:
    for group in new.param_groups:
        for parameter in group["params"]:
            state = old.state.get(same_as.get(parameter, parameter))
            if state:
                new.state[parameter] = {
                    key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()
                }


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
            x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
            correct += (network(x_BCHW).argmax(1) == labels_B).sum()
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
        update_bn((x.contiguous(memory_format=torch.channels_last) for x, _ in batches), network)
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


def train_epochs(
    stage: Stage,
    train: Split,
    valid: Split,
    *,
    phase: Phase,
    schedule: Schedule,
    epochs: int,
    seed: int,
    first_epoch: int = 1,
) -> Iterator[EpochRecord]:
    """Train epoch by epoch, judging the averaged weights on the validation split after each.

    All randomness of an epoch follows from the seed, the phase, the depth and the epoch, so that a resumed
    training continues exactly as an uninterrupted one.

    Args:
        stage: what is trained.
        train: the training split.
        valid: the validation split.
        phase: for the records.
        schedule: factor on the learning rate as a function of the epochs trained.
        epochs: last epoch to train.
        seed: of the run.
        first_epoch: where to continue.

    Yields:
        The record of each epoch, its ``stop`` still open.
    """
    depth = stage.prefix.depth
    for epoch in range(first_epoch, epochs + 1):
        start = time.perf_counter()
        epoch_seed = derive_seed(seed, phase, depth, epoch)
        stage.model.train()
        loss_sum = torch.zeros((), device=stage.device)
        samples = 0
        with torch.random.fork_rng():
            torch.manual_seed(epoch_seed)
            for x_BCHW, labels_B in training_batches(train, stage.batch_size, stage.device, seed=epoch_seed):
                loss_sum += stage.train_step(x_BCHW, labels_B, schedule) * len(labels_B)
                samples += len(labels_B)
        loss = float(loss_sum) / samples
        recalibrated = recalibrate(stage.averaged, train, stage.config.recalibration_images, seed=seed)
        correct = evaluate(stage.averaged, valid)
        yield EpochRecord(
            phase=phase,
            depth=depth,
            epoch=epoch,
            learning_rate=stage.optimizer.param_groups[0]["lr"],
            train_loss=loss if math.isfinite(loss) else None,
            valid_correct=correct,
            valid_count=len(valid),
            train_samples=samples,
            evaluated_samples=recalibrated + len(valid),
            seconds=time.perf_counter() - start,
        )
