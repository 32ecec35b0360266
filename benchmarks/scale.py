"""Train with 1, 2 and 4 processes of one thread each, and hold ``odn plan`` against what they took.

MNIST, ResNet-18 with two blocks. Every number of processes is started by torchrun, as ``odn run`` would be; the second
epoch counts, evaluation included.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import odn
from benchmarks.common import ROOT, Cells, Row, parse, write_page
from odn.config import DataConfig
from odn.engine import train_epochs
from odn.launch import launched
from odn.plan import Hardware, Workload, plan
from odn.processes import share
from odn.records import EpochRecord
from odn.schedules import constant_after_warmup
from odn.stage import Stage

BACKBONE, PROCESSES = "resnet18", (1, 2, 4)
# Between processes of one machine gloo moves about so much; measured with an all-reduce of 45 MB.
LOOPBACK_GIGABYTES_PER_SECOND = 1.0


def train(data_dir: str, images: int, depth: int) -> None:
    """Be one of the processes: train two epochs; the first process prints the seconds of the second as JSON.

    Args:
        data_dir: holds MNIST.
        images: to train on.
        depth: of the prefix.
    """
    data = odn.load_data("mnist", data_dir=data_dir, config=DataConfig(train_limit=images))
    network = odn.partition(BACKBONE, data.spec)
    stage = Stage(network.prefix(depth), odn.TrainConfig(), data.train)
    epochs = train_epochs(
        stage, data.train, data.valid, phase="expand", schedule=constant_after_warmup(1.0), epochs=2, seed=0
    )
    seconds = [record.seconds for record in epochs if isinstance(record, EpochRecord)]
    if share().rank == 0:
        print(json.dumps({"seconds": seconds[1], "valid_images": len(data.valid)}))


def measure(processes: int, depth: int, images: int, data_dir: Path) -> Row:
    """Train with so many processes, and plan the same.

    Args:
        processes: to start, with one thread each.
        depth: of the prefix.
        images: to train on.
        data_dir: holds MNIST.

    Returns:
        Seconds and throughput of an epoch, and what ``odn plan`` expects.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # The first process speaks; what the others say goes the same way and is not JSON.
    said = subprocess.run(
        [*torchrun, "-m", "benchmarks.scale", "--", str(data_dir), str(images), str(depth)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    workload = Workload(
        backbone=BACKBONE, input_shape=(1, 28, 28), classes=10, images=images, valid_images=found["valid_images"]
    )
    hardware = Hardware(processes=processes, gigabytes_per_second=LOOPBACK_GIGABYTES_PER_SECOND)
    planned = plan(workload, hardware, depth=depth)["epoch_seconds"]
    return {
        "epoch_seconds": round(found["seconds"], 2),
        "images_per_second": round(images / found["seconds"], 1),
        "planned_seconds": planned,
        "error": round(planned / found["seconds"] - 1, 3),
    }


def summarise(rows: list[Row]) -> Row:
    """Compute the figures.

    Args:
        rows: of all cells.

    Returns:
        Throughput of several processes over one by depth, and the largest error of the plan.
    """
    speed = {(row["depth"], row["processes"]): row["images_per_second"] for row in rows}
    figures: Row = {
        f"throughput_ratio_{count}_depth_{depth}": round(speed[depth, count] / speed[depth, 1], 3)
        for depth, count in speed
        if count > 1 and (depth, 1) in speed
    }
    figures["plan_error_max"] = max((abs(row["error"]) for row in rows), default=None)
    return figures


def main() -> None:
    """Measure every cell, then print and write the page."""
    if launched():
        train(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        return
    options = parse("scale", __doc__ or "")
    cells = Cells(options, summarise)
    images = 10_000 if options.quick else 54_000
    for depth in (2,) if options.quick else (1, 2, 8):
        for processes in PROCESSES:
            size = images if depth < 8 else images // 4
            cells.run(
                {"depth": depth, "images": size, "processes": processes},
                partial(measure, processes, depth, size, options.data_dir),
            )
    cells.save()
    bars: list[Row] = [
        {"figure": name, "bar": ">= 1.6" if "ratio_2" in name else "-", "measured": value}
        for name, value in summarise(cells.rows).items()
    ]
    text = (
        "MNIST, ResNet-18 with its 7x7 stem, prefixes of 1, 2 and 8 blocks, batches of 256 images shared by 1, 2 and 4 "
        "processes of one thread each; seconds of the second epoch, evaluation and recomputed BatchNorm statistics "
        "included. `planned_seconds` is what `odn plan` expects from a few steps of one process and the number of "
        "cores; four processes on two cores take turns."
    )
    columns = ("depth", "images", "processes", "epoch_seconds", "images_per_second", "planned_seconds", "error")
    write_page(cells.path, "Scale: several processes, and the plan", text, bars, cells.rows, columns)


if __name__ == "__main__":
    main()
