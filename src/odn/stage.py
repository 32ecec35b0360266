"""One network in training: its optimizer, averaged weights, precision and device.

Shapes: B batch, C channels, H height, W width.
"""

import logging
import math
from collections.abc import Mapping
from typing import Literal, final

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from odn.config import Precision, TrainConfig
from odn.data import Split
from odn.errors import OdnError
from odn.layers import to_channels_last
from odn.network import Prefix
from odn.schedules import Schedule

_log = logging.getLogger("odn")
_Tensors = tuple[Tensor, ...] | list[Tensor]
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
        self.rate_factor: float = previous.rate_factor if previous else 1.0
        self.micro_batches: int = previous.micro_batches if previous else 1
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
        factor = self.rate_factor * schedule(self.step / self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        x_BCHW = to_channels_last(x_BCHW)
        while True:
            try:
                loss = self._forward_and_backward(x_BCHW, labels_B)
                break
            except (RuntimeError, MemoryError) as error:
                self._halve(error, len(labels_B))
        if self.config.max_gradient_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
        self._stepper.step()
        self._stepper.zero_grad()
        self.ema.update_parameters(self.prefix)
        return loss

    def _forward_and_backward(self, x_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        total = torch.zeros((), device=self.device)
        for x, labels in zip(*(t.tensor_split(self.micro_batches) for t in (x_BCHW, labels_B)), strict=True):
            loss = self._loss(x, labels, len(labels) / len(labels_B))
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _loss(self, x: Tensor, labels: Tensor, share: float) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = F.cross_entropy(self.model(x), labels, label_smoothing=self.config.label_smoothing)
        return loss * share

    def _halve(self, error: RuntimeError | MemoryError, batch_size: int) -> None:
        """Make room after running out of memory: half as many images at a time, the same batch in all."""
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise error
        smaller = batch_size // (2 * self.micro_batches)
        if smaller < 2:
            raise OdnError(
                "out of memory with 2 images at a time; choose a smaller backbone or --image-size"
            ) from error
        self.micro_batches *= 2
        self._stepper.zero_grad()
        clear_device_cache(garbage_collection=True)
        _log.warning("out of memory: going on with %d images at a time; batches stay at %d", smaller, batch_size)

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
