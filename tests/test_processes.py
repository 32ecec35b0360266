"""Several processes that train one network, started by torchrun."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT, tiny_data
from odn.data import training_batches
from odn.records import read_history

pytestmark = pytest.mark.xdist_group("processes")  # what one of them has run serves the others
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}


def torchrun(processes: int, *command: object, **options) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    restarts = [f"--max-restarts={options.pop('restarts', 0)}"]
    return subprocess.Popen(
        [*launcher, *restarts, *map(str, command)],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def work(processes: int, run: Path, *options: object) -> list[dict]:
    for left in run.glob("left_*"):
        left.unlink()
    process = torchrun(processes, ROOT / "tests" / "worker.py", run, *options)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    # Threads of a group that is left to the interpreter's end abort the process now and then.
    assert sorted(path.name for path in run.glob("left_*")) == [f"left_{rank}" for rank in range(processes)]
    return [json.loads((run / f"rank_{rank}.json").read_text()) for rank in range(processes)]


def whole_epoch() -> list[float]:
    data = tiny_data()
    batches = training_batches(data.train, 24, torch.device("cpu"), seed=5)
    return sorted(image.sum().item() for images, _ in batches for image in images)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return work(1, tmp_path_factory.mktemp("one") / "run")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return work(2, tmp_path_factory.mktemp("two") / "run")


def test_every_image_is_seen_once_by_one_of_the_processes(two):
    assert sorted(two[0]["seen"] + two[1]["seen"]) == pytest.approx(whole_epoch(), abs=1e-3)
    assert len(two[0]["seen"]) == len(two[1]["seen"]) == 96


def test_the_processes_decide_the_same_and_end_with_the_same_weights(two):
    for entry in ("statistics", "records", "depth", "digest", "together"):
        assert two[0][entry] == two[1][entry], entry


def test_evaluation_by_parts_counts_every_image_once(two):
    assert two[0]["together"] == two[0]["judged_alone"] == two[1]["judged_alone"]


def test_what_the_first_process_does_alone_reaches_the_others(two):
    assert [rank["agreed"] for rank in two] == [0, 0]
    assert [rank["alone"] for rank in two] == [1, 1]
    assert [rank["failed"] for rank in two] == ["here", "elsewhere"]


def test_one_process_and_two_agree_on_the_depth(one, two):
    assert one[0]["depth"] == two[0]["depth"]
    assert abs(one[0]["together"]["value"] - two[0]["together"]["value"]) <= 5 / 97


def test_a_network_in_parts_trains_as_copies_do_also_when_it_is_resumed(two, tmp_path):
    begun = work(2, tmp_path / "run", "--parallel", "fsdp", "--stop-after", 2)
    ended = work(2, tmp_path / "run", "--parallel", "fsdp")
    assert ended[0]["digest"] == ended[1]["digest"]
    assert ended[0]["depth"] == two[0]["depth"]
    # Sums in another order differ in the last bits, which training carries on.
    for mine, theirs in zip(begun[0]["records"] + ended[0]["records"], two[0]["records"], strict=True):
        assert mine[:3] == theirs[:3]
        assert abs(mine[3] - theirs[3]) <= 5 / 97


def test_a_run_of_two_processes_goes_on_with_two_and_with_three_and_with_one(two, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    begun = work(2, run, "--stop-after", 3)
    assert begun[0]["records"] == two[0]["records"][:3]
    shutil.copytree(run, other)
    assert [rank["digest"] for rank in work(2, run)] == [two[0]["digest"]] * 2
    further = work(3, other, "--stop-after", 2)
    assert [record[:3] for record in further[0]["records"]] == [record[:3] for record in two[0]["records"][3:5]]
    ended = work(1, other)
    assert ended[0]["depth"] == two[0]["depth"]
    assert len(read_history(other / "history.jsonl")) == 5 + len(ended[0]["records"])


def test_a_killed_process_ends_the_others_and_a_restart_goes_on(tmp_path):
    run = tmp_path / "run"
    command = ["-m", "odn", "--", "run", "digits", "--run", run, "--depths", "1", "--target", "0.9"]
    process = torchrun(2, *command, "--backbone", "cifar_resnet20", "--finetune-epochs", "1", restarts=1)
    while not (run / "checkpoints" / "expand.previous.safetensors").is_file():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    second = next(pid for pid in children(process.pid) if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(second, signal.SIGKILL)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert said.count("report: ") == 1  # the first process alone speaks
    assert json.loads((run / "report.json").read_text())["depth"] == 1
    epochs = [record.epoch for record in read_history(run / "history.jsonl") if record.phase == "expand"]
    assert epochs == list(range(1, len(epochs) + 1))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
