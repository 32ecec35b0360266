"""One network in training: its optimizer, averaged weights, precision and device.

Shapes: B batch, C channels, H height, W width.
"""

import contextlib
import copy
import logging
from collections.abc import Mapping
from typing import Literal, final

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from odn.config import Precision, TrainConfig
from odn.data import Split, epoch_order
from odn.errors import OdnError, UsageError
from odn.layers import lay_out, training_layout
from odn.losses import LabelLoss, Loss
from odn.network import Network, PartitionedNetwork, Prefix
from odn.optimizers import batch_size_for, make_optimizer, settled
from odn.processes import accelerator, copy_from_first, share, total, training_device
from odn.schedules import Schedule
from odn.sharding import fill, part_like, shard
from odn.weights import copied, weights_of

_log = logging.getLogger("odn")
_Tensors = tuple[Tensor, ...] | list[Tensor]
_MAX_EMA_STEPS = 2000


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Choose the arithmetic of training.

    Args:
        precision: as asked for; ``auto`` takes bf16 where the hardware is faster with it.
        device: on which training runs.

    Returns:
        ``fp32`` or ``bf16``. Without AMX, what Intel's processors gain by AVX512-BF16 is less than what the
        conversions cost; AMD's gain more.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        of_amd = "AMD" in str(capabilities.get("cpu_name"))
        native = capabilities.get("amx_bf16") or (of_amd and capabilities.get("avx512_bf16"))
        return "bf16" if native else "fp32"
    return "fp32"


@final
class Stage:
    """The training of one network: it owns the wrapper, the optimizer and the averaged weights.

    A new depth gets a new stage, because an optimizer or a distributed wrapper cannot grow.

    Args:
        network: holding exactly the parameters to train; it moves to the training device. Where several
            processes hold a part each (``parallel="fsdp"``) a copy is trained, and ``settle`` brings it back.
        config: optimizer, batch size, averaging.
        train: the training split, for the number of steps per epoch.
        previous: the stage whose optimizer state is carried over by the names of parameters, if any.
        loss: what training makes small; None learns from the labels alone.

    Raises:
        UsageError: when a batch has less than two images per process.
    """

    def __init__(
        self,
        network: Network,
        config: TrainConfig,
        train: Split,
        *,
        previous: "Stage | None" = None,
        loss: Loss | None = None,
    ) -> None:
        self.config = config = settled(config, texts=train.spec.texts)
        self.device, self.share = training_device(), share()
        self.precision = resolve_precision(config.precision, self.device)
        self.batch_size = batch_size_for(config, len(train))
        self.images_per_step = min(self.batch_size, len(train))
        if self.images_per_step < 2 * self.share.world:
            raise UsageError(
                f"{self.images_per_step} images per step for {self.share.world} processes; BatchNorm needs 2 or more "
                "in each: start fewer processes or raise train.batch_size"
            )
        self.steps_per_epoch = max(len(train) // self.batch_size, 1)
        self.step = 0
        self.rate_factor: float = previous.rate_factor if previous else 1.0
        self.micro_batches: int = previous.micro_batches if previous else 1
        self.sharded = config.parallel == "fsdp" and self.share.world > 1
        self._given = network
        self._layout = training_layout(network, self.device)
        if self.sharded:
            self.network = copy.deepcopy(network).to(self.device).to(memory_format=torch.contiguous_format)
        else:
            self.network = network.to(self.device).to(memory_format=self._layout)
        copy_from_first([*self.network.parameters(), *self.network.buffers()])
        self._loss = loss or LabelLoss(task=train.spec.task, label_smoothing=config.label_smoothing)
        self.ema = AveragedModel(self.network, multi_avg_fn=self._average)
        if self.sharded:
            for module in (self.network, self.averaged):
                shard(module, self.share.world)
        self.optimizer = make_optimizer(self.network, config, self.batch_size, fused=not self.sharded)
        self.load_optimizer_state(previous.optimizer_state() if previous else {})
        alone = self.sharded or self.share.world == 1
        self.model: nn.Module = self.network if alone else accelerator().prepare(self.network)
        if isinstance(self.model, DistributedDataParallel):
            # Statistics of BatchNorm are not needed before they are recomputed; once an epoch all buffers become equal.
            self.model.broadcast_buffers = False
        self._tried = self.share.world == 1

    @property
    def averaged(self) -> Network:
        """The network with averaged weights: the one that is judged, kept and deployed."""
        module = self.ema.module
        assert isinstance(module, Prefix | PartitionedNetwork)
        return module

    def learning_rate(self, schedule: Schedule) -> float:
        """Return the learning rate of the newest step for fresh weights, also of one before an interruption."""
        rate: float = self.optimizer.param_groups[0]["initial_lr"]
        return rate * (self.rate_factor * schedule(self.step / self.steps_per_epoch))

    def train_step(self, x_BCHW: Tensor, labels_B: Tensor, schedule: Schedule) -> Tensor:
        """Train on one batch.

        Args:
            x_BCHW: normalised images, this process's share of the batch.
            labels_B: their labels, or what else the task wants of them.
            schedule: factor on the learning rate.

        Returns:
            Mean loss of the batch, a tensor without gradient; with several processes their mean is.
        """
        self.step += 1
        factor = self.rate_factor * schedule(self.step / self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        x_BCHW = lay_out(x_BCHW, self._layout)
        if not self._tried:
            self._try_alone(x_BCHW, labels_B)
        loss = self._compute(x_BCHW, labels_B)
        if self.config.max_gradient_norm:
            accelerator().clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update_parameters(self.network)
        return loss

    def _compute(self, x_BCHW: Tensor, labels_B: Tensor, *, alone: bool = False) -> Tensor:
        while True:
            try:
                return self._forward_and_backward(x_BCHW, labels_B, alone=alone)
            except (RuntimeError, MemoryError) as error:
                self._halve(error, len(labels_B), alone=alone or self.share.world == 1)

    def _forward_and_backward(self, x_BCHW: Tensor, labels_B: Tensor, *, alone: bool) -> Tensor:
        loss_sum = torch.zeros((), device=self.device)
        parts = list(zip(*(t.tensor_split(self.micro_batches) for t in (x_BCHW, labels_B)), strict=True))
        for number, (x, labels) in enumerate(parts, 1):
            # Processes average their gradients once, after the last part, and every image of the step weighs the same.
            apart = alone or number < len(parts)
            with accelerator().no_sync(self.model) if apart else contextlib.nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss = self._loss(self.model, x, labels)
                # Weighted so that every image of the step counts the same.
                loss = loss * (self.share.world * len(labels) / self.images_per_step)
                loss.backward()
            loss_sum += loss.detach()
        return loss_sum

    def _try_alone(self, x_BCHW: Tensor, labels_B: Tensor) -> None:
        """Find out whether a batch fits before others wait for its gradients, and take the smallest parts of all."""
        self._tried = True
        if self.sharded:
            return  # not even a forward pass can be done alone
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        with torch.random.fork_rng():
            self._compute(x_BCHW, labels_B, alone=True)
        self.optimizer.zero_grad()
        for buffer, before in zip(self.network.buffers(), buffers, strict=True):
            buffer.copy_(before)
        parts = torch.zeros(self.share.world, dtype=torch.int64, device=self.device)
        parts[self.share.rank] = self.micro_batches
        self.micro_batches = int(total(parts).max())

    def _halve(self, error: RuntimeError | MemoryError, batch_size: int, *, alone: bool) -> None:
        """Go on with half as many images at a time and the same batch in all."""
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise error
        if not alone:  # the others wait for this one at a place where it no longer comes
            raise OdnError(
                f"out of memory with {batch_size} images per process; start more processes or lower train.batch_size"
            ) from error
        smaller = batch_size // (2 * self.micro_batches)
        if smaller < 2:
            raise OdnError(
                "out of memory with 2 images at a time; choose a smaller backbone or --image-size"
            ) from error
        self.micro_batches *= 2
        self.optimizer.zero_grad()
        clear_device_cache(garbage_collection=True)
        _log.warning("out of memory: going on with %d images at a time; batches stay at %d", smaller, batch_size)

    def settle(self) -> None:
        """Give the network that training was given the averaged weights, those that were judged."""
        fill(self._given, weights_of(self.averaged))

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return what the optimizer remembers, e.g. momenta, as whole CPU tensors of their own.

        Returns:
            By ``parameter/entry``.
        """
        return copied(
            {
                f"{name}/{key}": value
                for name, parameter in self.network.named_parameters()
                for key, value in self.optimizer.state.get(parameter, {}).items()
                if isinstance(value, Tensor)
            }
        )

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Let the optimizer remember what one of another stage did.

        Args:
            state: as from ``optimizer_state``; entries for parameters that are not here are left out.
        """
        for name, parameter in self.network.named_parameters():
            found = {key.removeprefix(f"{name}/"): t for key, t in state.items() if key.startswith(f"{name}/")}
            self.optimizer.state.pop(parameter, None)
            if found:
                # The parameter's own memory layout keeps later sums bit-identical.
                self.optimizer.state[parameter] = {
                    key: part_like(parameter.detach(), t) if t.ndim else t.to(self.device, copy=True)
                    for key, t in found.items()
                }
            elif isinstance(self.optimizer, torch.optim.SGD):
                # A fused step wants the momenta of all weights or of none; zero is what a fresh one begins with.
                self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def _average(self, averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        horizon = min(max(self.config.ema_epochs * self.steps_per_epoch, 10.0), _MAX_EMA_STEPS)
        # Early on, the average reaches back over a fixed share of the steps so far: it forgets its start.
        decay = min(1 - 1 / horizon, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(averaged, current, count)


def describe_break(stage: Stage, train: Split, depth: int, epoch: int, batches: int, epoch_seed: int) -> str:
    """Say where training stopped being finite.

    Args:
        stage: the network in training.
        train: what it is trained on.
        depth: in training.
        epoch: from 1.
        batches: done in it.
        epoch_seed: of its order.

    Returns:
        Place, first broken parameter and samples, in a line.
    """
    weights = weights_of(stage.network)
    parameters = (name for name, _ in stage.network.named_parameters())
    broken = next((name for name in parameters if not bool(torch.isfinite(weights[name]).all())), "none yet")
    order = epoch_order(train, stage.batch_size, seed=epoch_seed)
    images = order[max(batches - 1, 0) * stage.batch_size :][: stage.batch_size]
    things = "texts" if train.spec.texts else "images"
    names = ", ".join(train.name(int(index)) for index in images[:3])
    return (
        f"the loss or the answers became infinite or NaN at depth {depth}, epoch {epoch}, "
        f"step {batches} of {stage.steps_per_epoch}; "
        f"first broken parameter: {broken}; {things} of that step: {names} and {len(images) - 3} more"
    )
