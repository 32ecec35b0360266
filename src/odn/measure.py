"""What a network costs: parameters, bytes, multiply-accumulates, peak activation memory and latency."""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from odn.records import EpochRecord

BATCH_SIZES = (1, 64)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Exact costs of one forward pass of one input.

    Attributes:
        parameters: number of weights, BatchNorm's running statistics not counted.
        parameter_bytes: memory they take.
        macs: multiply-accumulates of convolutions and matrix products.
        peak_activation_bytes: most bytes of the input and the features alive at once in eager inference.
    """

    parameters: int
    parameter_bytes: int
    macs: int
    peak_activation_bytes: int


def measure_cost(module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Cost:
    """Count a network's costs on the meta device: exact, without running it.

    Args:
        module: the network; it is not changed.
        input_shape: of one input, without the batch.
        dtype: of the input; int64 for tokens.

    Returns:
        Its costs at batch size 1.
    """
    network = copy.deepcopy(module).to("meta").eval()
    parameters = list(network.parameters())
    example = torch.empty(1, *input_shape, dtype=dtype, device="meta")
    with torch.no_grad():
        with FlopCounterMode(display=False) as flops:
            network(example)
        peak = _peak_activation_bytes(network, example)
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        macs=flops.get_total_flops() // 2,
        peak_activation_bytes=peak,
    )


@final
class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make until nothing refers to them."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._known = {StorageWeakRef(tensor.untyped_storage()) for tensor in known}
        self._live: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Forget the storages that are gone, add those of these tensors, and note the sum if it is the largest."""
        self._live = {storage: size for storage, size in self._live.items() if not storage.expired()}
        for tensor in tensors:
            storage = StorageWeakRef(tensor.untyped_storage())
            if storage not in self._known:
                self._live[storage] = tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self._live.values()))


def _peak_activation_bytes(network: nn.Module, example: Tensor) -> int:
    mode = _LiveBytes([*network.parameters(), *network.buffers()])
    mode.count([example])
    with mode:
        network(example)
    return mode.peak


def macs_by_depth(
    prefixes: Iterable[nn.Module], input_shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> list[int]:
    """Count the multiply-accumulates of every depth.

    Args:
        prefixes: the networks of depth 1, 2, ... up to the full depth.
        input_shape: of one input, without the batch.
        dtype: of the input; int64 for tokens.

    Returns:
        MACs of one input by depth, from depth 1.
    """
    return [measure_cost(prefix, input_shape, dtype).macs for prefix in prefixes]


def macs_together(
    records: Iterable[EpochRecord],
    trunk: Callable[[int, int], nn.Module],
    input_shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> dict[tuple[int, int], int]:
    """Count the multiply-accumulates of the networks in which several depths were trained together.

    Args:
        records: of a training.
        trunk: gives the first so many blocks with the heads of their depths from a lowest one on, best on the meta
            device.
        input_shape: of one input, without the batch.
        dtype: of the input; int64 for tokens.

    Returns:
        MACs of one input through all heads, by the number of blocks and the lowest depth.
    """
    networks = sorted({(record.depth, record.lowest) for record in records if record.scores})
    return {network: measure_cost(trunk(*network), input_shape, dtype).macs for network in networks}


def train_macs(
    records: Iterable[EpochRecord],
    macs_by_depth: Sequence[int],
    together: Mapping[tuple[int, int], int] | None = None,
) -> int:
    """Count the multiply-accumulates that a training took: 3 forward passes per sample trained on, 1 per evaluated.

    Args:
        records: of its epochs; those of compressing bring the costs of their own network, and of its teacher, which
            passes every sample trained on forward once.
        macs_by_depth: of one forward pass of one image at depth 1, 2, and so on.
        together: of one through the heads of the first so many blocks from a lowest depth on, where several depths were
            trained together.

    Returns:
        MACs in all.
    """
    total = 0
    for record in records:
        narrowed = record.narrowed
        macs = narrowed.macs if narrowed else macs_by_depth[record.depth - 1]
        macs = together[record.depth, record.lowest] if together and record.scores else macs
        total += macs * (3 * record.train_samples + record.evaluated_samples)
        total += narrowed.teacher_macs * record.train_samples if narrowed else 0
    return total


def training_bytes(
    network: nn.Module,
    input_shape: tuple[int, ...],
    batch_size: int,
    *,
    copies: float = 4.0,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Estimate the memory that training takes: the weights and what goes with them, and what backward needs.

    Args:
        network: best on the meta device; it is not changed.
        input_shape: of one input, without the batch.
        batch_size: inputs computed at a time.
        copies: of the weights: themselves, gradients, averages, and one (SGD) or two (AdamW) memories of the optimizer.
        dtype: of the input; int64 for tokens.

    Returns:
        Bytes in fp32; bf16 halves the part of the feature maps.
    """
    network = copy.deepcopy(network).to("meta").train()
    weights = {StorageWeakRef(tensor.untyped_storage()) for tensor in network.parameters()}
    saved: dict[StorageWeakRef, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in weights:
            saved[storage] = tensor.untyped_storage().nbytes()
        return tensor

    inputs = torch.empty(2, *input_shape, dtype=dtype, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        network(inputs).sum()
    weight_bytes = sum(p.numel() * p.element_size() for p in network.parameters())
    return round(copies * weight_bytes + sum(saved.values()) / 2 * batch_size)


def measure_latency(
    module: nn.Module, input_shape: tuple[int, ...], seconds: float = 0.5, dtype: torch.dtype = torch.float32
) -> dict[str, dict[str, float]]:
    """Time forward passes on the CPU with one thread, after a warm-up.

    Args:
        module: the network; a copy of it is timed.
        input_shape: of one input, without the batch.
        seconds: how long to measure each batch size.
        dtype: of the input; int64 for tokens.

    Returns:
        ``{"batch_1": {"p50": ms, "p95": ms}, "batch_64": ...}``, milliseconds per batch.
    """
    # The import looks for a CUDA compiler that timing does not need, and would warn where there is no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    network = copy.deepcopy(module).to("cpu").eval()
    latency = {}
    for batch in BATCH_SIZES:
        # Texts are of one token, over and over: what a token is does not change the work.
        shape = (batch, *input_shape)
        inputs = torch.randn(shape) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)
        with torch.inference_mode():
            timer = Timer("network(inputs)", globals={"network": network, "inputs": inputs}, num_threads=1)
            times: list[float] = []
            while len(times) < 10 or sum(times) < seconds:
                times.append(timer.timeit(1).mean)
        p50, p95 = np.percentile(times, [50, 95]) * 1e3
        latency[f"batch_{batch}"] = {"p50": round(float(p50), 4), "p95": round(float(p95), 4)}
    return latency


def profile(
    prefixes: Iterable[nn.Module], input_shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> list[dict[str, Any]]:
    """Measure the network of every depth, without data or training.

    Args:
        prefixes: the networks of depth 1, 2, ... up to the full depth, best built on the meta device.
        input_shape: of one input, without the batch.
        dtype: of the input; int64 for tokens.

    Returns:
        One row per depth: ``depth parameters parameter_bytes reduction macs peak_activation_bytes``; the
        reduction is the share of the full depth's parameters that this depth does without, rounded to 5 digits.
    """
    costs = [measure_cost(prefix, input_shape, dtype) for prefix in prefixes]
    return [
        {
            "depth": depth,
            "parameters": cost.parameters,
            "parameter_bytes": cost.parameter_bytes,
            "reduction": round(1 - cost.parameters / costs[-1].parameters, 5),
            "macs": cost.macs,
            "peak_activation_bytes": cost.peak_activation_bytes,
        }
        for depth, cost in enumerate(costs, 1)
    ]
