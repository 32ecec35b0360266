import dataclasses

import pytest
import torch

from conftest import tiny_data
from odn.checkpoint import Checkpoints
from odn.config import ExpandConfig, FinetuneConfig, TrainConfig
from odn.engine import finish, train_epochs
from odn.errors import UsageError
from odn.expansion import _attach, expand, expand_epochs
from odn.extraction import extract, finetune, finetune_epochs
from odn.network import PartitionedNetwork, partition
from odn.records import StopReason, read_history
from odn.search import expand_result
from odn.stage import Stage
from test_network import by_hand

DATA = tiny_data()
TRAINING = TrainConfig(batch_size=16, learning_rate=0.05, precision="fp32")
FAST = dataclasses.replace(TRAINING, learning_rate=0.5)
UNREACHABLE = ExpandConfig(
    target_accuracy=0.9999, confidence=0.999999, epochs_per_depth=3, patience=2, cooldown_epochs=0
)

LOOKING_BACK = ExpandConfig(
    target_accuracy=0.9, epochs_per_depth=2, confirmations=1, cooldown_epochs=0, lookback_epochs=3
)


def network(seed: int = 0) -> PartitionedNetwork:
    return partition("cifar_resnet20", DATA.spec, width=0.25, seed=seed)


def test_the_shallowest_depth_that_holds_the_target_is_kept():
    grown = network()
    result = expand(grown, DATA.train, DATA.valid, target_accuracy=0.9, training=FAST)
    assert (result.depth, result.reached) == (1, True)
    assert result.valid_score >= 0.9
    assert result.records[-1].stop == StopReason.TARGET_REACHED
    assert [record.stop for record in result.records[:-1]] == [None] * (len(result.records) - 1)


def test_the_chosen_prefix_holds_the_weights_that_were_judged():
    from odn.engine import evaluate

    grown = network()
    result = expand(grown, DATA.train, DATA.valid, target_accuracy=0.9, training=TRAINING)
    assert evaluate(grown.prefix(result.depth), DATA.valid).value == result.valid_score


def test_missing_the_target_is_a_result_with_the_best_depth():
    result = expand(network(), DATA.train, DATA.valid, config=UNREACHABLE, training=TRAINING)
    assert not result.reached
    assert {record.depth for record in result.records} == {1, 2, 4, 8, 9}
    best = max(record.valid_score for record in result.records)
    assert result.depth == min(r.depth for r in result.records if r.valid_score == best)
    assert all(len([r for r in result.records if r.depth == depth]) <= 3 for depth in range(1, 10))


def test_a_network_that_has_learnt_nothing_is_told_and_given_its_budget(caplog):
    data = tiny_data()
    data.valid.spec = dataclasses.replace(data.valid.spec, valid_support=(80, 8, 8))
    slow = dataclasses.replace(TRAINING, learning_rate=1e-9)
    config = dataclasses.replace(UNREACHABLE, patience=1, epochs_per_depth=4, depths=(1, 2))
    result = expand(network(), data.train, data.valid, config=config, training=slow)
    assert [record.stop for record in result.records] == [None, None, None, StopReason.EPOCH_BUDGET] * 2
    assert "depth 1 does no better than one answer for every sample would, 0.8333; try more data" in caplog.text
    caplog.clear()
    result = expand(network(), DATA.train, DATA.valid, config=config, training=slow)
    assert result.records[1].stop == StopReason.PLATEAU
    assert not caplog.text


def test_of_a_depth_the_best_epoch_is_kept_not_the_last():
    from odn.engine import evaluate

    config = dataclasses.replace(UNREACHABLE, depths=(1,), epochs_per_depth=6, patience=6)
    grown = network()
    result = expand(grown, DATA.train, DATA.valid, config=config, training=TRAINING)
    correct = [record.valid_score for record in result.records]
    assert max(correct) > correct[-1]
    assert evaluate(grown.prefix(1), DATA.valid).value == max(correct)


def test_only_planned_depths_are_tried():
    config = dataclasses.replace(UNREACHABLE, depths=(2, 5))
    result = expand(network(), DATA.train, DATA.valid, config=config, training=TRAINING)
    assert {record.depth for record in result.records} == {2, 5}


def test_a_depth_that_almost_reaches_the_target_is_annealed_before_the_next_is_attached():
    config = dataclasses.replace(UNREACHABLE, depths=(1, 2), cooldown_epochs=2, reach=1e9)
    result = expand(network(), DATA.train, DATA.valid, config=config, training=TRAINING)
    phases = [(record.phase, record.depth, record.epoch) for record in result.records]
    assert phases == [
        ("expand", 1, 1), ("expand", 1, 2), ("expand", 1, 3), ("cooldown", 1, 1), ("cooldown", 1, 2),
        ("expand", 2, 1), ("expand", 2, 2), ("expand", 2, 3), ("cooldown", 2, 1), ("cooldown", 2, 2),
    ]  # fmt: skip
    rates = [record.learning_rate for record in result.records]
    assert rates[2:5] == pytest.approx([0.05, 0.025, 0.0])


def test_the_target_can_be_reached_while_annealing():
    config = ExpandConfig(target_accuracy=0.9, epochs_per_depth=1, confirmations=1, cooldown_epochs=30, reach=1e9)
    result = expand(
        network(), DATA.train, DATA.valid, config=config, training=dataclasses.replace(TRAINING, learning_rate=0.2)
    )
    assert (result.depth, result.reached, result.records[-1].phase) == (1, True, "cooldown")


@pytest.mark.parametrize(("depth", "same_function"), [(2, True), (4, False)])
def test_growing_starts_from_the_judged_function_where_shapes_allow(depth, same_function):
    grown = network()
    stage = Stage(grown.prefix(depth - 1), TRAINING, DATA.train)
    for x, y in ((torch.randn(16, 1, 8, 8), torch.arange(16) % 3) for _ in range(5)):
        stage.train_step(x, y, lambda _: 1.0)
    x = torch.randn(4, 1, 8, 8)
    judged = stage.averaged.eval()(x)
    stage.network.load_state_dict(stage.averaged.state_dict())
    new = _attach(grown, depth - 1, depth, TRAINING, DATA.train, previous=stage)
    assert new.network.depth == depth
    logits = new.network.eval()(x)
    assert torch.equal(logits, judged) == same_function
    assert new.step == 0
    # The optimizer remembers the head that was copied, and nothing of one that is new.
    momentum = [s.optimizer.state[s.network.head.linear.weight]["momentum_buffer"] for s in (stage, new)]
    assert momentum[0].any()
    assert torch.equal(*momentum) if same_function else not momentum[1].any()


def test_a_network_built_by_hand_grows_too():
    result = expand(by_hand(), DATA.train, DATA.valid, config=UNREACHABLE, training=TRAINING)
    assert {record.depth for record in result.records} == {1, 2, 3}


def test_looking_back_starts_from_the_weights_of_the_deeper_network_that_holds_the_target(monkeypatch):
    starts = {}

    def watched(stage, *arguments, **options):
        starts[options["phase"], stage.network.depth] = state(stage.network)
        return train_epochs(stage, *arguments, **options)

    monkeypatch.setattr("odn.durable.train_epochs", watched)
    checkpoints = Checkpoints("expand")
    grown = network()
    epochs = expand_epochs(grown, DATA.train, DATA.valid, config=LOOKING_BACK, training=FAST, checkpoints=checkpoints)
    path = [(record.phase, record.depth) for record in epochs]
    assert path[-1] == ("lookback", 3)
    deeper = extract(grown, 4)
    checkpoints.take("depth_004", deeper)
    start, source = starts["lookback", 3], state(deeper)
    shared = [name for name in start if name in source and not name.startswith("head.")]
    assert len(shared) > 10
    assert all(torch.equal(start[name], source[name]) for name in shared)


def test_without_a_target_the_shallowest_depth_near_the_best_is_kept():
    config = ExpandConfig(epochs_per_depth=8, lookback_epochs=3)
    result = expand(network(), DATA.train, DATA.valid, config=config, training=FAST)
    assert result.reached
    assert result.target_accuracy == pytest.approx(max(r.valid_score for r in result.records) - 0.002)
    assert result.valid_score >= result.target_accuracy


@pytest.mark.parametrize("target", [0.0, 99.0])
def test_a_target_that_is_no_fraction_is_refused(target):
    with pytest.raises(UsageError, match="allowed: a fraction above 0 and at most 1"):
        expand(network(), DATA.train, DATA.valid, target_accuracy=target)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def check_resuming(config: ExpandConfig, training: TrainConfig, stop_after: int, path) -> None:
    def epochs(grown, checkpoints):
        return expand_epochs(grown, DATA.train, DATA.valid, config=config, training=training, checkpoints=checkpoints)

    whole = network()
    expected = finish(epochs(whole, Checkpoints("expand")))
    interrupted = epochs(network(), Checkpoints("expand", path))
    for _ in range(stop_after):
        next(interrupted)
    interrupted.close()
    resumed = network()
    result = finish(epochs(resumed, Checkpoints("expand", path, resume=True)))
    untimed = [
        [dataclasses.replace(record, seconds=0.0) for record in records]
        for records in (expected.records, result.records)
    ]
    assert untimed[0] == untimed[1]
    assert result.depth == expected.depth
    assert same(state(whole.prefix(expected.depth)), state(resumed.prefix(result.depth)))
    assert [r.epoch for r in read_history(path / "history.jsonl")] == [r.epoch for r in expected.records]


@pytest.mark.parametrize("stop_after", [1, 3, 4, 5, 7])
@pytest.mark.parametrize(("optimizer", "cooldown_epochs"), [("sgd", 2), ("sgd", 0), ("adamw", 2)])
def test_a_resumed_expansion_ends_as_an_uninterrupted_one(tmp_path, stop_after, optimizer, cooldown_epochs):
    config = dataclasses.replace(
        UNREACHABLE, depths=(1, 2, 4), epochs_per_depth=3, cooldown_epochs=cooldown_epochs, reach=1e9
    )
    training = dataclasses.replace(TRAINING, optimizer=optimizer, learning_rate=0.01)
    check_resuming(config, training, stop_after, tmp_path)


@pytest.mark.parametrize("stop_after", [8, 9, 10, 11])
def test_a_resumed_look_back_ends_as_an_uninterrupted_one(tmp_path, stop_after):
    config = dataclasses.replace(LOOKING_BACK, confirmations=2, target_accuracy=0.95)
    check_resuming(config, FAST, stop_after, tmp_path)


def finished_run(path) -> None:
    config = dataclasses.replace(UNREACHABLE, depths=(1,), epochs_per_depth=2)
    checkpoints = Checkpoints("expand", path)
    finish(expand_epochs(network(), DATA.train, DATA.valid, config=config, training=TRAINING, checkpoints=checkpoints))


def test_a_record_without_its_state_is_trained_again(tmp_path):
    finished_run(tmp_path)
    history = tmp_path / "history.jsonl"
    history.write_text(history.read_text() + history.read_text().splitlines()[-1] + "\n")
    assert len(Checkpoints("expand", tmp_path, resume=True).records) == 2


def test_the_outcome_is_read_from_the_records():
    result = expand(network(), DATA.train, DATA.valid, target_accuracy=0.9, training=TRAINING)
    assert expand_result(result.records, range(1, 10), ExpandConfig(target_accuracy=0.9)) == result


# fine-tuning -------------------------------------------------------------------------------------------------------


def test_finetuning_never_ends_below_its_start():
    grown = network()
    result = expand(grown, DATA.train, DATA.valid, target_accuracy=0.8, training=TRAINING)
    small = extract(grown, result.depth)
    outcome = finetune(small, DATA.train, DATA.valid, config=FinetuneConfig(epochs=4), training=TRAINING)
    assert outcome.valid_score >= outcome.valid_score_before == result.valid_score
    from odn.engine import evaluate

    assert evaluate(small, DATA.valid).value == outcome.valid_score


def test_finetuning_that_only_harms_leaves_the_network_as_it_came():
    grown = network()
    result = expand(grown, DATA.train, DATA.valid, target_accuracy=0.95, training=TRAINING)
    small = extract(grown, result.depth)
    before = state(small)
    ruinous = dataclasses.replace(TRAINING, learning_rate=50.0)
    outcome = finetune(small, DATA.train, DATA.valid, config=FinetuneConfig(epochs=1), training=ruinous)
    assert outcome.valid_score == outcome.valid_score_before
    assert same(before, state(small))


def test_no_epochs_leave_the_network_as_it_came():
    small = extract(network(), 2)
    before = state(small)
    finetune(small, DATA.train, DATA.valid, config=FinetuneConfig(epochs=0), training=TRAINING)
    assert same(before, state(small))


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_finetuning_ends_as_an_uninterrupted_one(tmp_path, stop_after):
    def epochs(small, checkpoints):
        return finetune_epochs(
            small, DATA.train, DATA.valid, config=FinetuneConfig(epochs=3), training=TRAINING, checkpoints=checkpoints
        )

    whole, resumed = extract(network(), 2), extract(network(), 2)
    expected = finish(epochs(whole, Checkpoints("finetune")))
    interrupted = epochs(extract(network(), 2), Checkpoints("finetune", tmp_path))
    for _ in range(stop_after):
        next(interrupted)
    interrupted.close()
    assert finish(epochs(resumed, Checkpoints("finetune", tmp_path, resume=True))) == expected
    assert same(state(whole), state(resumed))
