"""Time the training engine against a plain PyTorch loop that does the same mathematics, in one process.

Both sides train the same prefix on the same batches, with bf16 autocast where the hardware has it, Nesterov SGD, and an
exponential moving average of the weights. They take turns, so that a machine that slows down slows down both.
"""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import odn
from benchmarks.common import Cells, Row, parse, write_page
from odn.allocator import reuse_freed_memory
from odn.data import Data, load_data, training_batches
from odn.defaults import DATASETS
from odn.engine import evaluate, recalibrate
from odn.stage import Stage

ROUNDS = 7
# name of the cell: dataset, backbone, depth
JOBS = {
    "mnist, depth 1": ("mnist", "resnet18", 1),
    "mnist, depth 8": ("mnist", "resnet18", 8),
    "fashion-mnist, cifar_resnet20": ("fashion-mnist", "cifar_resnet20", 9),
}
BARS = {"step_overhead": "<= 1.05", "data_share": "<= 0.10", "ema_share": "<= 0.03", "evaluation_share": "<= 0.10"}


class Plain:
    """A training step as one would write it by hand.

    Args:
        network: trained in place.
        stage: whose settings are taken over.
    """

    def __init__(self, network: nn.Module, stage: Stage) -> None:
        self.network = network
        self.averaged = copy.deepcopy(network)
        weights = [p for p in network.parameters() if p.ndim >= 2]
        others = [p for p in network.parameters() if p.ndim < 2]
        decays = [group["weight_decay"] for group in stage.optimizer.param_groups]
        groups = [{"params": p, "weight_decay": d} for p, d in zip((weights, others), decays, strict=True)]
        self.optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)
        self.device, self.bf16 = stage.device, stage.precision == "bf16"
        self.pairs = [list(module.parameters()) for module in (self.averaged, network)]

    def step(self, x_BCHW: Tensor, labels_B: Tensor) -> None:
        """Train on one batch.

        Args:
            x_BCHW: normalised images.
            labels_B: their classes.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = F.cross_entropy(self.network(x_BCHW), labels_B)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(*self.pairs, 0.01)


def seconds(work: Callable[[], object]) -> float:
    """Time one call.

    Args:
        work: to be timed.

    Returns:
        Seconds, with everything that was queued on a GPU.
    """
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(data: Data, backbone: str, depth: int, steps: int) -> Row:
    """Time one prefix.

    Args:
        data: its train and validation split.
        backbone: its name.
        depth: blocks.
        steps: per turn.

    Returns:
        Medians over the rounds, and the shares of the contract.
    """
    prefix = odn.partition(backbone, data.spec).prefix(depth)
    stage = Stage(prefix, odn.TrainConfig(), data.train)
    plain = Plain(copy.deepcopy(stage.network), stage)
    stage.model.train()
    plain.network.train()
    batches = training_batches(data.train, stage.batch_size, stage.device, seed=0)
    ready = [next(batches) for _ in range(steps)]

    def ours() -> None:
        for x_BCHW, labels_B in ready:
            stage.train_step(x_BCHW, labels_B, lambda epochs: 0.1)

    def theirs() -> None:
        for x_BCHW, labels_B in ready:
            plain.step(x_BCHW, labels_B)

    def average() -> None:
        for _ in range(steps):
            stage.ema.update_parameters(stage.network)

    def load() -> None:
        for _ in range(steps):
            next(batches)

    rounds: dict[str, list[float]] = {"engine": [], "plain": [], "ema": [], "data": []}
    ours(), theirs()  # warm up
    for _ in range(ROUNDS):
        for name, work in (("engine", ours), ("plain", theirs), ("ema", average), ("data", load)):
            if name == "data":
                batches = training_batches(data.train, stage.batch_size, stage.device, seed=0)
                next(batches)
            rounds[name].append(seconds(work) / steps)
    times = {name: statistics.median(values) for name, values in rounds.items()}
    judging = seconds(
        lambda: (recalibrate(stage.averaged, data.train, 2048, seed=0), evaluate(stage.averaged, data.valid))
    )
    epoch = (times["engine"] + times["data"]) * stage.steps_per_epoch
    ratios = [a / b for a, b in zip(rounds["engine"], rounds["plain"], strict=True)]
    return {
        "batch": stage.batch_size,
        "precision": stage.precision,
        "step_ms": round(1000 * times["engine"], 2),
        "plain_ms": round(1000 * times["plain"], 2),
        "step_overhead": statistics.median(ratios),
        "data_share": times["data"] / times["engine"],
        "ema_share": times["ema"] / times["engine"],
        "evaluation_share": judging / epoch,
        "images_per_second": round(stage.batch_size / (times["engine"] + times["data"])),
    }


def summarise(rows: list[Row]) -> Row:
    """Take the figures of the contract from the first cell: MNIST at depth 1.

    Args:
        rows: of all cells.

    Returns:
        Figure by name; None where it was not measured.
    """
    first = next((row for row in rows if row["cell"] == next(iter(JOBS))), {})
    return {name: first.get(name) for name in BARS}


def main() -> None:
    """Measure every cell, then print and write the page."""
    options = parse("engine", __doc__ or "")
    reuse_freed_memory()
    cells = Cells(options, summarise)
    for cell, (dataset, backbone, depth) in list(JOBS.items())[: 1 if options.quick else None]:
        cells.run(
            {"cell": cell}, partial(measure, dataset, backbone, depth, options.data_dir, 5 if options.quick else 20)
        )
    cells.save()
    bars: list[Row] = [
        {"figure": name, "bar": BARS[name], "measured": value} for name, value in summarise(cells.rows).items()
    ]
    text = (
        f"Medians of {ROUNDS} rounds of 20 steps; the two loops take turns. `data_share` is loading and augmenting a "
        "batch against a step, `ema_share` averaging the weights against a step, `evaluation_share` recalibration and "
        "validation against an epoch of training. The plain loop averages weights too."
    )
    columns = ("cell", "batch", "precision", "step_ms", "plain_ms", *BARS, "images_per_second", "commit")
    write_page(cells.path, "Engine: against a plain loop", text, bars, cells.rows, columns)


def measure(dataset: str, backbone: str, depth: int, data_dir: Path, steps: int) -> Row:
    """Load the data and time one prefix.

    Args:
        dataset: its name.
        backbone: its name.
        depth: blocks.
        data_dir: where the dataset lies.
        steps: per turn.

    Returns:
        The figures of one row.
    """
    data = load_data(dataset, data_dir=str(data_dir), augment=DATASETS[dataset].augment)
    return compare(data, backbone, depth, steps)


if __name__ == "__main__":
    main()
