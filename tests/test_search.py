import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odn.config import ExpandConfig, FinetuneConfig
from odn.errors import UsageError
from odn.growth import settle_target
from odn.outcome import expand_result, finetuning_of, kept_by_depth
from odn.records import EpochRecord, StopReason
from odn.search import Step, next_step, next_trunk, plan_depths
from odn.stopping import decide
from test_stopping import records

TARGET = ExpandConfig(target_accuracy=0.95, reach=1.6, confirmations=1)
REACHED, PLATEAU, BUDGET = StopReason.TARGET_REACHED, StopReason.PLATEAU, StopReason.EPOCH_BUDGET


def ended(phase: str, depth: int, scores: tuple[int, ...], stop: StopReason | None = BUDGET) -> EpochRecord:
    """An epoch of a network, with the correct answers of a thousand of all its depths that have a head."""
    record = records([scores[-1]], depth=depth)[0]
    return dataclasses.replace(
        record,
        phase=phase,
        stop=stop,
        scores=tuple(score / 1000 for score in scores),
        errors=tuple(0.01 for _ in scores),
    )


def test_the_first_of_many_depths_is_trained_to_its_end_and_grown_where_a_deeper_one_has_to_be():
    depths, hopeless = range(1, 9), dataclasses.replace(TARGET, reach=1.0)
    settle, grow = Step(phase="settle", depth=1, lowest=1), Step(phase="expand", depth=1)
    assert next_step([], depths, hopeless) == settle
    assert next_step([], range(1, 4), hopeless) == grow  # more than a quarter
    assert next_step([], (2, 8), hopeless) == Step(phase="settle", depth=2, lowest=2)
    assert next_step([], (2, 7), hopeless) == Step(phase="expand", depth=2)
    assert next_step([], (1, 2, 8), hopeless, first=2) == Step(phase="expand", depth=2)  # is not the first
    assert next_step([ended("settle", 1, (950,), REACHED)], depths, TARGET) is None
    missed = [ended("settle", 1, (600,))]
    assert next_step(missed, depths, hopeless) == grow
    assert next_step(missed, (1, 8), hopeless) == Step(phase="settle", depth=8, lowest=8)  # no look is needed
    told = [*missed, ended("expand", 1, (200,))]  # 6 times the odds of an error
    assert next_step(told, depths, hopeless) == Step(phase="expand", depth=2)
    assert next_step([*told, ended("expand", 2, (0, 761))], depths, hopeless).phase == "settle"
    assert next_step([*told, ended("expand", 2, (0, 759))], depths, hopeless).phase == "expand"
    # Two were trained to their end before a look is needed.
    close = [ended("settle", 1, (946,)), ended("settle", 2, (0, 930))]
    assert next_step(close[:1], depths, hopeless) == Step(phase="settle", depth=2, lowest=2)
    assert next_step(close, depths, hopeless) == grow
    assert next_step([*close, ended("expand", 1, (900,))], depths, hopeless) == Step(phase="expand", depth=4)


def test_a_phase_goes_on_until_it_is_stopped():
    assert next_step([], (2, 4), TARGET) == Step(phase="expand", depth=2)
    assert next_step([], (1, 2, 4), TARGET, first=2) == Step(phase="expand", depth=2)
    assert next_step([ended("expand", 2, (0, 0), None)], (1, 2, 4), TARGET) == Step(phase="expand", depth=2)
    under_way = ended("settle", 4, (0, 0), None)
    assert next_step([under_way], range(1, 17), TARGET) == Step(phase="settle", depth=4, lowest=3)


def test_of_a_network_near_the_target_the_depths_that_it_has_more_are_trained_to_their_end():
    # 50 errors for 950 correct answers are allowed, and 1.6 times as many are 77.7 for 922.3.
    first = ended("expand", 1, (900,))
    near = Step(phase="settle", depth=2, lowest=2)
    assert next_step([first, ended("expand", 2, (900, 923))], range(1, 9), TARGET) == near
    assert next_step([first, ended("expand", 2, (923, 900))], range(1, 9), TARGET) == near
    assert next_step([first, ended("expand", 2, (900, 922))], range(1, 9), TARGET) == Step(phase="expand", depth=4)
    two = [first, ended("expand", 2, (900, 910))]
    wider = ended("expand", 4, (900, 910, 920, 930))
    assert next_step([*two, wider], range(1, 9), TARGET) == Step(phase="settle", depth=4, lowest=3)
    # What is not planned does not count, and the heads begin with the first planned depth.
    assert next_step([ended("expand", 3, (923, 923, 900))], (3, 4, 6, 8), TARGET) == Step(phase="expand", depth=4)
    planned = [ended("expand", 2, (0, 0)), ended("expand", 6, (0, 0, 0, 0, 0, 930))]
    assert next_step(planned, (2, 5, 6, 9, 12, 15), TARGET) == Step(phase="settle", depth=6, lowest=5)
    # Where growing began deeper, so do the depths that were passed over.
    begun = ended("expand", 4, (900, 910, 920, 930))
    assert next_step([begun], range(1, 9), TARGET, first=4) == Step(phase="settle", depth=4, lowest=1)


def test_the_deepest_network_needs_no_look_at_how_near_it_is():
    grown = ended("expand", 4, (900, 900, 900, 900))
    assert next_step([grown], range(1, 10), TARGET) == Step(phase="settle", depth=9, lowest=5)
    missed = ended("settle", 4, (940, 945))
    assert next_step([grown, missed], range(1, 10), TARGET) == Step(phase="settle", depth=9, lowest=5)
    assert next_step([], (3,), TARGET) == Step(phase="settle", depth=3, lowest=3)
    believed = dataclasses.replace(TARGET, settle_epochs=0)
    assert next_step([grown], range(1, 10), believed) == Step(phase="expand", depth=9)


def test_growing_doubles_the_planned_depths_until_all_are_hardly_more():
    def path(depths):
        found = [depths[0]]
        while (deeper := next_trunk(depths, found[-1])) is not None:
            found.append(deeper)
        return found

    assert path(range(1, 9)) == [1, 2, 4, 8]
    assert path(range(1, 10)) == [1, 2, 4, 9]
    assert path(range(1, 28)) == [1, 2, 4, 8, 16, 27]
    assert path(range(1, 13)) == [1, 2, 4, 8, 12]
    assert path((1, 3, 5, 7, 9)) == [1, 3, 9]
    assert path((3,)) == [3]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60, unique=True).map(sorted))
def test_growing_ends_with_the_deepest_and_takes_logarithmic_steps(depths):
    found = [depths[0]]
    while (deeper := next_trunk(depths, found[-1])) is not None:
        assert deeper > found[-1]
        found.append(deeper)
    assert found[-1] == depths[-1]
    assert len(found) <= len(depths).bit_length() + 1


def test_the_search_ends_with_the_first_network_that_has_a_depth_which_holds_the_target():
    grown = ended("expand", 4, (900, 910, 920, 930))
    held = [grown, ended("settle", 8, (930, 940, 945, 950), None), ended("settle", 8, (939, 940, 947, 960), REACHED)]
    assert next_step(held, range(1, 9), TARGET) is None
    result = expand_result(held, range(1, 9), TARGET)
    assert (result.depth, result.reached, result.valid_score) == (8, True, 0.96)
    both = [grown, ended("settle", 4, (950, 940), None), ended("settle", 4, (951, 960), REACHED)]
    assert expand_result(both, range(1, 9), TARGET).depth == 3
    assert expand_result(both, (4, 8), TARGET).depth == 4
    twice = dataclasses.replace(TARGET, confirmations=2)
    assert expand_result(both, range(1, 9), twice).depth == 3
    assert not expand_result(both, (4, 8), twice).reached
    missed = [grown, ended("settle", 4, (940, 945))]
    assert next_step(missed, range(1, 17), TARGET) == Step(phase="expand", depth=8)
    assert next_step(missed, range(1, 5), TARGET) is None
    result = expand_result(missed, range(1, 5), TARGET)
    assert (result.depth, result.reached, result.valid_score) == (4, False, 0.945)


def test_once_the_deeper_of_two_depths_holds_the_other_goes_on_from_it():
    grown = ended("expand", 4, (900, 910, 920, 930))
    held = [grown, ended("settle", 4, (880, 950), None), ended("settle", 4, (890, 960), REACHED)]
    back = Step(phase="refine", depth=3, lowest=3)
    assert next_step(held, range(1, 9), TARGET) == back
    assert next_step(held, (2, 4, 8), TARGET) is None  # what is not planned is not looked back at
    begun = ended("refine", 3, (940,), None)
    assert next_step([*held, begun], range(1, 9), TARGET) == back
    for score, depth, valid in ((950, 3, 0.95), (949, 4, 0.96)):
        history = [*held, begun, ended("refine", 3, (score,), REACHED)]
        assert next_step(history, range(1, 9), TARGET) is None
        result = expand_result(history, range(1, 9), TARGET)
        assert (result.depth, result.reached, result.valid_score) == (depth, True, valid)
        # What the search refined needs no fine-tuning any more, unless it is asked for.
        assert finetuning_of(FinetuneConfig(), history, depth).epochs == {3: 0, 4: 10}[depth]
        assert finetuning_of(FinetuneConfig(epochs=4), history, depth).epochs == 4
    # One depth alone has none to look back at, three learn for themselves, and what was missed is not gone back from.
    assert next_step([ended("settle", 1, (960,), REACHED)], range(1, 9), TARGET) is None
    assert next_step([ended("settle", 7, (900, 940, 960), REACHED)], range(1, 9), TARGET) is None
    assert next_step([grown, ended("settle", 4, (880, 946))], range(1, 9), TARGET) == Step(
        phase="settle", depth=8, lowest=5
    )
    # Without a target, what the deeper one reached less 0.002 is asked of the other.
    auto = dataclasses.replace(TARGET, target_accuracy=0.0)
    flat = [ended("expand", depth, (930,) * depth) for depth in (1, 2)]
    known = [*flat, ended("settle", 2, (900, 952))]
    assert next_step(known, (1, 2), auto) == Step(phase="refine", depth=1, lowest=1)
    for score, depth in ((951, 1), (949, 2), (990, 1)):
        result = expand_result([*known, ended("refine", 1, (score,))], (1, 2), auto)
        assert (result.depth, result.target_accuracy) == (depth, pytest.approx(0.95))


def test_depths_that_nearly_hold_go_on_by_bisection_where_a_deeper_one_holds():
    # 50 errors for 950 correct answers are allowed; 1.05 times as many are 52.4 for 947.6.
    grown = ended("expand", 4, (900, 910, 920, 930))
    plan = range(1, 10)

    def refine(depth):
        return Step(phase="refine", depth=depth, lowest=depth)

    def refined(*scores):
        return [ended("refine", depth, (score,)) for depth, score in scores]

    held = [grown, ended("settle", 9, (948, 949, 948, 949, 950), REACHED)]
    for before, step, depth in (
        ((), refine(6), 9),
        (((6, 950),), refine(5), 6),
        (((6, 950), (5, 950)), None, 5),
        (((6, 950), (5, 949)), None, 6),
        (((6, 949),), refine(7), 9),
        (((6, 949), (7, 951)), None, 7),
        (((6, 949), (7, 949)), refine(8), 9),
        (((6, 949), (7, 949), (8, 949)), None, 9),
    ):
        history = [*held, *refined(*before)]
        assert next_step(history, plan, TARGET) == step
        result = expand_result(history, plan, TARGET)
        assert (result.depth, result.reached) == (depth, True)
        assert finetuning_of(FinetuneConfig(), history, depth).epochs == (0 if depth < 9 else 10)
    begun = dataclasses.replace(held[1], scores=(0.948, 0.949, 0.946, 0.949, 0.95))
    assert next_step([grown, begun], plan, TARGET) == refine(6)
    assert next_step([grown, begun, *refined((6, 949))], plan, TARGET) == refine(8)  # 7 is not close
    assert next_step(held, (1, 2, 4, 5, 9), TARGET) == refine(5)
    assert next_step(held, (1, 2, 4, 9), TARGET) is None
    shallow = dataclasses.replace(held[1], scores=(0.95, 0.949, 0.949, 0.949, 0.96))
    assert next_step([grown, shallow], plan, TARGET) is None
    # One that reached the target without confirming it is as near as can be.
    twice = dataclasses.replace(TARGET, confirmations=2)
    scores = ((900, 900, 947, 951, 952), (900, 900, 947, 946, 953))
    unsure = [grown, *(ended("settle", 9, row, stop) for row, stop in zip(scores, (None, REACHED), strict=True))]
    assert next_step(unsure, plan, twice) == refine(8)
    # Without a target all are compared as they are.
    auto = dataclasses.replace(TARGET, target_accuracy=0.0)
    assert next_step([ended("settle", 4, (940, 949, 950, 952))], range(1, 5), auto) is None


def test_what_one_network_gained_by_being_trained_to_its_end_is_expected_of_others():
    first = [ended("expand", 1, (923,)), ended("settle", 1, (935,))]  # 1.2 times the odds of an error, not 1.6
    assert next_step([*first, ended("expand", 2, (923, 925))], range(1, 9), TARGET) == Step(phase="expand", depth=4)
    nearer = ended("expand", 2, (923, 941))
    assert next_step([*first, nearer], range(1, 9), TARGET) == Step(phase="settle", depth=2, lowest=2)


def test_a_network_needs_no_look_where_the_one_before_fell_short_by_little():
    # 50 errors for 950 correct answers are allowed; 1.1 times as many are 54.7 for 945.3.
    grown = ended("expand", 2, (900, 930))
    deeper, look = Step(phase="settle", depth=4, lowest=3), Step(phase="expand", depth=4)
    for score, step in ((949, deeper), (946, deeper), (945, look)):
        assert next_step([grown, ended("settle", 2, (900, score))], range(1, 9), TARGET) == step
    # The best weights of the best planned depth count, and those of growing do not.
    fell = [ended("settle", 2, (946, 900), None), ended("settle", 2, (945, 900))]
    assert next_step([grown, *fell], range(1, 9), TARGET) == deeper
    assert next_step([grown, *fell], range(2, 9, 2), TARGET) == look
    assert next_step([ended("expand", 2, (900, 946)), ended("settle", 2, (900, 945))], range(1, 9), TARGET) == look
    # What refining came to does not count: it is another start than that of the next network.
    refined = [ended("expand", 1, (930,)), ended("settle", 1, (949,)), ended("refine", 1, (900,))]
    assert next_step(refined, range(1, 9), TARGET) == Step(phase="settle", depth=2, lowest=2)
    # Of a target that is to be reached for certain, the lower bound has to come near: of 961 correct ones 0.9472.
    certain = dataclasses.replace(TARGET, confidence=0.95)
    assert next_step([grown, ended("settle", 2, (900, 961))], range(1, 9), certain) == deeper
    assert next_step([grown, ended("settle", 2, (900, 955))], range(1, 9), certain) == look


def test_without_training_to_the_end_the_heads_are_believed():
    config = dataclasses.replace(TARGET, settle_epochs=0)
    held = [ended("expand", 4, (900, 949, 950, 960))]
    assert next_step(held, range(1, 17), config) is None
    result = expand_result(held, range(1, 17), config)
    assert (result.depth, result.reached, result.valid_score) == (3, True, 0.95)
    assert next_step([ended("expand", 2, (900, 949))], range(1, 17), config) == Step(phase="expand", depth=4)
    assert next_step([ended("expand", 2, (900, 951))], range(1, 17), config) is None


@st.composite
def worlds(draw):
    """Blocks, the errors that every depth ends with, and how many times as many it makes at a constant rate."""
    blocks = draw(st.integers(1, 40))
    errors = draw(st.lists(st.integers(10, 400), min_size=blocks, max_size=blocks))
    gains = draw(st.lists(st.floats(1.0, 2.5), min_size=blocks, max_size=blocks))
    return blocks, errors, gains


@given(worlds(), st.integers(1, 40), st.booleans())
def test_every_search_ends_and_believes_no_depth_that_was_not_trained_to_its_end(world, first, automatic):
    blocks, errors, gains = world
    plan, first = range(1, blocks + 1), min(first, blocks)
    config = dataclasses.replace(TARGET, target_accuracy=0.0) if automatic else TARGET
    history: list[EpochRecord] = []
    seen: set[int] = set()
    while (step := next_step(history, plan, config, first)) is not None:
        trained = range(step.lowest, step.depth + 1)
        gained = gains[step.depth - 1] if step.phase == "expand" else 1.0
        left = {d: 1.5 if step.looks_back and d < step.depth else gained for d in trained}
        record = ended(step.phase, step.depth, tuple(round(1000 - left[d] * errors[d - 1]) for d in trained), None)
        assert record.lowest == step.lowest
        if step.phase == "refine":
            networks = [r for r in history if r.phase == "settle"]
            settled = next(r for r in reversed(networks) if r.lowest <= step.depth <= r.depth)
            assert settled.phase == "settle"
            assert settled.lowest <= step.depth <= settled.depth
            again = [(r.phase, r.depth) for r in history[history.index(settled) :]]
            assert (step.phase, step.depth) not in again
        if step.phase == "settle":
            assert not seen.intersection(trained)
            seen.update(trained)
        if step.phase != "expand":
            record = dataclasses.replace(record, cap=1)
        stop = decide([*history, record], config, plan)
        history.append(dataclasses.replace(record, stop=stop or BUDGET))
    assert history[0].depth == first
    assert len(history) <= 3 * (blocks.bit_length() + 1)
    assert not automatic or all(record.phase != "expand" for record in history)
    result = expand_result(history, plan, config)
    ends = {one.depth: one.valid_score for r in history if r.phase == "settle" for one in r.by_depth()}
    wanted = config.target_accuracy or max(ends.values()) - config.within
    ends |= {r.depth: max(r.valid_score, ends[r.depth]) for r in history if r.phase == "refine"}
    holding = [depth for depth, score in ends.items() if score >= wanted]
    assert result.reached == bool(holding)
    if holding:
        assert result.depth == min(holding)
    else:
        assert max(ends) == blocks


def test_without_a_target_networks_are_trained_to_their_end_for_as_long_as_they_gain():
    auto, plan = dataclasses.replace(TARGET, target_accuracy=0.0, within=0.002), range(1, 65)
    assert next_step([], plan, auto) == Step(phase="settle", depth=1, lowest=1)
    assert next_step([], plan, auto, first=4) == Step(phase="settle", depth=4, lowest=1)
    flat = [ended("settle", 1, (900,)), ended("settle", 2, (940,))]
    assert next_step(flat, plan, auto) == Step(phase="settle", depth=4, lowest=3)
    flat.append(ended("settle", 4, (930, 941)))
    assert next_step(flat, plan, auto) == Step(phase="settle", depth=8, lowest=5)
    flat.append(ended("settle", 8, (942, 941, 941, 940)))
    assert next_step(flat, plan, auto) is None
    result = expand_result(flat, plan, auto)
    assert (result.depth, result.reached, result.valid_score, result.target_accuracy) == (2, True, 0.94, 0.94)
    # Where the plan ends before the gains do, the deepest network is the last.
    rising = [ended("settle", 1, (900,)), ended("settle", 2, (940,)), ended("settle", 4, (950, 970))]
    assert next_step(rising, range(1, 10), auto) == Step(phase="settle", depth=9, lowest=5)
    deepest = ended("settle", 9, (988, 991, 990, 989, 992))
    assert next_step([*rising, deepest], range(1, 10), auto) is None
    assert expand_result([*rising, deepest], range(1, 10), auto).depth == 6


def test_without_a_target_the_other_of_two_depths_goes_on_where_the_deeper_one_is_kept():
    auto, plan = dataclasses.replace(TARGET, target_accuracy=0.0, within=0.002), range(1, 5)
    found = [ended("settle", 1, (900,)), ended("settle", 2, (940,)), ended("settle", 4, (930, 960))]
    assert next_step(found, plan, auto) == Step(phase="refine", depth=3, lowest=3)
    assert expand_result(found, plan, auto).depth == 4
    for score, kept in ((958, 3), (957, 4), (990, 3)):  # the target is not raised by it
        after = [*found, ended("refine", 3, (score,))]
        assert next_step(after, plan, auto) is None
        assert (expand_result(after, plan, auto).depth, settle_target(after, plan, auto).target_accuracy) == (
            kept,
            0.958,
        )
    # Also where deeper ones were trained since, and not where a shallower network holds.
    deeper = [*found, ended("settle", 8, (960, 961, 960, 961))]
    assert next_step(deeper, range(1, 9), auto) == Step(phase="refine", depth=3, lowest=3)
    assert next_step([found[0], ended("settle", 2, (959,)), found[2]], plan, auto) is None
    assert next_step([*found, ended("settle", 8, (960, 965, 960, 961))], range(1, 9), auto) is None


def test_numbers_that_nothing_explains_make_no_target():
    """R² is below 0 where a network does worse than one number for every sample."""
    config, plan = dataclasses.replace(TARGET, target_accuracy=0.0), (1, 2)

    def of_numbers(phase, depth, *scores):
        one = dataclasses.replace(ended(phase, depth, (0,)), metric="r2", valid_score=scores[-1])
        return dataclasses.replace(one, scores=scores, errors=(0.01,) * len(scores))

    history = [of_numbers("settle", 2, -0.02, -0.01)]
    assert next_step(history, plan, config) is None
    result = expand_result(history, plan, config)
    assert (result.reached, result.target_accuracy) == (False, 0.0)
    assert (result.depth, result.valid_score) == (2, -0.01)


def test_a_missed_target_gives_the_best_depth_and_the_shallowest_of_equals():
    history = [ended("settle", 3, (900, 910, 910))]
    result = expand_result(history, (1, 2, 3), TARGET)
    assert (result.depth, result.reached, result.valid_score) == (2, False, 0.91)
    assert expand_result(history, (1, 3), TARGET).depth == 3


@pytest.mark.parametrize("settle", [30, 0])
def test_a_depth_holds_the_target_with_the_weights_that_are_kept_of_it(settle):
    # With a confidence the lower bound has to reach the target, and the best score may have the wider interval.
    sure = ExpandConfig(target_accuracy=0.9, confidence=0.95, confirmations=1, settle_epochs=settle)
    one = dataclasses.replace(ended("settle" if settle else "expand", 3, (0, 0, 920), None), metric="macro_f1")
    narrow, wide = (dataclasses.replace(one, errors=(0.01, 0.01, error)) for error in (0.002, 0.02))
    better = dataclasses.replace(wide, scores=(0.0, 0.0, 0.925), valid_score=0.925, stop=BUDGET)
    held = [narrow, dataclasses.replace(narrow, stop=REACHED)]
    assert expand_result(held, range(1, 9), sure).reached
    assert next_step(held, range(1, 9), sure) is None
    deeper = dataclasses.replace(narrow, depth=4, scores=(0.0, 0.92, 0.0), errors=(0.01, 0.002, 0.01), stop=BUDGET)
    lost = [narrow, better] if settle else [better, deeper]
    assert not expand_result(lost, range(1, 9), sure).reached
    assert next_step(lost, range(1, 9), sure) is not None


def test_of_every_depth_the_best_weights_that_were_kept_are_named():
    history = [
        ended("expand", 2, (990, 990), None),  # was not its last epoch
        ended("expand", 2, (910, 920)),
        ended("expand", 4, (900, 930, 940, 945)),
        ended("settle", 4, (960, 946), None),
        dataclasses.replace(ended("settle", 4, (960, 948), None), epoch=7),  # as good, and annealed further
        dataclasses.replace(ended("settle", 4, (950, 949)), epoch=8),
    ]
    kept = kept_by_depth(history)
    assert (kept[3][0].epoch, kept[4][0].epoch) == (7, 8)
    assert {depth: (own.valid_score, source.phase, source.depth) for depth, (own, source) in kept.items()} == {
        1: (0.91, "expand", 2), 2: (0.93, "expand", 4), 3: (0.96, "settle", 3), 4: (0.949, "settle", 4),
    }  # fmt: skip


def test_what_was_trained_to_its_end_is_finetuned_gently():
    grown = ended("expand", 2, (910, 950))
    gently, anew = FinetuneConfig(epochs=10, rate=0.3), FinetuneConfig(epochs=15, rate=1.0)
    assert FinetuneConfig().resolved() == gently
    assert FinetuneConfig(epochs=3, rate=0.5).resolved() == FinetuneConfig(epochs=3, rate=0.5)
    default = FinetuneConfig()
    assert finetuning_of(default, [grown], 1) == finetuning_of(default, [grown], 3) == anew
    assert finetuning_of(default, [grown, ended("settle", 1, (910,), REACHED)], 1) == gently
    assert finetuning_of(default, [grown, ended("settle", 1, (909,))], 1) == anew  # the grown network's head is kept
    assert finetuning_of(default, [grown, ended("settle", 1, (960,), REACHED)], 2) == anew
    # What refining made no better was refined all the same.
    refined = [grown, ended("settle", 2, (951,)), ended("refine", 2, (950,))]
    assert finetuning_of(default, refined[:2], 2) == gently
    assert finetuning_of(default, refined, 2) == dataclasses.replace(gently, epochs=0)
    # But not where what had grown before is better than both.
    assert finetuning_of(default, [grown, ended("settle", 2, (949,)), ended("refine", 2, (948,))], 2) == anew
    assert finetuning_of(FinetuneConfig(epochs=4), refined, 2) == dataclasses.replace(gently, epochs=4)


def test_a_depth_that_falls_short_by_little_goes_on_before_the_deepest_network_is_tried():
    # 50 errors for 950 correct answers are allowed; 1.05 times as many are 52.4 for 947.6.
    grown = ended("expand", 4, (900, 910, 920, 930))
    close = Step(phase="refine", depth=4, lowest=4)
    deeper = Step(phase="settle", depth=8, lowest=5)
    assert next_step([grown, ended("settle", 4, (900, 948))], range(1, 9), TARGET) == close
    assert next_step([grown, ended("settle", 4, (900, 947))], range(1, 9), TARGET) == deeper
    # The best weights count, and of more depths the closest, of equals the shallowest.
    worse_at_last = [ended("settle", 4, (900, 948), None), ended("settle", 4, (900, 940))]
    assert next_step([grown, *worse_at_last], range(1, 9), TARGET) == close
    assert next_step([grown, ended("settle", 8, (940, 948, 949, 949))], range(1, 9), TARGET) == Step(
        phase="refine", depth=7, lowest=7
    )
    missed = [grown, ended("settle", 4, (900, 948)), ended("refine", 4, (949,))]
    assert next_step(missed, range(1, 9), TARGET) == deeper
    assert next_step(missed, range(1, 5), TARGET) is None
    assert next_step(missed[:2], range(1, 5), TARGET) == close
    assert next_step(missed[:2], range(1, 17), TARGET) == deeper  # another is cheap
    assert not expand_result(missed, range(1, 5), TARGET).reached
    # Two networks in vain are enough: fine-tuning of the best is all that is left.
    twice = [ended("expand", 2, (900, 930)), ended("settle", 2, (900, 948)), ended("settle", 4, (948, 949))]
    assert next_step(twice, range(1, 9), TARGET) == deeper
    assert next_step([*twice, ended("settle", 8, (940, 949, 948, 948))], range(1, 9), TARGET) is None
    # That of the first depth does not count: it was trained to say what training brings.
    first = [ended("expand", 1, (800,)), ended("settle", 1, (900,))]
    assert next_step([*first, grown, ended("settle", 4, (900, 948))], range(1, 9), TARGET) == close
    lifted = [*missed[:2], ended("refine", 4, (950,), REACHED)]
    assert next_step(lifted, range(1, 9), TARGET) is None
    result = expand_result(lifted, range(1, 9), TARGET)
    assert (result.depth, result.reached, result.valid_score) == (4, True, 0.95)


def test_a_depth_that_falls_short_by_next_to_nothing_goes_on_wherever_it_is():
    # 50 errors for 950 correct answers are allowed; 1.01 times as many are 50.47 for 949.53.
    for networks in ((1,), (1, 2), (1, 2, 4), (2, 4, 8)):
        *_, last = history = [ended("settle", depth, (900,) * (depth - depth // 2)) for depth in networks]
        short = [dataclasses.replace(last, scores=(*last.scores[1:], score)) for score in (0.9495, 0.9496)]
        assert next_step([*history[:-1], short[0]], range(1, 65), TARGET).phase != "refine"
        lifted = [*history[:-1], short[1]]
        assert next_step(lifted, range(1, 65), TARGET) == Step(phase="refine", depth=last.depth, lowest=last.depth)
        held = ended("refine", last.depth, (950,), REACHED)
        assert next_step([*lifted, held], range(1, 65), TARGET) is None
        missed = next_step([*lifted, ended("refine", last.depth, (949,))], range(1, 65), TARGET)
        assert (missed.phase, missed.depth, missed.lowest) == ("settle", 2 * last.depth, last.depth + 1)


def test_a_plan_beyond_the_backbone_is_refused():
    with pytest.raises(UsageError, match="depth 12 is in the plan; allowed: 1 to 9 for this backbone"):
        plan_depths(ExpandConfig(depths=(1, 12)), 9)
    assert plan_depths(ExpandConfig(), 3) == [1, 2, 3]


def test_of_weights_that_are_as_good_those_trained_to_their_end_are_kept():
    history = [
        ended("expand", 2, (800, 800)),
        ended("settle", 2, (0, 850)),
        ended("expand", 4, (800, 850, 800, 810)),
        ended("settle", 4, (800, 810)),
    ]
    assert [kept_by_depth(history)[depth][1].phase for depth in (2, 4)] == ["settle", "settle"]
    better = [*history[:2], ended("expand", 4, (800, 851, 800, 810))]
    assert kept_by_depth(better)[2][1].phase == "expand"
