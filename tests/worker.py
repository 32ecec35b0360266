"""One of several processes that ``torchrun`` starts for tests/test_processes.py: expands a small network.

``worker.py RUN --parallel ddp|fsdp --stop-after N``: goes on with the run that stands in RUN, if any, and stops after N
records. Every process leaves RUN/rank_K.json with what it saw.
"""

import argparse
import atexit
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import torch

from conftest import tiny_data
from odn.checkpoint import Checkpoints
from odn.config import ExpandConfig, TrainConfig
from odn.data import training_batches
from odn.engine import finish, train_epochs
from odn.errors import ElsewhereError
from odn.evaluation import evaluate
from odn.expansion import expand_epochs
from odn.files import write_atomically
from odn.network import partition
from odn.outcome import expand_result
from odn.processes import agree, first_only, share, training_device, wait
from odn.schedules import constant_after_warmup
from odn.stage import Stage
from odn.weights import weights_of

CONFIG = ExpandConfig(target_accuracy=0.95, epochs_per_depth=5, confirmations=1, depths=(1, 2))


def digest(module) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(weights_of(module).items()):
        sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


def statistics(data, training) -> str:
    stage = Stage(partition("cifar_resnet20", data.spec, width=0.25).prefix(1), training, data.train)
    schedule = constant_after_warmup(1.0)
    finish(train_epochs(stage, data.train, data.valid, phase="expand", schedule=schedule, epochs=1, seed=0))
    return digest(stage.network)


def fails_in_the_first() -> str:
    try:
        first_only(lambda: 1 // 0)()
    except ZeroDivisionError:
        return "here"
    except ElsewhereError:
        return "elsewhere"
    return "nowhere"


def leave(run: Path) -> None:
    if not torch.distributed.is_initialized():
        (run / f"left_{os.environ['RANK']}").touch()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--parallel", default="ddp")
    parser.add_argument("--stop-after", type=int, default=1000)
    options = parser.parse_args()
    atexit.register(leave, options.run)  # the last to be called at exit, as the first one registered
    part = share()
    data = tiny_data(valid=97)  # no multiple of the number of processes
    if part.rank == 0:
        options.run.mkdir(exist_ok=True)
    wait()
    training = TrainConfig(batch_size=24, learning_rate=0.5, precision="fp32", parallel=options.parallel)
    network = partition("cifar_resnet20", data.spec, width=0.25, seed=part.rank)  # the first one's weights count
    batches = training_batches(data.train, 24, training_device(), seed=5, share=part)
    seen = [image.sum().item() for images, _ in batches for image in images]
    found = {
        "world": part.world,
        "seen": seen,
        "agreed": agree(part.rank),
        "failed": fails_in_the_first(),
        "alone": first_only(lambda: share().world)(),
        "statistics": statistics(data, training) if options.parallel == "ddp" else "",
        "records": [],
    }
    checkpoints = Checkpoints("expand", options.run, resume=True)
    epochs = expand_epochs(network, data.train, data.valid, config=CONFIG, training=training, checkpoints=checkpoints)
    for number, record in enumerate(epochs, 1):
        found["records"].append([record.phase, record.depth, record.epoch, record.valid_score, record.train_samples])
        if number == options.stop_after:
            break
    else:
        depth = expand_result(checkpoints.records, [1, 2], CONFIG).depth
        small = network.prefix(depth)
        small.to(training_device())
        together, alone = evaluate(small, data.valid, together=True), evaluate(small, data.valid)
        found |= {"together": dataclasses.asdict(together), "judged_alone": dataclasses.asdict(alone)}
        found |= {"digest": digest(small), "depth": depth}
    write_atomically(options.run / f"rank_{part.rank}.json", json.dumps(found))


if __name__ == "__main__":
    main()
