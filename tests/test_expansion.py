import dataclasses
import math
from itertools import groupby

import pytest
import torch

from conftest import tiny_data
from odn.backbones import Origin
from odn.checkpoint import Checkpoints
from odn.config import ExpandConfig, FinetuneConfig, TrainConfig
from odn.engine import finish, train_epochs
from odn.errors import OdnError, UsageError
from odn.expansion import _stage, _stage_for, expand, expand_epochs
from odn.extraction import extract, finetune, finetune_epochs
from odn.network import PartitionedNetwork, partition
from odn.outcome import expand_result, kept_by_depth
from odn.records import StopReason, read_history
from odn.search import Step
from odn.stage import Stage
from test_network import by_hand

DATA = tiny_data()
# Tiny data would be evaluated after few epochs alone.
TRAINING = TrainConfig(batch_size=16, learning_rate=0.05, precision="fp32", evaluation_share=math.inf)
FAST = dataclasses.replace(TRAINING, learning_rate=0.5)
# Grows through all networks, two confirmations out of reach, and anneals nothing.
UNREACHABLE = ExpandConfig(
    target_accuracy=0.9999,
    confidence=0.999999,
    epochs_per_depth=3,
    patience=2,
    settle_epochs=0,
)
BRIEF = ExpandConfig(target_accuracy=0.9, epochs_per_depth=2, confirmations=1, settle_epochs=2)


def network(seed: int = 0) -> PartitionedNetwork:
    return partition("cifar_resnet20", DATA.spec, width=0.25, seed=seed)


def test_the_shallowest_depth_that_holds_the_target_is_kept():
    grown = network()
    result = expand(grown, DATA.train, DATA.valid, target_accuracy=0.9, training=FAST)
    assert (result.depth, result.reached) == (1, True)
    assert result.valid_score >= 0.9
    assert (result.records[-1].phase, result.records[-1].stop) == ("settle", StopReason.TARGET_REACHED)
    stops = [(record.phase, record.epoch == record.cap) for record in result.records if record.stop is not None]
    assert stops == [("settle", True)]


def test_the_chosen_prefix_holds_the_weights_that_were_judged():
    from odn.evaluation import evaluate

    grown = network()
    result = expand(grown, DATA.train, DATA.valid, target_accuracy=0.9, training=TRAINING)
    assert evaluate(grown.prefix(result.depth), DATA.valid).value == result.valid_score


def test_missing_the_target_is_a_result_with_the_best_depth():
    result = expand(network(), DATA.train, DATA.valid, config=UNREACHABLE, training=TRAINING)
    assert not result.reached
    assert [record.depth for record in result.records if record.stop] == [1, 2, 4, 9]
    kept = {depth: record.valid_score for depth, (record, _) in kept_by_depth(result.records).items()}
    assert list(kept) == list(range(1, 10))
    assert (result.depth, result.valid_score) == max(kept.items(), key=lambda item: (item[1], -item[0]))
    assert all(len(record.scores) == record.depth for record in result.records)
    assert all(record.valid_score == record.scores[-1] for record in result.records)


def test_a_network_that_has_learnt_nothing_is_told_and_given_its_budget(caplog):
    data = tiny_data()
    data.valid.spec = dataclasses.replace(data.valid.spec, valid_support=(80, 8, 8))
    slow = dataclasses.replace(TRAINING, learning_rate=1e-9)
    config = dataclasses.replace(UNREACHABLE, patience=1, epochs_per_depth=4, depths=(1, 2))
    result = expand(network(), data.train, data.valid, config=config, training=slow)
    assert [record.stop for record in result.records] == [None, None, None, StopReason.EPOCH_BUDGET] * 2
    assert "does no better than one answer for every sample would, 0.8333; try more data" in caplog.text
    caplog.clear()
    result = expand(network(), DATA.train, DATA.valid, config=config, training=slow)
    assert result.records[1].stop == StopReason.PLATEAU
    assert not caplog.text


def test_of_depths_trained_to_their_end_the_best_epoch_of_each_is_kept_and_of_grown_networks_the_last(monkeypatch):
    from odn.evaluation import evaluate

    monkeypatch.setattr("odn.search.near", lambda *_: False)
    config = dataclasses.replace(UNREACHABLE, depths=(1, 2, 3, 4), epochs_per_depth=1, settle_epochs=3)
    checkpoints, grown = Checkpoints("expand"), network()
    epochs = expand_epochs(
        grown, DATA.train, DATA.valid, config=config, training=TRAINING, checkpoints=checkpoints, seed=7
    )
    finish(epochs)
    epochs_of_band = [r for r in checkpoints.records if (r.phase, r.depth) == ("settle", 4)]
    by_depth = [list(scores) for scores in zip(*(r.scores for r in epochs_of_band), strict=True)]
    assert any(max(scores) > scores[-1] for scores in by_depth)
    for depth, scores in zip((3, 4), by_depth, strict=True):
        kept = grown.prefix(depth)
        checkpoints.take(f"depth_{depth:03d}", kept)
        assert evaluate(kept, DATA.valid).value == max(scores)
    together = grown.trunk(1)
    checkpoints.take("trunk_001", together)
    grown_first = next(record for record in checkpoints.records if record.phase == "expand")
    assert evaluate(together.prefix(1), DATA.valid).value == grown_first.valid_score


def test_of_equal_epochs_of_a_depth_the_last_is_kept(monkeypatch):
    kept, keep = [], Checkpoints.keep

    def watched(self, name, module):
        kept.append((name, len(self.records)))
        keep(self, name, module)

    monkeypatch.setattr(Checkpoints, "keep", watched)
    slow = dataclasses.replace(TRAINING, learning_rate=1e-9)
    config = dataclasses.replace(UNREACHABLE, depths=(1,), settle_epochs=2)
    result = expand(network(), DATA.train, DATA.valid, config=config, training=slow)
    alone = [index for index, record in enumerate(result.records) if record.phase == "settle"]
    assert len(alone) > 2
    assert len({result.records[index].valid_score for index in alone}) == 1
    assert [entry for entry in kept if entry[0] == "depth_001"] == [("depth_001", index) for index in alone]


def test_only_planned_depths_are_chosen():
    config = dataclasses.replace(UNREACHABLE, depths=(2, 5))
    result = expand(network(), DATA.train, DATA.valid, config=config, training=TRAINING)
    assert {record.depth for record in result.records} == {2, 5}
    assert result.depth in (2, 5)


@pytest.mark.parametrize("near", [True, False])
def test_depths_are_trained_to_their_end_from_the_weights_that_expansion_began_with(monkeypatch, near):
    starts, shares, kept, keep = {}, {}, {}, Checkpoints.keep

    def watched(stage, *arguments, **options):
        trained = stage.network
        if options["phase"] == "settle":
            starts[trained.lowest, trained.depth] = state(trained)
            shares[trained.depth] = set(stage._loss._shares(list(range(trained.lowest, trained.depth + 1))).values())
        if options["phase"] == "refine":
            assert same(state(trained.prefix(trained.depth)), kept[f"depth_{trained.depth:03d}"])
        return train_epochs(stage, *arguments, **options)

    def watched_keep(self, name, module):
        kept[name] = state(module)
        keep(self, name, module)

    monkeypatch.setattr(Checkpoints, "keep", watched_keep)
    monkeypatch.setattr("odn.durable.train_epochs", watched)
    monkeypatch.setattr("odn.search.near", lambda *_: near)
    monkeypatch.setattr("odn.growth._CLOSE", math.inf)  # any network is worth refining, if it pays
    config = dataclasses.replace(BRIEF, target_accuracy=0.9999, confidence=0.999999, confirmations=2)
    result = expand(network(), DATA.train, DATA.valid, config=config, training=TRAINING)
    # Of two heads the blocks hear the deeper one, of more the others as much as the deepest.
    heard = {(1, 1): {1.0}, (2, 2): {1.0}, (3, 4): {0.0, 1.0}, (5, 9): {0.25, 1.0}}
    ended = list(heard) if near else [(1, 1), (5, 9)]  # the first one whatever comes of it
    assert list(starts) == ended
    assert shares == {depth: heard[lowest, depth] for lowest, depth in ended}
    for (lowest, depth), start in starts.items():
        assert same(start, state(network().trunk(depth, lowest)))
    settled = [record for record in result.records if record.phase == "settle"]
    assert {(r.depth, len(r.scores)) for r in settled} == {(depth, depth - lowest + 1) for lowest, depth in ended}
    # Three times two epochs, because an epoch has few steps, annealed to nothing.
    deepest = [record for record in settled if record.depth == 9]
    assert [record.epoch for record in deepest] == list(range(1, 7))
    assert (deepest[0].learning_rate, deepest[-1].learning_rate) == (pytest.approx(0.05 * 0.933, rel=0.01), 0.0)
    phases = [(phase, depth) for (phase, depth), _ in groupby(result.records, key=lambda r: (r.phase, r.depth))]
    if near:
        assert phases == [
            ("settle", 1), ("expand", 1), ("expand", 2), ("settle", 2), ("expand", 4), ("settle", 4), ("settle", 9),
        ]  # fmt: skip
        return
    best = [max(scores) for scores in zip(*(record.scores for record in deepest), strict=True)]
    closest = 5 + best.index(max(best))
    assert phases == [
        ("settle", 1), ("expand", 1), ("expand", 2), ("expand", 4), ("settle", 9), ("refine", closest),
    ]  # fmt: skip
    # A third of the epochs, at 0.3 of the rate, from the best weights of that depth.
    refined = [record for record in result.records if record.phase == "refine"]
    assert [record.epoch for record in refined] == [1, 2]
    assert max(record.learning_rate for record in refined) == pytest.approx(0.3 * 0.05 * 0.5)


@pytest.mark.parametrize(("lowest", "depth"), [(1, 3), (5, 9), (3, 15)])
def test_the_other_heads_of_a_settled_network_weigh_as_much_as_the_deepest_together(lowest, depth):
    deep = partition("cifar_resnet32", DATA.spec)
    step = Step(phase="settle", depth=depth, lowest=lowest)
    shares = _stage(deep, step, TRAINING, DATA.train)._loss._shares(list(range(lowest, depth + 1)))
    assert shares.pop(depth) == 1.0
    assert len(set(shares.values())) == 1
    assert sum(shares.values()) == pytest.approx(1.0)


def test_growing_goes_on_from_what_it_was_before_depths_were_trained_to_their_end(monkeypatch):
    began = {}

    def watched(stage, *arguments, **options):
        if options["phase"] == "expand":
            began.setdefault(stage.network.depth, state(stage.network))
        return train_epochs(stage, *arguments, **options)

    monkeypatch.setattr("odn.durable.train_epochs", watched)
    starts = []
    for reach in (1.0, 1e6):  # without and with a network trained to its end between the two
        config = dataclasses.replace(BRIEF, target_accuracy=0.9999, depths=(1, 2, 3), reach=reach)
        expand(network(), DATA.train, DATA.valid, config=config, training=TRAINING)
        starts.append(began.pop(2))
        began.clear()
    assert same(*starts)


@pytest.mark.parametrize("trained", [False, True])
def test_growing_goes_on_without_what_only_training_to_the_end_has_changed(monkeypatch, trained):
    starts = []

    def watched(stage, *arguments, **options):
        if (options["phase"], stage.network.depth) == ("expand", 3):
            starts.append(state(stage.network))
        return train_epochs(stage, *arguments, **options)

    monkeypatch.setattr("odn.durable.train_epochs", watched)
    for between in ((), (Step(phase="settle", depth=2, lowest=2),)):  # which was not grown before
        steps = [Step(phase="expand", depth=1), Step(phase="settle", depth=1), *between, Step(phase="expand", depth=3)]

        def scripted(records, *_, steps=tuple(steps)):
            return (*steps, None)[sum(record.stop is not None for record in records)]

        monkeypatch.setattr("odn.expansion.next_step", scripted)
        before = network()
        if trained:
            before.origin = Origin(blocks=9, source="x", sha256="")
        config = dataclasses.replace(BRIEF, target_accuracy=0.9999, probe_images=0)
        expand(before, DATA.train, DATA.valid, config=config, training=TRAINING)
    assert same(*starts)


@pytest.mark.parametrize(("depth", "same_function"), [(2, True), (4, False)])
def test_growing_starts_from_the_judged_function_where_shapes_allow(depth, same_function):
    grown = partition("cifar_resnet20", DATA.spec, seed=0)  # wide enough that its layout stays the same
    stage = _stage(grown, Step(phase="expand", depth=depth - 1), TRAINING, DATA.train)
    for x, y in ((torch.randn(16, 1, 8, 8), torch.arange(16) % 3) for _ in range(5)):
        stage.train_step(x, y, lambda _: 1.0)
    x = torch.randn(4, 1, 8, 8)
    judged = stage.averaged.eval()(x)
    checkpoints = Checkpoints("expand")
    checkpoints.records = list(
        expand(network(), DATA.train, DATA.valid, config=UNREACHABLE, training=TRAINING).records[:1]
    )
    checkpoints.records[0] = dataclasses.replace(checkpoints.records[0], depth=depth - 1)
    new = _stage_for(Step(phase="expand", depth=depth), grown, TRAINING, DATA.train, stage, checkpoints, anew=True)
    assert new.network.depth == depth
    logits = new.network.eval()(x)
    assert all(torch.equal(*pair) for pair in zip(logits[:-1], judged, strict=True))
    assert torch.equal(logits[-1], judged[-1]) == same_function
    assert new.step == 0
    # The optimizer remembers the heads that were there, and nothing of the new one.
    momenta = [new.optimizer.state[head.linear.weight]["momentum_buffer"] for head in new.network.heads]
    assert [bool(momentum.any()) for momentum in momenta] == [True] * (depth - 1) + [False]


def test_a_network_built_by_hand_grows_too():
    result = expand(by_hand(), DATA.train, DATA.valid, config=UNREACHABLE, training=TRAINING)
    assert [record.depth for record in result.records if record.stop] == [1, 2, 3]


def test_without_a_target_the_shallowest_depth_near_the_best_is_kept():
    config = ExpandConfig(epochs_per_depth=2, settle_epochs=3)
    result = expand(network(), DATA.train, DATA.valid, config=config, training=FAST)
    assert result.reached
    settled = [one for record in result.records if record.phase == "settle" for one in record.by_depth()]
    best = max(one.valid_score for one in settled)
    assert result.target_accuracy == pytest.approx(best - 0.002)
    ended = [one for record in result.records for one in record.by_depth()]
    assert {record.phase for record in ended} <= {"settle", "refine"}
    assert result.depth == min(one.depth for one in ended if one.valid_score >= result.target_accuracy)
    assert result.valid_score == max(one.valid_score for one in ended if one.depth == result.depth)


def test_without_training_to_the_end_the_best_of_grown_networks_needs_no_confirmation():
    config = ExpandConfig(epochs_per_depth=2, settle_epochs=0)
    result = expand(network(), DATA.train, DATA.valid, config=config, training=FAST)
    grown = [one for record in result.records if record.stop for one in record.by_depth()]
    assert result.reached
    assert result.target_accuracy == pytest.approx(max(one.valid_score for one in grown) - 0.002)
    assert result.depth == min(one.depth for one in grown if one.valid_score >= result.target_accuracy)


def test_a_confidence_without_a_target_is_refused():
    with pytest.raises(UsageError, match="is 0.95 with an automatic target, which is seen on the very scores"):
        expand(network(), DATA.train, DATA.valid, config=ExpandConfig(confidence=0.95))


@pytest.mark.parametrize("trained", [False, True])
def test_without_a_target_every_network_begins_from_the_weights_that_expansion_began_with(monkeypatch, trained):
    starts = {}

    def watched(stage, *arguments, **options):
        if options["phase"] == "settle":
            starts[stage.network.depth] = state(stage.network)
        return train_epochs(stage, *arguments, **options)

    monkeypatch.setattr("odn.durable.train_epochs", watched)
    monkeypatch.setattr("odn.search.gains_are_over", lambda *_: False)
    before = network(3)
    if trained:
        before.origin = Origin(blocks=9, source="x", sha256="")
    config = dataclasses.replace(BRIEF, target_accuracy=0.0, probe_images=0)
    weights = {depth: state(before.trunk(depth, lowest)) for depth, lowest in ((1, 1), (2, 2), (4, 3), (9, 5))}
    expand(before, DATA.train, DATA.valid, config=config, training=TRAINING)
    assert starts.keys() == weights.keys()
    assert all(same(starts[depth], weights[depth]) for depth in weights)


@pytest.mark.parametrize("target", [0.0, 99.0])
def test_a_target_that_is_no_fraction_is_refused(target):
    with pytest.raises(UsageError, match="allowed: a fraction above 0 and at most 1"):
        expand(network(), DATA.train, DATA.valid, target_accuracy=target)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def check_resuming(config: ExpandConfig, training: TrainConfig, stop_after: int, path) -> list[tuple[str, int]]:
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
    return [(record.phase, record.depth) for record in expected.records if record.stop is not None]


@pytest.mark.parametrize("stop_after", [1, 3, 4, 7])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_expansion_ends_as_an_uninterrupted_one(tmp_path, stop_after, optimizer):
    config = dataclasses.replace(UNREACHABLE, depths=(1, 2, 4), epochs_per_depth=3)
    training = dataclasses.replace(TRAINING, optimizer=optimizer, learning_rate=0.01)
    check_resuming(config, training, stop_after, tmp_path)


@pytest.mark.parametrize("stop_after", [1, 5, 6, 7, 8, 9, 10])
def test_an_expansion_resumed_while_its_first_network_is_settled_and_grown_ends_as_an_uninterrupted_one(
    tmp_path, monkeypatch, stop_after
):
    monkeypatch.setattr("odn.search.near", lambda *_: False)
    config = dataclasses.replace(BRIEF, target_accuracy=0.9999, confidence=0.999999, depths=(1, 2, 3, 4))
    path = check_resuming(config, TRAINING, stop_after, tmp_path)
    assert path[:4] == [("settle", 1), ("expand", 1), ("expand", 2), ("settle", 4)]


@pytest.mark.parametrize("interrupted", [Step(phase="expand", depth=1), Step(phase="settle", depth=1)])
def test_what_an_earlier_version_grew_first_is_resumed(tmp_path, monkeypatch, interrupted):
    config = dataclasses.replace(BRIEF, target_accuracy=0.9999, reach=1.0)

    def scripted(records, *_):
        return Step(phase="settle" if records and records[-1].stop else "expand", depth=1)

    def watched(stage, *arguments, **options):
        if options["phase"] == interrupted.phase:
            raise KeyboardInterrupt
        return train_epochs(stage, *arguments, **options)

    with monkeypatch.context() as earlier:
        earlier.setattr("odn.expansion.next_step", scripted)
        earlier.setattr("odn.durable.train_epochs", watched)
        begun = Checkpoints("expand", tmp_path)
        with pytest.raises(KeyboardInterrupt):
            finish(
                expand_epochs(network(), DATA.train, DATA.valid, config=config, training=TRAINING, checkpoints=begun)
            )
    kept = Checkpoints("expand", tmp_path, resume=True)
    rest = expand_epochs(network(), DATA.train, DATA.valid, config=config, training=TRAINING, checkpoints=kept)
    steps = [(record.phase, record.depth) for record in finish(rest).records if record.stop is not None]
    order = ("expand", "settle") if interrupted.phase == "settle" else ("settle", "expand")
    assert steps[:2] == [(phase, 1) for phase in order]


def test_the_fewer_samples_the_longer_a_depth_is_trained_to_its_end():
    training = dataclasses.replace(TRAINING, batch_size=2)  # 96 steps an epoch, which would be enough
    config = dataclasses.replace(BRIEF, depths=(1,))
    first = next(expand_epochs(network(), DATA.train, DATA.valid, config=config, training=training))
    assert (first.phase, first.cap) == ("settle", 6)  # of 192 samples three times as many


@pytest.mark.parametrize("stop_after", [2, 5])
def test_what_is_under_way_keeps_the_length_that_it_began_with(tmp_path, stop_after):
    config = dataclasses.replace(UNREACHABLE, depths=(1, 2), confirmations=1, settle_epochs=1, reach=1e6)
    now = dataclasses.replace(config, epochs_per_depth=1, settle_epochs=2)  # as another version would set them
    begun = expand_epochs(
        network(), DATA.train, DATA.valid, config=config, training=TRAINING, checkpoints=Checkpoints("expand", tmp_path)
    )
    caps = [next(begun).cap for _ in range(stop_after)]
    begun.close()
    checkpoints = Checkpoints("expand", tmp_path, resume=True)
    rest = expand_epochs(network(), DATA.train, DATA.valid, config=now, training=TRAINING, checkpoints=checkpoints)
    records = finish(rest).records
    ends = [(record.phase, record.depth, record.cap) for record in records if record.stop is not None]
    settle = caps[-1] if stop_after == 5 else 6
    assert ends == [("expand", 1, 3), ("settle", 1, settle), ("settle", 2, 6)]


def test_what_has_no_record_yet_and_is_further_than_it_would_go_today_is_judged_and_ends(tmp_path):
    seldom = dataclasses.replace(TRAINING, evaluation_share=1e-3, checkpoint_minutes=1e-9)
    config = dataclasses.replace(UNREACHABLE, depths=(1,), settle_epochs=4)  # 12, stretched; evaluated in the last two
    checkpoints = Checkpoints("expand", tmp_path)
    save = checkpoints.save

    def interrupted(phase, progress, stage):
        save(phase, progress, stage)
        if progress.epoch == 9:
            raise KeyboardInterrupt

    checkpoints.save = interrupted
    begun = expand_epochs(network(), DATA.train, DATA.valid, config=config, training=seldom, checkpoints=checkpoints)
    with pytest.raises(KeyboardInterrupt):
        finish(begun)
    resumed = Checkpoints("expand", tmp_path, resume=True)
    assert not resumed.records
    now = dataclasses.replace(config, settle_epochs=2)  # 6, stretched
    rest = expand_epochs(network(), DATA.train, DATA.valid, config=now, training=seldom, checkpoints=resumed)
    record = next(rest)
    assert (record.epoch, record.cap, record.stop) == (9, 9, StopReason.EPOCH_BUDGET)


@pytest.mark.parametrize("stop_after", [1, 2, 5, 8, 9, 11, 15])
@pytest.mark.parametrize(("target", "reach", "most"), [(0.9999, 1e6, 15), (0.9999, 1.0, 11), (0.0, 1e6, 15)])
def test_an_expansion_resumed_while_depths_are_trained_to_their_end_ends_as_an_uninterrupted_one(
    tmp_path, monkeypatch, stop_after, target, reach, most
):
    monkeypatch.setattr("odn.growth._CLOSE", math.inf)  # any network is worth refining, if it pays
    # Depth 3 falls short, the network grows from what it was before. Without a target nothing grows.
    sure = 0.999999 if target else 0.0
    config = dataclasses.replace(
        BRIEF, depths=(3, 4, 6, 8), target_accuracy=target, confidence=sure, confirmations=2, reach=reach
    )
    path = check_resuming(config, TRAINING, min(stop_after, most), tmp_path)
    if reach == 1.0:
        assert path[:-1] == [("expand", 3), ("expand", 4), ("settle", 8)]
        assert path[-1][0] == "refine"
    elif target:
        assert path == [("expand", 3), ("settle", 3), ("expand", 4), ("settle", 8), ("refine", 8)]
    else:
        assert path == [("settle", 3), ("settle", 4), ("settle", 8)]


def test_a_run_begun_anew_forgets_the_weights_that_the_one_before_began_with(tmp_path):
    for seed in (0, 1):
        checkpoints = Checkpoints("expand", tmp_path)
        next(expand_epochs(network(seed), DATA.train, DATA.valid, config=UNREACHABLE, checkpoints=checkpoints))
    fresh = network(2)
    checkpoints.take("fresh", fresh)
    assert same(state(fresh), state(network(1)))


def finished_run(path) -> None:
    config = dataclasses.replace(UNREACHABLE, depths=(1,), epochs_per_depth=2)
    checkpoints = Checkpoints("expand", path)
    finish(expand_epochs(network(), DATA.train, DATA.valid, config=config, training=TRAINING, checkpoints=checkpoints))


def test_a_record_without_its_state_is_trained_again(tmp_path):
    finished_run(tmp_path)
    history = tmp_path / "history.jsonl"
    history.write_text(history.read_text() + history.read_text().splitlines()[-1] + "\n")
    assert len(Checkpoints("expand", tmp_path, resume=True).records) == 2


def test_a_state_of_another_network_is_refused_in_a_line(tmp_path):
    finished_run(tmp_path)
    checkpoints = Checkpoints("expand", tmp_path, resume=True)
    with pytest.raises(OdnError, match="holds the state of another network; start anew with --force") as refused:
        checkpoints.restore(Stage(network().prefix(1), TRAINING, DATA.train))  # as earlier versions settled a depth
    assert "\n" not in str(refused.value)


def test_the_outcome_is_read_from_the_records():
    result = expand(network(), DATA.train, DATA.valid, target_accuracy=0.9, training=TRAINING)
    assert expand_result(result.records, range(1, 10), ExpandConfig(target_accuracy=0.9)) == result


# fine-tuning -------------------------------------------------------------------------------------------------------


def test_finetuning_never_ends_below_its_start():
    grown = network()
    result = expand(grown, DATA.train, DATA.valid, target_accuracy=0.8, training=TRAINING)
    small = extract(grown, result.depth)
    outcome = finetune(small, DATA.train, DATA.valid, config=FinetuneConfig(epochs=4, rate=1.0), training=TRAINING)
    assert outcome.valid_score >= outcome.valid_score_before == result.valid_score
    from odn.evaluation import evaluate

    assert evaluate(small, DATA.valid).value == outcome.valid_score


@pytest.mark.parametrize("confirmations", [1, 2, 3])
def test_what_is_finetuned_can_confirm_a_target_however_seldom_it_is_evaluated(confirmations):
    small = extract(network(), 1)
    seldom = dataclasses.replace(TRAINING, evaluation_share=1e-9)
    config = FinetuneConfig(epochs=5)
    tuning = finetune_epochs(small, DATA.train, DATA.valid, config=config, training=seldom, confirmations=confirmations)
    assert [record.epoch for record in tuning] == list(range(6 - confirmations, 6))


def test_finetuning_that_only_harms_leaves_the_network_as_it_came():
    grown = network()
    result = expand(grown, DATA.train, DATA.valid, target_accuracy=0.95, training=TRAINING)
    small = extract(grown, result.depth)
    before = state(small)
    ruinous = dataclasses.replace(TRAINING, learning_rate=50.0)
    outcome = finetune(small, DATA.train, DATA.valid, config=FinetuneConfig(epochs=1, rate=1.0), training=ruinous)
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
            small,
            DATA.train,
            DATA.valid,
            config=FinetuneConfig(epochs=3, rate=1.0),
            training=TRAINING,
            checkpoints=checkpoints,
        )

    whole, resumed = extract(network(), 2), extract(network(), 2)
    expected = finish(epochs(whole, Checkpoints("finetune")))
    interrupted = epochs(extract(network(), 2), Checkpoints("finetune", tmp_path))
    for _ in range(stop_after):
        next(interrupted)
    interrupted.close()
    assert finish(epochs(resumed, Checkpoints("finetune", tmp_path, resume=True))) == expected
    assert same(state(whole), state(resumed))
