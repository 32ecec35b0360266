"""What a training will take on one machine or several: time, memory and money, before it is started.

Multiply-accumulates of every depth are exact; what they take is measured here, on noise, for the shallowest
and the deepest network, and lies on a line between. Other hardware is described by its speed.

Shapes: B batch, C channels, H height, W width.
"""

import dataclasses
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from odn.config import AugmentConfig, ExpandConfig, FinetuneConfig, TrainConfig, require
from odn.data import DataSpec, TensorSplit, training_batches
from odn.evaluation import evaluate
from odn.measure import macs_by_depth, measure_cost, training_bytes
from odn.network import Prefix, build_network
from odn.optimizers import batch_size_for, settled
from odn.processes import training_device
from odn.records import ENDING_PHASES
from odn.search import next_trunk, plan_depths
from odn.stage import Stage
from odn.stopping import cap_of
from odn.texts import plain_preprocessing

_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be trained.

    Attributes:
        backbone: a name from ``odn backbones``.
        input_shape: channels, height and width of an image, or the number of tokens of a text.
        classes: number of labels.
        images: or texts in the training split.
        valid_images: in the validation split; 0 means a ninth of those in the training split.
        width: factor on the backbone's channels.
        epochs: of the training at full depth to which the search is compared.
        training: how weights are trained; its batch is shared by all processes.
        expand: the caps of the search.
    """

    backbone: str
    input_shape: tuple[int, ...]
    classes: int
    images: int
    valid_images: int = 0
    width: float = 1.0
    epochs: int = 30
    training: TrainConfig = field(default_factory=TrainConfig)
    expand: ExpandConfig = field(default_factory=ExpandConfig)

    def __post_init__(self) -> None:
        require(self.images >= 2, f"images is {self.images}; allowed: 2 or more in the training split")
        require(self.valid_images >= 0, f"valid_images is {self.valid_images}; allowed: 0 or more")
        require(self.epochs >= 1, f"epochs is {self.epochs}; allowed: 1 or more")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Where it is to be trained.

    Attributes:
        processes: that share the work, one per GPU, or with threads of its own on a CPU.
        gmacs_per_second: multiply-accumulates of training, in billions per second, that one process does; 0 measures
            them on this machine.
        gigabytes_per_second: at which processes exchange gradients.
        price_per_hour: of all machines together, in whatever currency.
    """

    processes: int = 1
    gmacs_per_second: float = 0.0
    gigabytes_per_second: float = 1.0
    price_per_hour: float = 0.0

    def __post_init__(self) -> None:
        require(1 <= self.processes <= 65536, f"processes is {self.processes}; allowed: 1 to 65536")
        for name in ("gmacs_per_second", "price_per_hour"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{name} is {value}; allowed: 0 or more")
        require(
            0 < self.gigabytes_per_second < math.inf,
            f"gigabytes_per_second is {self.gigabytes_per_second}; allowed: above 0",
        )


def plan(workload: Workload, hardware: Hardware, depth: int | None = None) -> dict[str, Any]:
    """Estimate what a training takes.

    Args:
        workload: what is to be trained.
        hardware: where.
        depth: whose epoch and memory are wanted; None means the full depth.

    Returns:
        ``processes depth batch_size gmacs_per_second epoch_seconds memory_bytes full_depth_seconds full_depth_price
        search_at_most_seconds search_at_most_price``. The epoch has its evaluation with it, the memory is that of one
        process without the images; a search takes the most when only the full depth holds the target.

    Raises:
        UsageError: when there is no such backbone, or a batch has less than two images per process.
    """
    network = build_network(
        workload.backbone, workload.input_shape, workload.classes, width=workload.width, device="meta"
    )
    assert network.spec is not None
    dtype = network.spec.input_dtype
    macs = macs_by_depth(network.prefixes(), workload.input_shape, dtype)
    training = settled(workload.training, texts=len(workload.input_shape) == 1)
    batch_size = min(batch_size_for(workload.training, workload.images), workload.images)
    share = batch_size // hardware.processes
    kind = "texts" if network.spec.input_dtype == torch.int64 else "images"
    require(
        share >= 2,
        f"{batch_size} {kind} per step for {hardware.processes} processes; BatchNorm needs 2 or more in each: plan "
        "for fewer processes or a larger batch",
    )
    depth = depth or network.max_depth
    prefix, sharded = network.prefix(depth), workload.training.parallel == "fsdp" and hardware.processes > 1
    speed = _speed(workload, hardware, share, macs)
    steps = max(workload.images // batch_size, 1)

    norms = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules())
    recalibration = workload.training.recalibration_images if norms else 0

    def epoch_seconds(depth: int, lowest: int) -> float:
        trained = network.trunk(depth, lowest)
        weights = sum(p.numel() * p.element_size() for p in trained.parameters())
        passed = measure_cost(trained, workload.input_shape, dtype).macs
        # A ring passes everything around once to sum it up and once to hand it out; parts are gathered once more.
        rounds = (3 if sharded else 2) * (hardware.processes - 1) / hardware.processes
        exchange = rounds * weights / (hardware.gigabytes_per_second * 1e9)
        looked_at = recalibration + (workload.valid_images or workload.images // 9)
        look = looked_at / hardware.processes * speed.look_seconds(passed)
        return steps * (speed.step_seconds(passed) + exchange) + look

    full_seconds = workload.epochs * epoch_seconds(network.max_depth, network.max_depth)
    longest = _longest_search(workload, network.max_depth, steps)
    search_seconds = sum(epochs * epoch_seconds(depth, lowest) for depth, lowest, epochs in longest if epochs)
    price = hardware.price_per_hour / 3600
    return {
        "processes": hardware.processes,
        "depth": depth,
        "batch_size": batch_size,
        "gmacs_per_second": round(3 * macs[depth - 1] * share / speed.step_seconds(macs[depth - 1]) / 1e9, 2),
        "epoch_seconds": round(epoch_seconds(depth, depth), 3),
        "memory_bytes": training_bytes(
            prefix,
            workload.input_shape,
            share,
            copies=(5 if training.optimizer == "adamw" else 4) / (hardware.processes if sharded else 1),
            dtype=dtype,
        ),
        "full_depth_seconds": round(full_seconds, 1),
        "full_depth_price": round(full_seconds * price, 2),
        "search_at_most_seconds": round(search_seconds, 1),
        "search_at_most_price": round(search_seconds * price, 2),
    }


def _longest_search(workload: Workload, max_depth: int, steps: int) -> Iterator[tuple[int, int, int]]:
    """Yield blocks, lowest head and epochs of a search in which nothing but the full depth holds the target."""
    config, depths = workload.expand, plan_depths(workload.expand, max_depth)
    grow, settle, refine = (cap_of(phase, config, steps, workload.images) for phase in ("expand", *ENDING_PHASES))
    refine = refine if settle else 0
    trunk, before = depths[0], 0
    while True:
        # Every network was expected to do and fell short, so little that it was refined; the deepest needs no look.
        look = trunk < depths[-1] or not config.settle_epochs
        yield trunk, 1, look * grow
        yield trunk, depths[before], settle
        deeper = next_trunk(depths, trunk)
        if deeper is None:
            break
        yield trunk, trunk, refine
        trunk, before = deeper, depths.index(trunk) + 1
    # The deepest network meets the target without confirming it, and does once it is refined; its other depths nearly
    # do, and bisection refines them in vain. Or it is alone, and falls short by little itself.
    others = (len(depths) - before - 1).bit_length()
    lifted = bool(others) and config.confirmations > 1
    yield depths[-1], depths[-1], refine * max(1, lifted + others)
    # Nothing may hold, and what growing left may be the best.
    grown = not config.settle_epochs or len(depths) > 1
    yield depths[-1], depths[-1], FinetuneConfig().resolved(annealed=not grown).epochs


@dataclass(frozen=True, kw_only=True)
class _Line:
    """Seconds as a function of the multiply-accumulates of one image."""

    offset: float
    slope: float

    def __call__(self, macs: int) -> float:
        return self.offset + self.slope * macs


@dataclass(frozen=True, kw_only=True)
class _Speed:
    """How long one process takes for its share of a step, and for a look at one image."""

    step_seconds: _Line
    look_seconds: _Line


def _speed(workload: Workload, hardware: Hardware, share: int, macs: Sequence[int]) -> _Speed:
    if hardware.gmacs_per_second:
        per_mac = 1 / (hardware.gmacs_per_second * 1e9)
        return _Speed(
            step_seconds=_Line(offset=0.0, slope=3 * share * per_mac), look_seconds=_Line(offset=0.0, slope=per_mac)
        )
    network = build_network(workload.backbone, workload.input_shape, workload.classes, width=workload.width)
    measured = [_measure(network.prefix(depth), workload, share) for depth in (1, network.max_depth)]
    # More processes than cores take turns.
    crowd = max(1.0, hardware.processes * torch.get_num_threads() / (os.cpu_count() or 1))
    if training_device().type != "cpu":
        crowd = 1.0
    steps, looks = (_line((macs[0], macs[-1]), [crowd * s for s in seconds]) for seconds in zip(*measured, strict=True))
    return _Speed(step_seconds=steps, look_seconds=looks)


def _line(macs: tuple[int, int], seconds: Sequence[float]) -> _Line:
    if macs[0] == macs[1]:
        return _Line(offset=seconds[0], slope=0.0)
    slope = (seconds[1] - seconds[0]) / (macs[1] - macs[0])
    return _Line(offset=seconds[0] - slope * macs[0], slope=slope)


def _measure(prefix: Prefix, workload: Workload, share: int) -> tuple[float, float]:
    """Time one step of ``share`` images, data and optimizer included, and the look at one image."""
    training = dataclasses.replace(workload.training, batch_size=share, parallel="ddp")
    noise = _noise(workload, share * (_STEPS + 1))
    stage = Stage(prefix, training, noise)
    times = []
    began = time.perf_counter()
    for x_BCHW, labels_B in training_batches(noise, share, stage.device, seed=0):
        float(stage.train_step(x_BCHW, labels_B, lambda epochs: 0.0))  # waits for the device
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    evaluate(stage.averaged, noise)
    began = time.perf_counter()
    evaluate(stage.averaged, noise)
    return statistics.median(times[1:]), (time.perf_counter() - began) / len(noise)


def _noise(workload: Workload, count: int) -> TensorSplit:
    preprocessing = plain_preprocessing(workload.input_shape)
    spec = DataSpec(
        name="noise",
        classes=tuple(map(str, range(workload.classes))),
        preprocessing=preprocessing,
        train_count=count,
        valid_count=count,
        seed=0,
        augment=AugmentConfig(),
    )
    noise = torch.from_numpy(preprocessing.noise(count))
    return TensorSplit(noise.int() if spec.texts else noise, torch.arange(count) % workload.classes, spec)
