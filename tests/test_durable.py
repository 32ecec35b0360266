import dataclasses
import logging
import math
import subprocess
import sys

import pytest
import torch

from conftest import tiny_data
from odn.checkpoint import Checkpoints
from odn.config import FinetuneConfig, TrainConfig
from odn.data import Share
from odn.durable import MOST_ROLLBACKS
from odn.engine import finish
from odn.errors import OdnError, UsageError
from odn.expansion import expand, expand_epochs
from odn.extraction import extract, finetune_epochs
from odn.files import exclusive
from odn.losses import LabelLoss
from odn.processes import check_copies
from odn.schedules import constant_after_warmup
from odn.stage import Stage
from test_expansion import TRAINING, UNREACHABLE, network, same, state
from test_network import by_hand

DATA = tiny_data()
CONFIG = dataclasses.replace(UNREACHABLE, depths=(1, 2), epochs_per_depth=2)
EVERY_BATCH = dataclasses.replace(TRAINING, checkpoint_minutes=1e-9)


class Killed(BaseException):
    """Stands for the end of the process."""


def die_after(monkeypatch, saves: int) -> None:
    """End the process, as it were, right after a state was saved."""
    original, left = Checkpoints.save, [saves]

    def save(self, *arguments):
        original(self, *arguments)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save)


def untimed(records) -> list:
    return [dataclasses.replace(record, seconds=0.0) for record in records]


def expansion(checkpoints, training=EVERY_BATCH):
    return expand_epochs(network(), DATA.train, DATA.valid, config=CONFIG, training=training, checkpoints=checkpoints)


@pytest.mark.parametrize("saves", [1, 2, 7, 13, 14, 15, 28, 40])
def test_an_expansion_killed_within_an_epoch_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, saves):
    expected = finish(expansion(Checkpoints("expand"), TRAINING))
    with monkeypatch.context() as patch:
        die_after(patch, saves)
        with pytest.raises(Killed):
            finish(expansion(Checkpoints("expand", tmp_path)))
    checkpoints = Checkpoints("expand", tmp_path, resume=True)
    result = finish(expansion(checkpoints))
    assert untimed(result.records) == untimed(expected.records)
    whole = Checkpoints("expand")
    finish(expansion(whole, TRAINING))
    assert same(checkpoints._tensors, whole._tensors)


@pytest.mark.parametrize("saves", [1, 5, 13, 14, 20, 30, 37, 40])
@pytest.mark.parametrize("share", [math.inf, 0.25])
def test_a_finetuning_killed_within_an_epoch_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, saves, share):
    training = dataclasses.replace(EVERY_BATCH, evaluation_share=share)

    def epochs(small, checkpoints):
        config = FinetuneConfig(epochs=4)
        return finetune_epochs(small, DATA.train, DATA.valid, config=config, training=training, checkpoints=checkpoints)

    whole, resumed = extract(network(), 2), extract(network(), 2)
    expected = finish(epochs(whole, Checkpoints("finetune")))
    with monkeypatch.context() as patch:
        die_after(patch, saves)
        with pytest.raises(Killed):
            finish(epochs(extract(network(), 2), Checkpoints("finetune", tmp_path)))
    checkpoints = Checkpoints("finetune", tmp_path, resume=True)
    assert finish(epochs(resumed, checkpoints)) == expected
    assert same(state(whole), state(resumed))
    ends = [1, 2, 3, 4] if share == math.inf else [2, 4]
    assert [record.epoch for record in checkpoints.records] == ends
    assert all(record.train_samples == 192 * record.epochs for record in checkpoints.records)


def corrupt(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        content[len(content) // 2] ^= 4
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "bit-flipped", "empty"])
def test_a_damaged_newest_state_falls_back_to_the_one_before(tmp_path, how, caplog):
    expected = finish(expansion(Checkpoints("expand"), TRAINING))
    running = expansion(Checkpoints("expand", tmp_path), TRAINING)
    for _ in range(3):
        next(running)
    running.close()
    newest = tmp_path / "checkpoints" / "expand.safetensors"
    corrupt(newest, how)
    with caplog.at_level(logging.WARNING, "odn"):
        checkpoints = Checkpoints("expand", tmp_path, resume=True)
    assert f"{newest} is damaged" in caplog.text
    assert "going on from the state before it" in caplog.text
    assert untimed(finish(expansion(checkpoints, TRAINING)).records) == untimed(expected.records)


def test_two_damaged_states_are_refused(tmp_path):
    running = expansion(Checkpoints("expand", tmp_path), TRAINING)
    next(running)
    running.close()
    for name in ("expand.safetensors", "expand.previous.safetensors"):
        corrupt(tmp_path / "checkpoints" / name, "bit-flipped")
    with pytest.raises(OdnError, match=r"expand\.safetensors is damaged .*start anew with --force"):
        Checkpoints("expand", tmp_path, resume=True)


def test_a_state_of_another_schema_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("odn.checkpoint.SCHEMA", 1)
    running = expansion(Checkpoints("expand", tmp_path), TRAINING)
    next(running)
    running.close()
    monkeypatch.undo()
    with pytest.raises(OdnError, match="has schema 1; this odn reads 2; start anew with --force"):
        Checkpoints("expand", tmp_path, resume=True)


def break_steps(monkeypatch, broken) -> None:
    """Make the loss of some steps infinite, and ruin the weights with it."""
    original, calls = Stage.train_step, [0]

    def step(self, x, labels, schedule):
        calls[0] += 1
        loss = original(self, x, labels, schedule)
        if broken(self, calls[0]):
            with torch.no_grad():
                next(self.network.stem.parameters()).fill_(float("nan"))
            return loss * float("inf")
        return loss

    monkeypatch.setattr(Stage, "train_step", step)


def test_a_loss_that_is_not_finite_is_rolled_back_with_half_the_learning_rate(monkeypatch, caplog):
    break_steps(monkeypatch, lambda stage, call: call in (20, 30))
    training = dataclasses.replace(TRAINING, warmup_epochs=0.0)
    with caplog.at_level(logging.WARNING, "odn"):
        records = list(expansion(Checkpoints("expand"), training))
    assert "the loss or the answers became infinite or NaN at depth 1, epoch 2, step 8 of 12" in caplog.text
    assert "first broken parameter: stem." in caplog.text
    assert "images of that step: image " in caplog.text
    rates = [record.learning_rate for record in records]
    assert rates == pytest.approx([0.05, 0.0125, 0.0125, 0.0125])
    assert all(record.train_loss is not None for record in records)


def test_a_rolled_back_training_is_the_same_as_one_with_that_learning_rate_from_there(monkeypatch):
    """Nothing of the broken weights survives."""
    break_steps(monkeypatch, lambda stage, call: call == 3)
    rolled = Checkpoints("expand")
    finish(expansion(rolled, TRAINING))
    monkeypatch.undo()
    slow = Checkpoints("expand")
    finish(expansion(slow, dataclasses.replace(TRAINING, learning_rate=TRAINING.learning_rate / 2)))
    assert same(rolled._tensors, slow._tensors)


def test_training_that_diverges_again_and_again_stops_with_the_cause():
    explosive = dataclasses.replace(TRAINING, learning_rate=1e30, warmup_epochs=0.0)
    with pytest.raises(
        OdnError,
        match=r"NaN at depth 1, epoch 1, step \d+ of 12; first broken parameter: .*; images of that step: .*; lowering "
        rf"the learning rate {MOST_ROLLBACKS} times did not help: .*lower train\.learning_rate",
    ):
        expand(network(), DATA.train, DATA.valid, config=CONFIG, training=explosive)


def out_of_memory_above(monkeypatch, limit: int) -> None:
    original = LabelLoss.__call__

    def loss(self, model, x, labels):
        if len(x) > limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, model, x, labels)

    monkeypatch.setattr(LabelLoss, "__call__", loss)


def one_step(**changes) -> Stage:
    torch.manual_seed(0)
    config = TrainConfig(batch_size=16, learning_rate=0.05, precision="fp32", **changes)
    stage = Stage(by_hand(norm=False).prefix(1), config, DATA.train)
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    stage.train_step(x, torch.arange(16) % 3, constant_after_warmup(0.0))
    return stage


def test_out_of_memory_halves_what_is_computed_at_a_time_and_keeps_the_batch(monkeypatch, caplog):
    whole = one_step()
    out_of_memory_above(monkeypatch, 5)
    with caplog.at_level(logging.WARNING, "odn"):
        halved = one_step()
    assert halved.micro_batches == 4
    assert "going on with 4 images at a time; batches stay at 16" in caplog.text
    for expected, found in zip(whole.network.parameters(), halved.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_out_of_memory_with_two_images_is_explained(monkeypatch):
    out_of_memory_above(monkeypatch, 1)
    with pytest.raises(OdnError, match="out of memory with 2 images at a time; choose a smaller backbone"):
        one_step()


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    monkeypatch.setattr(LabelLoss, "__call__", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        one_step()


def among_two(monkeypatch, total) -> None:
    """Let a single process believe that it is one of two."""
    monkeypatch.setattr("odn.stage.share", lambda: Share(rank=0, world=2))
    monkeypatch.setattr("odn.stage.copy_from_first", lambda tensors: None)
    monkeypatch.setattr("odn.stage.total", total)


def test_of_two_processes_the_one_with_less_memory_sets_the_parts_before_gradients_are_shared(monkeypatch):
    torch.manual_seed(0)
    start = by_hand(norm=False).prefix(1)
    alone = one_step(weight_decay=0.0)
    parts = []

    def total(values):
        parts.append(values.clone())
        return values + torch.tensor([0, 8])  # what the other one needs

    among_two(monkeypatch, total)
    out_of_memory_above(monkeypatch, 5)
    stage = one_step(weight_decay=0.0)
    assert [part.tolist() for part in parts] == [[4, 0]]
    assert stage.micro_batches == 8
    # The trial leaves nothing behind: the step is that of a single process, with gradients twice as large, because
    # this process was given the images of both.
    for before, mine, theirs in zip(
        start.parameters(), stage.network.parameters(), alone.network.parameters(), strict=True
    ):
        torch.testing.assert_close(mine - before, 2 * (theirs - before))


def test_running_out_of_memory_while_others_wait_is_explained(monkeypatch):
    among_two(monkeypatch, lambda values: values)
    stage = one_step()
    out_of_memory_above(monkeypatch, 5)
    with pytest.raises(OdnError, match="out of memory with 16 images per process; start more processes or lower train"):
        stage.train_step(torch.randn(16, 1, 8, 8), torch.arange(16) % 3, constant_after_warmup(0.0))


def test_processes_whose_weights_differ_are_found_out(monkeypatch):
    network = by_hand().prefix(1)
    monkeypatch.setattr("odn.processes.share", lambda: Share(rank=0, world=2))
    monkeypatch.setattr("odn.processes.total", lambda values: 2 * values)
    check_copies(network)
    monkeypatch.setattr("odn.processes.total", lambda values: 2 * values + 1)
    with pytest.raises(OdnError, match="the processes no longer hold the same weights: one of them computes wrongly"):
        check_copies(network)


def test_a_batch_has_two_images_for_every_process(monkeypatch):
    monkeypatch.setattr("odn.stage.share", lambda: Share(rank=0, world=9))
    with pytest.raises(UsageError, match="16 images per step for 9 processes; BatchNorm needs 2 or more in each"):
        one_step()


HOLD = """
import sys
from pathlib import Path
from odn.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_a_directory_belongs_to_one_process_at_a_time(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        refused = pytest.raises(OdnError, match="is in use by another process; wait for it, or choose another with")
        with refused, exclusive(tmp_path):
            pytest.fail("two processes are in")
        other.kill()
        other.wait()
    with exclusive(tmp_path), exclusive(tmp_path):
        pass
