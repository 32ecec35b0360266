"""Compressing in width: what is learnt, what is kept, and that an interruption changes nothing."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import tiny_data
from odn.checkpoint import Checkpoints
from odn.compression import CompressResult, compress, compress_epochs
from odn.config import CompressConfig, ExpandConfig, FinetuneConfig
from odn.data import plain_batches
from odn.distillation import Teacher
from odn.engine import finish
from odn.errors import UsageError
from odn.evaluation import evaluate
from odn.extraction import extract, finetune
from odn.measure import measure_cost, train_macs
from odn.records import read_history
from odn.schedules import constant_after_warmup
from odn.stage import Stage
from odn.widths import channels_of
from test_durable import Killed, die_after, untimed
from test_expansion import FAST, TRAINING, network, same, state

DATA = tiny_data()
SHAPE = DATA.spec.input_shape
EVERY_BATCH = dataclasses.replace(TRAINING, checkpoint_minutes=1e-9)
BRIEF = CompressConfig(width=0.5, channel_multiple=2, epochs=2)
WALK = CompressConfig(auto=True, channel_multiple=1, step=0.5, epochs=3)
GOAL = ExpandConfig(target_accuracy=0.9)


@pytest.fixture(scope="module")
def trained():
    """A network of two blocks and four channels that knows its stripes."""
    small = extract(network(), 2)
    result = finetune(small, DATA.train, DATA.valid, config=FinetuneConfig(epochs=6, rate=1.0), training=FAST)
    assert result.valid_score > 0.95
    return small


def epochs(network, config=BRIEF, goal=GOAL, training=TRAINING, checkpoints=None):
    return compress_epochs(
        network, DATA.train, DATA.valid, config=config, goal=goal, training=training, checkpoints=checkpoints
    )


def test_a_narrower_network_learns_and_the_original_stays(trained):
    before = state(trained)
    config = CompressConfig(channel_multiple=2, epochs=6)
    result = compress(trained, DATA.train, DATA.valid, width=0.5, config=config, training=FAST)
    assert isinstance(result, CompressResult)
    assert same(state(trained), before)
    assert set(channels_of(result.network).values()) == {2, 3}
    assert result.network.spec.channels["stem.conv"] == 2
    cost = measure_cost(result.network, SHAPE)
    assert (result.parameters, result.macs, result.width) == (cost.parameters, cost.macs, 0.5)
    assert result.valid_score == evaluate(result.network, DATA.valid).value > 0.7
    assert result.valid_score_before == evaluate(trained, DATA.valid).value


@pytest.mark.parametrize("figure", ["parameters", "macs"])
def test_a_bound_on_the_cost_is_kept(trained, figure):
    bound = getattr(measure_cost(trained, SHAPE), figure) // 2
    config = CompressConfig(channel_multiple=1, epochs=1)
    result = compress(trained, DATA.train, DATA.valid, config=config, training=TRAINING, **{f"max_{figure}": bound})
    assert 0.5 * bound < getattr(result, figure) <= bound


@pytest.mark.parametrize("bounds", [{}, {"width": 0.5, "max_macs": 100}, {"width": 0.5, "target_accuracy": 0.9}])
def test_exactly_one_bound_is_given(trained, bounds):
    with pytest.raises(UsageError, match="allowed: exactly one, above 0, of width, max_parameters, max_macs"):
        compress(trained, DATA.train, DATA.valid, **bounds)


def test_a_target_that_is_no_fraction_is_refused(trained):
    with pytest.raises(UsageError, match=r"for 90 % write 0\.9"):
        compress(trained, DATA.train, DATA.valid, target_accuracy=90)


def test_the_walk_keeps_the_smallest_network_that_holds_the_target(trained):
    result = compress(trained, DATA.train, DATA.valid, target_accuracy=0.5, config=WALK, training=FAST)
    assert result.width < 1
    assert result.valid_score >= 0.5
    assert set(channels_of(result.network).values()) <= {1, 2, 3}


def test_the_walk_starts_every_step_from_the_one_before(trained, monkeypatch):
    seen = []
    import odn.compression as module

    original = module.prune
    monkeypatch.setattr(
        module, "prune", lambda net, channels, shape: seen.append(net) or original(net, channels, shape)
    )
    goal = ExpandConfig(target_accuracy=0.01)
    history = list(epochs(trained, WALK, goal))
    assert [record.narrowed.width for record in history] == [0.5] * 3 + [0.25] * 3
    stems = [net.stem.conv.out_channels for net in seen]
    # From the whole, once more for the shape of the step before, from that step, and the result.
    assert stems == [4, 4, 2, 4]


def test_a_target_that_narrowing_misses_leaves_the_network_as_it_was(trained):
    goal = ExpandConfig(target_accuracy=1.0, confidence=0.99)
    checkpoints = Checkpoints("compress")
    result = finish(epochs(trained, WALK, goal, checkpoints=checkpoints))
    assert result.width == 1.0
    assert same(state(result.network), state(trained))
    assert {record.narrowed.width for record in checkpoints.records} == {0.5}


@pytest.mark.parametrize("saves", [1, 13, 14, 30])
def test_compressing_killed_within_an_epoch_ends_as_an_uninterrupted_one(trained, tmp_path, monkeypatch, saves):
    config, goal = dataclasses.replace(WALK, epochs=2), ExpandConfig(target_accuracy=0.01)
    expected = finish(epochs(trained, config, goal))
    whole = Checkpoints("compress")
    finish(epochs(trained, config, goal, checkpoints=whole))
    with monkeypatch.context() as patch:
        die_after(patch, saves)
        with pytest.raises(Killed):
            finish(epochs(trained, config, goal, EVERY_BATCH, Checkpoints("compress", tmp_path)))
    checkpoints = Checkpoints("compress", tmp_path, resume=True)
    result = finish(epochs(trained, config, goal, EVERY_BATCH, checkpoints))
    assert same(state(result.network), state(expected.network))
    assert (result.width, result.valid_score) == (expected.width, expected.valid_score)
    assert untimed(checkpoints.records) == untimed(whole.records)
    assert untimed(read_history(tmp_path / "history.jsonl")) == untimed(whole.records)


def test_what_compressing_cost_counts_the_teacher(trained):
    checkpoints = Checkpoints("compress")
    finish(epochs(trained, checkpoints=checkpoints))
    small, large = checkpoints.records[0].narrowed.macs, measure_cost(trained, SHAPE).macs
    assert small < large
    # Two epochs of 192 images; the pruned network is looked at once more before the first.
    evaluated = 2 * (192 + 96) + 96
    assert train_macs(checkpoints.records, [0, 10**9]) == small * (3 * 2 * 192 + evaluated) + large * 2 * 192


def test_the_loss_is_that_of_the_paper():
    torch.manual_seed(0)
    teacher = nn.Linear(4, 3)
    x, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    logits = torch.randn(5, 3)
    mixed = Teacher(teacher, "classification", temperature=2.0, share=0.7).loss(
        x, logits, F.cross_entropy(logits, labels)
    )
    soft = (teacher(x) / 2).softmax(1)
    # Cross-entropy with the soft targets, less their entropy, which does not depend on the student.
    distance = (soft * (soft.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(mixed, 0.7 * 4 * distance + 0.3 * F.cross_entropy(logits, labels))


def test_a_teacher_alone_can_be_learnt_from_and_is_not_changed(trained):
    torch.manual_seed(0)
    teacher = Teacher(trained, "classification", temperature=4.0, share=1.0)
    before = state(teacher.network)
    stage = Stage(extract(network(seed=5), 2), TRAINING, DATA.train, loss=teacher)
    x = next(plain_batches(DATA.train, 48, stage.device))[0]
    opinion = teacher.network(x).argmax(1)
    for _ in range(60):  # with labels that contradict the teacher
        stage.train_step(x, (opinion + 1) % 3, constant_after_warmup(0.0))
    assert (stage.network.train()(x).argmax(1) == opinion).float().mean() > 0.9
    assert same(state(teacher.network), before)
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert all(p.requires_grad for p in trained.parameters())


@pytest.mark.parametrize(("temperature", "share"), [(0.0, 0.5), (4.0, 1.5), (4.0, -0.1)])
def test_wrong_settings_of_a_teacher_are_refused(temperature, share):
    with pytest.raises(UsageError, match=f"temperature {temperature}, share {share}; allowed: above 0, and 0 to 1"):
        Teacher(nn.Identity(), "classification", temperature=temperature, share=share)
