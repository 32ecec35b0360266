"""Time the training engine against a plain PyTorch loop that does the same mathematics, in one process.

Both sides train the same prefix for an epoch of the same batches, with bf16 autocast where the hardware has it,
Nesterov SGD, and an exponential moving average of the weights: the engine by the very loop that ``odn expand`` runs,
seeds, checks and record included. They take turns, so that a machine that slows down slows down both.
"""

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import odn
from benchmarks.common import Cells, Row, parse, write_page
from odn.allocator import reuse_freed_memory
from odn.data import Data, load_data, training_batches
from odn.data.splits import TensorSplit
from odn.defaults import DATASETS
from odn.engine import Progress, evaluation_interval, train_epochs
from odn.evaluation import evaluate, recalibrate
from odn.stage import Stage

ROUNDS, FEW, RECALIBRATION = 7, 4_000, 2_048
# name of the cell: dataset, backbone, depth, training images on a CPU (0: all, as on a GPU)
JOBS = {
    "mnist, depth 1": ("mnist", "resnet18", 1, 0),
    "mnist, depth 1, 4,000 images": ("mnist", "resnet18", 1, FEW),
    "mnist, depth 8, 4,000 images": ("mnist", "resnet18", 8, FEW),
    "fashion-mnist, cifar_resnet20, 4,000 images": ("fashion-mnist", "cifar_resnet20", 9, FEW),
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


def compare(data: Data, backbone: str, depth: int, number_of_rounds: int) -> Row:
    """Time one prefix.

    Args:
        data: its train and validation split.
        backbone: its name.
        depth: blocks.
        number_of_rounds: of an epoch for each side.

    Returns:
        Medians over the rounds, and the shares of the contract.
    """
    prefix = odn.partition(backbone, data.spec).prefix(depth)
    # What is looked at after an epoch is timed apart, and as good as nothing of it is left in the loop.
    stage = Stage(prefix, odn.TrainConfig(recalibration_images=2), data.train)
    as_run = Stage(copy.deepcopy(prefix), odn.TrainConfig(), data.train)
    plain = Plain(copy.deepcopy(stage.network), stage)
    plain.network.train()
    few = torch.arange(2)
    look = TensorSplit(*next(data.valid.batches(2, few, torch.device("cpu"))), data.valid.spec)
    epochs = itertools.count(1)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return training_batches(data.train, stage.batch_size, stage.device, seed=0)

    def ours() -> None:
        number = next(epochs)
        progress = Progress(epoch=number)
        one = {"phase": "expand", "schedule": lambda epochs: 0.1, "epochs": number, "seed": 0, "start": progress}
        for _ in train_epochs(stage, data.train, look, **one):  # type: ignore[arg-type]
            pass

    def theirs() -> None:
        for x_BCHW, labels_B in batches():
            plain.step(x_BCHW, labels_B)

    def average() -> None:
        for _ in range(stage.steps_per_epoch):
            stage.ema.update_parameters(stage.network)

    def load() -> None:
        for _ in batches():
            pass

    def judge() -> None:
        recalibrate(stage.averaged, data.train, RECALIBRATION, seed=0)
        evaluate(stage.averaged, data.valid)

    turns = {"engine": ours, "plain": theirs, "ema": average, "data": load, "judging": judge}
    rounds: dict[str, list[float]] = {name: [] for name in turns}
    for work in turns.values():
        work()  # warm up
    for _ in range(number_of_rounds):
        for name, work in turns.items():
            rounds[name].append(seconds(work))
    every = evaluation_interval(as_run, data.train, data.valid)
    times = {name: statistics.median(values) for name, values in rounds.items()}
    ratios = [a / b for a, b in zip(rounds["engine"], rounds["plain"], strict=True)]
    return {
        "batch": stage.batch_size,
        "precision": stage.precision,
        "step_ms": round(1000 * times["engine"] / stage.steps_per_epoch, 2),
        "plain_ms": round(1000 * times["plain"] / stage.steps_per_epoch, 2),
        "step_overhead": statistics.median(ratios),
        "data_share": times["data"] / times["engine"],
        "ema_share": times["ema"] / times["engine"],
        "evaluation_share": times["judging"] / times["engine"] / every,
        "evaluated_every": every,
        "images_per_second": round(len(data.train) / times["engine"]),
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
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rounds = 2 if options.quick else ROUNDS
    for cell, (dataset, backbone, depth, train_limit) in list(JOBS.items())[: 1 if options.quick else None]:
        cells.run(
            {"cell": cell, "device": device},
            partial(measure, dataset, backbone, depth, train_limit, options.data_dir, rounds),
        )
    cells.save()
    bars: list[Row] = [
        {"figure": name, "bar": BARS[name], "measured": value} for name, value in summarise(cells.rows).items()
    ]
    text = (
        f"Medians of {rounds} rounds of an epoch for each side, in turns. The "
        "engine is the loop that `odn expand` runs, the plain one reads the same batches and averages weights too. "
        "`data_share` is loading and augmenting against an epoch of training, `ema_share` averaging the weights, "
        f"`evaluation_share` recalibration on {RECALIBRATION:,} images and validation, by the `evaluated_every` epochs "
        "from one to the next where nothing is decided between them. The figures above are those of the whole of MNIST "
        "at depth 1, as `odn run mnist` trains it. `step_overhead` is the median of the ratios of each round, which a "
        "machine that slows down for a while does not move, and not the ratio of the medians beside it. On subsets "
        "batches are small, so that the fixed cost of a step counts for more: their rows have no bar and may lie above "
        "it."
    )
    columns = (
        "cell", "device", "batch", "precision", "step_ms", "plain_ms", *BARS, "evaluated_every", "images_per_second",
        "commit",
    )  # fmt: skip
    write_page(cells.path, "Engine: against a plain loop", text, bars, cells.rows, columns)


def measure(dataset: str, backbone: str, depth: int, train_limit: int, data_dir: Path, number_of_rounds: int) -> Row:
    """Load the data and time one prefix.

    Args:
        dataset: its name.
        backbone: its name.
        depth: blocks.
        train_limit: training images on a CPU; 0 means all.
        data_dir: where the dataset lies.
        number_of_rounds: of an epoch for each side.

    Returns:
        The figures of one row.
    """
    config = odn.DataConfig(train_limit=0 if torch.cuda.is_available() else train_limit)
    data = load_data(dataset, data_dir=str(data_dir), config=config, augment=DATASETS[dataset].augment)
    return compare(data, backbone, depth, number_of_rounds)


if __name__ == "__main__":
    main()
