"""Linear probes of a pretrained network, and what they decide: where growing begins, never where the search may end."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn

from conftest import tiny_data
from odn.checkpoint import Checkpoints
from odn.config import ExpandConfig
from odn.costs import start_row
from odn.data import TensorSplit
from odn.engine import finish
from odn.errors import OdnError, UsageError
from odn.evaluation import evaluate
from odn.expansion import _copy_head, expand, expand_epochs
from odn.layers import Head
from odn.network import PartitionedNetwork, partition
from odn.probing import fit_linear, probe
from odn.starting import Probe, Start, first_depth, read_start, write_start
from test_expansion import FAST, TRAINING, UNREACHABLE, same, state
from test_network import by_hand
from test_stopping import records

DATA = tiny_data()


def trained(seed: int = 0) -> PartitionedNetwork:
    """A network of one's own whose weights count as trained."""
    whole = partition("cifar_resnet20", DATA.spec, width=0.25, seed=seed)
    own = nn.Sequential(whole.stem, *whole.blocks, Head(16, 3))
    return partition(own, DATA.spec, blocks=[str(number) for number in range(1, 10)], pretrained=True)


# probing -----------------------------------------------------------------------------------------------------------


def test_the_classifier_is_that_of_logistic_regression():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    features = torch.randn(300, 5, generator=generator) * 3 + labels[:, None] * torch.tensor([2.0, 0, -1, 0, 4]) + 7
    weight, bias = fit_linear(features, labels, 3)
    scale = (features - features.mean(0)).square().mean().sqrt()
    reference = LogisticRegression(C=1 / (300 * 1e-3), tol=1e-8, max_iter=2000)
    reference.fit(((features - features.mean(0)) / scale).numpy(), labels.numpy())
    expected = torch.from_numpy(reference.coef_).float() / scale
    torch.testing.assert_close(weight, expected, rtol=2e-2, atol=2e-3)
    logits = features @ weight.T + bias
    assert (
        logits.argmax(1).numpy() == reference.predict(((features - features.mean(0)) / scale).numpy())
    ).mean() > 0.99


@pytest.mark.parametrize("classes", [2, 5])
def test_a_class_without_images_and_features_without_variance_do_no_harm(classes):
    weight, bias = fit_linear(torch.ones(20, 4), torch.arange(20) % 2, classes)
    assert weight.shape == (classes, 4)
    assert bool(torch.isfinite(weight).all() and torch.isfinite(bias).all())


def test_probing_fits_the_heads_and_leaves_the_rest_as_it_came():
    network = trained()
    calls = []
    network.stem.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    before = state(nn.ModuleList([network.stem, *network.blocks]))
    heads = state(network.heads)
    start = probe(network, DATA.train, DATA.valid, [1, 3, 9], config=ExpandConfig())
    assert same(before, state(nn.ModuleList([network.stem, *network.blocks])))
    assert [p.depth for p in start.probes] == [1, 3, 9]
    for found in start.probes:
        assert evaluate(network.prefix(found.depth), DATA.valid).value == found.valid_accuracy
        assert found.valid_accuracy > 0.5
    changed = {
        name.split(".")[0]
        for name, tensor in network.heads.state_dict().items()
        if not torch.equal(tensor, heads[name])
    }
    assert changed == {"0", "2", "8"}
    # One forward pass per image, whatever the number of depths.
    assert start.images == 192 + 96
    assert sum(calls[: len(calls) - 3]) == 192 + 96
    assert start.macs(list(range(10, 19))) == 18 * 288
    assert network.training


def test_a_bounded_subset_is_probed_and_the_seed_decides_it():
    found = [
        probe(trained(), DATA.train, DATA.valid, [2], config=ExpandConfig(probe_images=40), seed=seed)
        for seed in (1, 1, 2)
    ]
    assert [start.images for start in found] == [136] * 3
    assert found[0].probes == found[1].probes
    nothing = probe(trained(), DATA.train, DATA.valid, [2], config=ExpandConfig(probe_images=0))
    assert (nothing.probes, nothing.images, nothing.macs([1, 2])) == ((), 0, 0)


def test_norms_of_the_new_heads_get_statistics_of_the_frozen_features():
    own = by_hand()
    own.origin = trained().origin
    for head in own.heads:
        head.after = nn.Sequential(nn.BatchNorm1d(4))
    own.eval()
    start = probe(own, DATA.train, DATA.valid, [1, 2, 3], config=ExpandConfig(), recalibration_images=192)
    assert start.images == 192 + 192 + 96
    norm = own.heads[1].after[0]
    assert norm.momentum == 0.1
    x = DATA.spec.preprocessing.normalise(DATA.train.images.float() / 255)
    own.eval()
    with torch.no_grad():
        pooled = own.blocks[1](own.blocks[0](own.stem(x))).mean((2, 3))
    torch.testing.assert_close(norm.running_mean, pooled.mean(0), rtol=1e-3, atol=1e-4)


def test_a_target_that_is_no_accuracy_is_not_probed_for():
    spec = dataclasses.replace(DATA.spec, metric="macro_f1")
    train = TensorSplit(DATA.train.images, DATA.train.labels, spec)
    assert probe(trained(), train, DATA.valid, [1, 2], config=UNREACHABLE).probes == ()
    assert probe(trained(), DATA.train, DATA.valid, [1, 2], config=UNREACHABLE).probes


def test_a_head_that_cannot_be_fitted_is_refused():
    network = trained()
    network.heads[0] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3, bias=False))
    with pytest.raises(OdnError, match="the head of depth 1 has no linear layer with 3 outputs and a bias to fit"):
        probe(network, DATA.train, DATA.valid, [1, 2], config=ExpandConfig())


# where growing begins ----------------------------------------------------------------------------------------------


def started(*accuracies: float, count: int = 10_000, first: int = 1) -> Start:
    probes = tuple(
        Probe(depth=depth, valid_correct=round(a * count), valid_count=count)
        for depth, a in enumerate(accuracies, first)
    )
    return Start(source="x", blocks=len(accuracies), probes=probes, depth=len(accuracies), images=1)


DEPTHS = (1, 2, 3, 4, 5)


def test_depths_whose_probe_is_far_beyond_target_and_best_probe_are_passed_over():
    start = started(0.3, 0.5, 0.7, 0.88, 0.9)
    assert first_depth(start, DEPTHS, ExpandConfig(target_accuracy=0.95)) == 4  # 2 * 0.1 allows an error of 0.2
    assert first_depth(start, DEPTHS, ExpandConfig(target_accuracy=0.8)) == 3  # an easy target allows 2 * 0.2
    assert first_depth(start, DEPTHS, ExpandConfig()) == 4  # an automatic target goes by the best probe
    assert first_depth(start, (2, 5), ExpandConfig()) == 5
    assert first_depth(start, DEPTHS, ExpandConfig(reach_probe=10)) == 1
    assert first_depth(None, DEPTHS, ExpandConfig()) == 1
    assert first_depth(Start(source="x", blocks=5), DEPTHS, ExpandConfig()) == 1


def test_few_validation_images_condemn_no_depth():
    auto = ExpandConfig()
    assert [first_depth(started(0.70, 0.88, count=count), (1, 2), auto) for count in (50, 10_000)] == [1, 2]


def test_blocks_that_came_fresh_are_not_passed_over():
    start = dataclasses.replace(started(0.2, 0.9), blocks=2)
    assert first_depth(start, (1, 3, 4), ExpandConfig(target_accuracy=0.99)) == 1  # its probe is the only one
    assert first_depth(start, (1, 2, 3), ExpandConfig(target_accuracy=0.99)) == 2


accuracies = st.lists(st.floats(0, 1), min_size=5, max_size=5)


@given(found=accuracies, target=st.floats(0.0, 1.0), reach=st.floats(1, 20), count=st.integers(1, 10**6))
def test_the_depth_at_which_growing_begins(found, target, reach, count):
    start = started(*found, count=count)
    config = ExpandConfig(target_accuracy=target, reach_probe=reach)
    first = first_depth(start, DEPTHS, config)
    # The best probe is never passed over, nor one that has the target already.
    best = max(start.probes, key=lambda p: p.valid_correct)
    assert first <= best.depth
    assert not any(target and p.valid_accuracy >= target for p in start.probes if p.depth < first)
    # Those that are passed over err more than so many times as much as the best.
    assert all(1 - p.valid_accuracy > reach * (1 - best.valid_accuracy) for p in start.probes if p.depth < first)
    # A longer reach, an easier target or fewer images pass over no more.
    assert first_depth(start, DEPTHS, dataclasses.replace(config, reach_probe=reach + 1)) <= first
    if target / 2:  # half of the least number is none
        assert first_depth(start, DEPTHS, dataclasses.replace(config, target_accuracy=target / 2)) <= first
        assert first_depth(start, DEPTHS, dataclasses.replace(config, target_accuracy=0.0)) >= first


HUGE = '{"source": "x", "blocks": 1, "depth": 1, "probes": [{"depth": 1, "valid_correct": 1, "valid_count": 1%s}]}' % (
    400 * "0"
)


def test_a_start_survives_its_file(tmp_path):
    assert read_start(tmp_path) is None
    start = started(0.3, 0.5)
    write_start(start, tmp_path)
    assert read_start(tmp_path) == start
    for broken in ("{", "[]", '{"source": "x", "blocks": 2, "schema": 9}', '{"source": "x", "blocks": 0}', HUGE):
        (tmp_path / "start.json").write_text(broken)
        with pytest.raises(OdnError, match="start.json is damaged .*; start anew with --force") as error:
            read_start(tmp_path)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="a probe has a depth from 1, and no more correct images than there are"):
        Probe(depth=1, valid_correct=3, valid_count=2)
    with pytest.raises(UsageError, match=r"probes of depths \[1, 2\]; allowed: ascending depths up to 1"):
        dataclasses.replace(start, depth=1)
    with pytest.raises(OdnError, match="start.json says that depth 2 was probed, of 1; start anew with --force"):
        start.macs([10])


# expansion ---------------------------------------------------------------------------------------------------------


def test_the_report_says_at_which_depth_training_began():
    epoch = records([900], depth=2)[0]
    for phase in ("expand", "settle"):  # without a target nothing is grown
        assert start_row(started(0.3, 0.5), [dataclasses.replace(epoch, phase=phase)])["first_depth"] == 2
    assert start_row(started(0.3, 0.5), [dataclasses.replace(epoch, phase="oneshot")])["first_depth"] is None


def test_a_random_start_is_not_probed():
    network = partition("cifar_resnet20", DATA.spec, width=0.25)
    assert expand(network, DATA.train, DATA.valid, target_accuracy=0.5, training=FAST).start is None


def test_expansion_begins_at_the_first_promising_depth_and_leaves_the_heads_that_probes_fitted(monkeypatch):
    found = dataclasses.replace(started(0.3, 0.4, 0.9), blocks=9)
    monkeypatch.setattr("odn.expansion.probe", lambda *_arguments, **_options: found)
    given = []

    def watched(network, old_depth, depths):
        given.append((old_depth, list(depths)))
        return _copy_head(network, old_depth, depths)

    monkeypatch.setattr("odn.expansion._copy_head", watched)
    network = trained()
    config = dataclasses.replace(UNREACHABLE, depths=(1, 2, 3, 4), epochs_per_depth=2)
    epochs = expand_epochs(network, DATA.train, DATA.valid, config=config, training=TRAINING)
    first = next(epochs)
    assert (first.phase, first.depth, len(first.scores)) == ("expand", 3, 3)
    result = finish(epochs)
    assert (result.start, given) == (found, [(3, [4])])  # depth 4 was not probed here
    assert {record.depth for record in result.records} == {3, 4}


def test_a_new_head_begins_as_that_of_the_depth_before_where_shapes_agree():
    network = trained()
    before, wider = state(network.heads[0]), state(network.heads[3])
    assert not same(before, state(network.heads[1]))
    _copy_head(network, 1, [2, 4])
    assert same(before, state(network.heads[1]))
    assert same(wider, state(network.heads[3]))


@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_a_resumed_expansion_of_a_pretrained_network_ends_as_an_uninterrupted_one(tmp_path, stop_after):
    config = dataclasses.replace(UNREACHABLE, depths=(1, 2, 4), epochs_per_depth=2, reach_probe=1e9, probe_images=64)
    data = tiny_data(96, 48)

    def epochs(grown, checkpoints):
        return expand_epochs(grown, data.train, data.valid, config=config, training=TRAINING, checkpoints=checkpoints)

    def named() -> PartitionedNetwork:
        network = partition("cifar_resnet20", DATA.spec, width=0.25, seed=3)
        network.origin = trained().origin
        return network

    whole, resumed = named(), partition("cifar_resnet20", DATA.spec, width=0.25, seed=4)
    expected = finish(epochs(whole, Checkpoints("expand")))
    interrupted = epochs(named(), Checkpoints("expand", tmp_path))
    for _ in range(stop_after or 1):
        next(interrupted)
    interrupted.close()
    if not stop_after:  # as if nothing but the probes had been written
        for path in (tmp_path / "checkpoints").glob("expand*"):
            path.unlink()
    resumed.origin = whole.origin  # its other weights come from the run
    result = finish(epochs(resumed, Checkpoints("expand", tmp_path, resume=True)))
    untimed = [[dataclasses.replace(record, seconds=0.0) for record in r.records] for r in (expected, result)]
    assert untimed[0] == untimed[1]
    assert result.start.probes == expected.start.probes
    assert same(state(whole.prefix(expected.depth)), state(resumed.prefix(result.depth)))
