import dataclasses
import math
from itertools import pairwise
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conftest import tiny_data
from odn.config import TrainConfig
from odn.engine import Progress, train_epochs
from odn.evaluation import evaluate, recalibrate
from odn.layers import training_layout
from odn.network import partition
from odn.optimizers import batch_size_for
from odn.schedules import anneal, constant_after_warmup, is_evaluated
from odn.stage import Stage, resolve_precision
from test_network import by_hand

DATA = tiny_data()
TRAINING = TrainConfig(batch_size=16, learning_rate=0.05, precision="fp32")


def stage(**changes: object) -> Stage:
    torch.manual_seed(0)
    return Stage(by_hand().prefix(1), dataclasses.replace(TRAINING, **changes), DATA.train)


def epochs(
    stage: Stage, count: int, *, seed: int = 0, pause_seconds: float = math.inf, last: int | None = None
) -> list:
    schedule = constant_after_warmup(1.0)
    return list(
        train_epochs(
            stage,
            DATA.train,
            DATA.valid,
            phase="expand",
            schedule=schedule,
            epochs=count,
            seed=seed,
            last=last,
            pause_seconds=pause_seconds,
        )
    )


def test_training_learns_and_records_what_it_did():
    records = epochs(stage(), 8)
    assert [record.epoch for record in records] == list(range(1, 9))
    assert records[-1].train_loss < records[0].train_loss
    assert records[-1].valid_score > 0.9
    assert all((r.train_samples, r.evaluated_samples, r.valid_count) == (192, 192 + 96, 96) for r in records)


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    first, second, other = stage(), stage(), stage()
    for trained, seed in ((first, 1), (second, 1), (other, 2)):
        epochs(trained, 2, seed=seed)
    weights = [s.averaged.stem.weight for s in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_long_epochs_say_how_far_they_have_come():
    first, second = epochs(stage(), 1), epochs(stage(), 1, pause_seconds=0.0)
    assert all(isinstance(item, Progress) for item in second[:-1])
    assert [item.batches for item in second[:-1]] == list(range(1, 12))  # the evaluation follows the last at once
    # Where no evaluation follows the first epoch, the sum over all of its batches is seen.
    longer = epochs(stage(evaluation_share=1e-3), 2, pause_seconds=0.0, last=1)
    whole = next(item for item in longer if isinstance(item, Progress) and item.epochs == 1)
    assert (whole.epoch, whole.batches) == (2, 0)
    assert whole.loss_sum / 192 == pytest.approx(second[-1].train_loss)
    assert dataclasses.replace(second[-1], seconds=0.0) == dataclasses.replace(first[-1], seconds=0.0)


@pytest.mark.parametrize(
    ("share", "ends"), [(math.inf, [1, 2, 3, 4, 5, 6, 7]), (0.25, [1, 3, 5, 6, 7]), (1e-3, [6, 7])]
)
def test_evaluations_cost_the_share_they_may_and_leave_training_as_it_is(share, ends):
    # An evaluation passes 288 samples forward; an epoch of training costs as much as 576 such passes.
    often, seldom = stage(), stage(evaluation_share=share)
    every = epochs(often, 7)
    records = epochs(seldom, 7, last=2)
    assert [record.epoch for record in records] == ends
    assert [record.epochs for record in records] == [after - before for before, after in pairwise([0, *ends])]
    assert sum(record.train_samples for record in records) == 7 * 192
    for record in records:
        same = every[record.epoch - 1]
        assert (record.valid_score, record.learning_rate) == (same.valid_score, same.learning_rate)
        covered = every[record.epoch - record.epochs : record.epoch]
        assert record.train_loss == pytest.approx(fmean(one.train_loss for one in covered))


@given(st.integers(1, 60), st.integers(1, 80), st.integers(1, 8))
def test_evaluations_are_evenly_spread_and_follow_the_last_epochs(epochs, interval, last):
    found = [epoch for epoch in range(1, epochs + 1) if is_evaluated(epoch, epochs, interval, last)]
    assert set(range(max(1, epochs - last + 1), epochs + 1)) <= set(found)
    assert all(after - before <= interval for before, after in pairwise([*found]))
    assert len(found) <= last + epochs / interval


def test_training_leaves_the_callers_random_state_alone():
    trained = stage()
    before = torch.random.get_rng_state()
    epochs(trained, 1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_averaged_weights_follow_the_recursion():
    trained = stage(ema_epochs=2.0)
    raw, expected = [], None
    update = trained.ema.update_parameters

    def spy(prefix):
        update(prefix)
        raw.append(prefix.stem.weight.detach().clone())

    trained.ema.update_parameters = spy
    epochs(trained, 2)
    for step, weight in enumerate(raw, 1):
        decay = min(1 - 1 / 24, (1 + step) / (10 + step))  # two epochs of 12 steps
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    torch.testing.assert_close(trained.averaged.stem.weight, expected)
    assert not torch.equal(expected, raw[-1])


def test_batchnorm_statistics_belong_to_the_averaged_weights():
    trained = stage()
    epochs(trained, 2)
    network = trained.averaged
    x = DATA.spec.preprocessing.normalise(DATA.train.images.float() / 255)
    with torch.no_grad():
        features = network.blocks[0][0](network.stem(x))
    norm = network.blocks[0][1]
    torch.testing.assert_close(norm.running_mean, features.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, features.var((0, 2, 3)), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "device", "first"),
    [
        (nn.Conv2d(15, 16, 1, stride=2), "cpu", True),
        (nn.Conv2d(16, 16, 1, stride=2), "cpu", False),
        (nn.Conv2d(32, 32, 1, stride=2, groups=4), "cpu", True),
        (nn.Conv2d(15, 16, 1), "cpu", False),
        (nn.Conv2d(15, 16, 3, stride=2), "cpu", False),
        (nn.Conv2d(15, 16, 1, stride=2), "cuda", False),
    ],
)
def test_narrow_strided_pointwise_convolutions_are_trained_channels_first_on_cpus(layer, device, first):
    layout = torch.contiguous_format if first else torch.channels_last
    assert training_layout(nn.Sequential(nn.ReLU(), layer), torch.device(device)) == layout


@pytest.mark.parametrize(("width", "first"), [(0.25, True), (1.0, False)])
def test_feature_maps_follow_the_layout_of_training(width, first):
    coloured = dataclasses.replace(DATA.spec.preprocessing, input_shape=(3, 8, 8), mean=(0.4,) * 3, std=(0.2,) * 3)
    spec = dataclasses.replace(DATA.spec, preprocessing=coloured)
    network = partition("cifar_resnet20", spec, width=width, seed=0).prefix(4)
    trained, seen = Stage(network, TRAINING, DATA.train), {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, x, y, name=name: seen.update({name: x[0].is_contiguous()}))
    trained.train_step(
        torch.randn(16, 3, 8, 8, device=trained.device), torch.arange(16, device=trained.device) % 3, lambda _: 1.0
    )
    assert set(seen.values()) == {first and trained.device.type == "cpu"}


def test_recalibration_takes_whole_batches():
    network = by_hand().prefix(1)
    big = tiny_data(train=513).train
    assert recalibrate(network, big, 2048, seed=0) == 512
    assert recalibrate(network, big, 100, seed=0) == 100


def test_recalibration_leaves_networks_without_batchnorm_alone():
    assert recalibrate(nn.Linear(1, 1), DATA.train, 64, seed=0) == 0


def test_evaluate_counts_every_image_and_restores_the_mode():
    network = by_hand().prefix(1).train()
    with torch.no_grad():
        network.head.linear.weight.zero_()
        network.head.linear.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert evaluate(network, DATA.valid).value == (DATA.valid.labels == 1).float().mean()
    assert network.training


def test_the_learning_rate_warms_up_and_anneals_to_zero():
    rise = constant_after_warmup(2.0)
    assert [rise(t) for t in (0.0, 0.5, 1.0, 2.0, 9.0)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    fall = anneal(10, 2.0)
    assert fall(0.5) == pytest.approx(0.5, abs=0.01)
    assert fall(1.0) == pytest.approx(1.0, abs=0.03)
    assert fall(5.5) == pytest.approx(0.5 * (1 + torch.cos(torch.tensor(0.55 * torch.pi)).item()))
    assert fall(10.0) == 0.0


def test_the_last_step_of_annealing_has_learning_rate_zero():
    trained = stage()
    list(train_epochs(trained, DATA.train, DATA.valid, phase="finetune", schedule=anneal(2, 0.0), epochs=2, seed=0))
    assert trained.optimizer.param_groups[0]["lr"] == 0.0


def test_weights_are_decayed_but_norms_and_biases_are_not():
    groups = stage(weight_decay=0.3).optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(p.ndim >= 2 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])
    count = sum(len(group["params"]) for group in groups)
    assert count == len(list(by_hand().prefix(1).parameters()))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizer_state_is_carried_over_by_name_and_shape(optimizer):
    network = by_hand()
    old = Stage(network.prefix(1), dataclasses.replace(TRAINING, optimizer=optimizer, learning_rate=0.01), DATA.train)
    epochs(old, 1)
    old_head, new_head = network.heads[0].linear.weight, network.heads[1].linear.weight
    new = Stage(network.prefix(2), old.config, DATA.train, previous=old)
    shared = network.stem.weight
    key = "momentum_buffer" if optimizer == "sgd" else "exp_avg"
    assert torch.equal(new.optimizer.state[shared][key], old.optimizer.state[shared][key])
    assert torch.equal(new.optimizer.state[new_head][key], old.optimizer.state[old_head][key])
    fresh = new.optimizer.state.get(network.blocks[1][0].weight, {})
    assert not any(bool(tensor.any()) for tensor in fresh.values())
    trained = {id(p) for group in new.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in network.prefix(2).parameters()}


@pytest.mark.parametrize(("count", "expected"), [(10, 16), (1150, 16), (54_000, 256), (9000, 128), (4100, 64)])
def test_default_batch_sizes(count, expected):
    assert batch_size_for(TrainConfig(), count) == expected
    assert batch_size_for(TrainConfig(batch_size=7), count) == 7


@pytest.mark.parametrize(
    ("optimizer", "batch_size", "rate"),
    [("sgd", 16, 0.1), ("sgd", 128, 0.1), ("sgd", 512, 0.4), ("adamw", 64, 0.002 * 0.5**0.5)],
)
def test_default_learning_rates_scale_with_the_batch_that_of_sgd_not_below_128_images(optimizer, batch_size, rate):
    trained = stage(optimizer=optimizer, batch_size=batch_size, learning_rate=0.0)
    assert trained.optimizer.param_groups[0]["initial_lr"] == pytest.approx(rate)
    assert stage(optimizer=optimizer).optimizer.param_groups[0]["initial_lr"] == 0.05


def test_precision_is_taken_as_asked_and_auto_asks_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    assert resolve_precision("fp32", cpu) == "fp32"
    assert resolve_precision("bf16", cpu) == "bf16"
    for capabilities, precision in (
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True}, "fp32"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bf16"),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)  # noqa: B023
        assert resolve_precision("auto", cpu) == precision


def test_bf16_training_keeps_fp32_weights():
    trained = stage(precision="bf16")
    records = epochs(trained, 6)
    assert trained.network.stem.weight.dtype == torch.float32
    assert records[-1].valid_score > 0.9


def test_gradients_are_clipped_on_request():
    trained = stage(max_gradient_norm=1e-9, weight_decay=0.0)
    before = trained.network.stem.weight.detach().clone()
    epochs(trained, 1)
    torch.testing.assert_close(trained.network.stem.weight, before, rtol=0, atol=1e-6)
