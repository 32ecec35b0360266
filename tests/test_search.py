import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odn.config import ExpandConfig
from odn.errors import UsageError
from odn.outcome import expand_result, is_settled, kept_by_depth
from odn.records import EpochRecord, StopReason
from odn.search import MOST_SETTLED, Step, next_step, next_trunk, plan_depths
from test_stopping import records

TARGET = ExpandConfig(target_accuracy=0.95, reach=1.6, gain=0.9)
REACHED, PLATEAU, BUDGET = StopReason.TARGET_REACHED, StopReason.PLATEAU, StopReason.EPOCH_BUDGET


def ended(
    phase: str, depth: int, stop: StopReason | None = BUDGET, correct: int = 900, scores: tuple[int, ...] = ()
) -> EpochRecord:
    """An epoch of one depth, or with the correct answers of a thousand of every depth up to it."""
    record = records([scores[-1] if scores else correct], depth=depth)[0]
    return dataclasses.replace(
        record,
        phase=phase,
        stop=stop,
        scores=tuple(score / 1000 for score in scores),
        errors=tuple(0.01 for _ in scores),
    )


def test_a_phase_goes_on_until_it_is_stopped():
    assert next_step([], (2, 4), TARGET) == Step(phase="expand", depth=2)
    assert next_step([], (2, 4), TARGET, first=4) == Step(phase="expand", depth=4)
    for phase in ("expand", "cooldown"):
        assert next_step([ended(phase, 2, None)], (1, 2, 4), TARGET) == Step(phase=phase, depth=2)
    alone = [ended("cooldown", 4), ended("settle", 2, None)]
    assert next_step(alone, range(1, 17), TARGET) == Step(phase="settle", depth=2, source=4)


def test_only_a_network_near_the_target_or_the_deepest_is_annealed():
    # 50 errors for 950 correct answers are allowed, and 1.6 times as many are 77.7 for 922.3.
    assert next_step([ended("expand", 2, scores=(900, 923))], (1, 2, 4), TARGET) == Step(phase="cooldown", depth=2)
    assert next_step([ended("expand", 2, scores=(923, 900))], (1, 2, 4), TARGET) == Step(phase="cooldown", depth=2)
    grown = Step(phase="expand", depth=4)
    assert next_step([ended("expand", 2, scores=(900, 922))], (1, 2, 3, 4, 5, 6, 7, 8), TARGET) == grown
    assert next_step([ended("expand", 2, scores=(923, 900))], (2, 4, 6, 8), TARGET) == grown
    assert next_step([ended("expand", 4, scores=(1, 1, 1, 1))], (1, 2, 4), TARGET) == Step(phase="cooldown", depth=4)


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


def test_the_shallowest_depth_of_which_enough_is_expected_is_trained_on_its_own():
    # Alone a depth makes 0.9 times the errors; expected is 1.12 times that: 0.049 should become 0.05, 0.05 should not.
    joint = ended("cooldown", 4, scores=(900, 940, 951, 952))
    assert next_step([joint], range(1, 17), TARGET) == Step(phase="settle", depth=3, source=4)
    less = ended("cooldown", 4, scores=(900, 940, 949, 950))
    assert next_step([less], range(1, 17), TARGET) == Step(phase="expand", depth=8)
    # Of the last depth before the deepest network 0.95 times as many: a miss costs less than that network.
    last = Step(phase="settle", depth=4, source=4)
    assert next_step([less], range(1, 9), TARGET) == last
    almost = ended("cooldown", 4, scores=(900, 910, 942, 942))
    assert next_step([almost], range(1, 9), TARGET) == last
    assert next_step([almost], range(1, 9), dataclasses.replace(TARGET, gain=1.0)) == Step(phase="expand", depth=8)
    # Those of the deepest network gain alike, and begin anew.
    assert next_step([almost], range(1, 5), TARGET) == Step(phase="settle", depth=3)
    none = ended("cooldown", 4, scores=(900, 910, 920, 930))
    assert next_step([none], range(1, 9), TARGET) == Step(phase="expand", depth=8)


def test_what_one_depth_gained_alone_is_expected_of_the_others():
    plan = range(1, 9)
    joint = ended("cooldown", 4, scores=(900, 937, 940, 946))
    assert next_step([joint], plan, TARGET) == Step(phase="settle", depth=4, source=4)
    # 0.67 times the errors at the last depth, where 0.95 is expected of 0.7, and of those 1.12 at depth 2: 0.0495
    well = [joint, ended("settle", 4, REACHED, 964)]
    assert next_step(well, plan, TARGET) == Step(phase="settle", depth=2, source=4)
    both = [*well, ended("settle", 2, REACHED, 951)]
    assert next_step(both, plan, TARGET) is None
    assert expand_result(both, plan, TARGET).depth == 2
    # 0.83 times the errors at depth 2 is 0.74, 0.72 with the 0.7 from before: depth 3 comes to 0.0483
    badly = [*well, ended("settle", 2, BUDGET, 948)]
    assert next_step(badly, plan, TARGET) == Step(phase="settle", depth=3, source=4)
    little = [joint, ended("settle", 4, REACHED, 951)]
    assert next_step(little, plan, TARGET) is None
    assert expand_result(little, plan, TARGET).depth == 4


def test_depths_of_deep_networks_begin_anew_and_of_the_deepest_nothing_shallower_is_tried():
    joint = ended("cooldown", 4, scores=(900, 951, 951, 952))
    anew = Step(phase="settle", depth=2)
    assert next_step([joint], range(1, 5), TARGET) == anew
    assert next_step([joint, ended("settle", 2, None)], range(1, 5), TARGET) == anew
    assert next_step([joint], range(1, 17), TARGET) == Step(phase="settle", depth=2, source=4)
    short = [joint, ended("settle", 2, BUDGET, 949)]
    again = Step(phase="settle", depth=3)
    assert next_step(short, range(1, 5), TARGET) == again
    assert next_step([*short, ended("settle", 3, None)], range(1, 5), TARGET) == again
    # Up to four blocks go on from what they learnt beside each other.
    eight = ended("cooldown", 8, scores=(900, 951, 952, 953, 954, 955, 956, 957))
    assert next_step([eight], range(1, 17), TARGET) == anew
    assert next_step([eight, ended("settle", 2, None)], range(1, 17), TARGET) == anew
    deep = ended("cooldown", 4, scores=(900, 930, 935, 946))
    well = [deep, ended("settle", 4, REACHED, 970)]  # depth 2 would come to 0.039
    assert next_step([deep], range(1, 5), TARGET) == dataclasses.replace(anew, depth=4)
    assert next_step(well, range(1, 5), TARGET) is None
    assert next_step(well, range(1, 9), TARGET) == Step(phase="settle", depth=2, source=4)


def test_a_depth_that_fell_short_is_followed_by_a_deeper_one_or_by_growth():
    joint = ended("cooldown", 4, scores=(900, 945, 944, 955))
    short = [joint, ended("settle", 2, BUDGET, 947)]
    assert next_step(short, range(1, 9), TARGET) == Step(phase="settle", depth=4, source=4)
    # What one made of its errors counts half for deeper ones.
    much = [ended("cooldown", 4, scores=(900, 930, 944, 955)), ended("settle", 2, BUDGET, 949)]
    assert next_step(much, range(1, 9), TARGET) == Step(phase="settle", depth=3, source=4)
    both = [*short, ended("settle", 4, BUDGET, 949)]
    assert next_step(both, range(1, 17), TARGET) == Step(phase="expand", depth=8)
    # And for those of other networks: where depth 4 gained nothing, 0.048 is not expected to become 0.05 at depth 6.
    wider = ended("cooldown", 8, scores=(900, 945, 944, 945, 947, 952, 954, 954))
    assert next_step([wider], range(1, 17), TARGET) == Step(phase="settle", depth=6)
    assert next_step([*both, wider], range(1, 17), TARGET) == Step(phase="settle", depth=7)
    assert next_step(both, range(1, 5), TARGET) is None
    result = expand_result(both, range(1, 5), TARGET)
    assert (result.depth, result.reached, result.valid_score) == (4, False, 0.955)


def test_depths_of_a_network_that_was_annealed_have_had_their_say():
    before = ended("cooldown", 2, scores=(800, 930))
    assert next_step([before], range(1, 17), TARGET) == Step(phase="expand", depth=4)
    joint = ended("cooldown", 4, scores=(900, 952, 951, 952))
    assert next_step([before, joint], range(1, 17), TARGET) == Step(phase="settle", depth=3, source=4)
    well = [before, joint, ended("settle", 3, REACHED, 970)]
    assert next_step(well, range(1, 17), TARGET) is None
    grown = ended("expand", 2, scores=(800, 930))
    assert next_step([grown, joint], range(1, 17), TARGET) == Step(phase="settle", depth=2, source=4)


def test_the_deepest_network_is_not_given_up_before_its_best_depth_was_trained_alone():
    joint = ended("cooldown", 4, scores=(700, 800, 900, 890))
    assert next_step([joint], range(1, 5), TARGET) == Step(phase="settle", depth=3)
    missed = [joint, ended("settle", 3, BUDGET, 910)]
    assert next_step(missed, range(1, 5), TARGET) is None
    assert not expand_result(missed, range(1, 5), TARGET).reached


def test_without_annealing_alone_the_heads_are_believed():
    config = dataclasses.replace(TARGET, settle_epochs=0, confirmations=1)
    held = [ended("cooldown", 4, scores=(900, 949, 950, 960))]
    assert next_step(held, range(1, 17), config) is None
    result = expand_result(held, range(1, 17), config)
    assert (result.depth, result.reached, result.valid_score) == (3, True, 0.95)
    never = dataclasses.replace(config, cooldown_epochs=0)
    assert next_step([ended("expand", 2, scores=(900, 949))], range(1, 17), never) == Step(phase="expand", depth=4)
    assert next_step([ended("expand", 2, scores=(900, 951))], range(1, 17), never) is None


@st.composite
def worlds(draw):
    """Blocks, the errors that every depth makes among the others, and what each gains alone."""
    blocks = draw(st.integers(1, 40))
    errors = sorted(draw(st.lists(st.integers(10, 400), min_size=blocks, max_size=blocks)), reverse=True)
    gains = draw(st.lists(st.floats(0.5, 1.1), min_size=blocks, max_size=blocks))
    return blocks, errors, gains


@given(worlds(), st.integers(1, 40))
def test_every_search_ends_and_believes_no_depth_that_was_not_trained_alone(world, first):
    blocks, errors, gains = world
    first = min(first, blocks)
    history: list[EpochRecord] = []
    while (step := next_step(history, range(1, blocks + 1), TARGET, first)) is not None:
        assert 1 <= step.depth <= blocks
        if step.phase == "settle":
            trunk = max(r.depth for r in history if r.phase != "settle")
            assert step.depth <= trunk
            assert step.source == (trunk if trunk <= 4 and trunk < blocks else None)
            assert not any(
                r.phase == "settle" and r.depth == step.depth for r in history if r in history[-MOST_SETTLED:]
            )
            correct = min(1000, round(1000 - gains[step.depth - 1] * errors[step.depth - 1]))
            history.append(ended("settle", step.depth, REACHED if correct >= 950 else BUDGET, correct))
        else:
            worse = 1.5 if step.phase == "expand" else 1.0
            scores = tuple(round(1000 - min(worse * error, 1000)) for error in errors[: step.depth])
            history.append(ended(step.phase, step.depth, BUDGET, scores=scores))
    assert history[0].depth == first
    result = expand_result(history, range(1, blocks + 1), TARGET)
    alone = {r.depth: r.valid_score for r in history if r.phase == "settle"}
    assert result.reached == any(score >= 0.95 for score in alone.values())
    if result.reached:
        assert result.depth == min(depth for depth, score in alone.items() if score >= 0.95)
    assert len(history) <= (2 + MOST_SETTLED) * (blocks.bit_length() + 1)


def test_without_a_target_growth_ends_at_the_knee_and_the_shallowest_near_the_best_is_taken():
    auto = dataclasses.replace(TARGET, target_accuracy=0.0, within=0.002)
    flat = [ended("expand", 1, scores=(900,)), ended("expand", 2, scores=(900, 940))]
    assert next_step(flat, range(1, 65), auto) == Step(phase="expand", depth=4)
    flat.append(ended("expand", 4, scores=(900, 940, 940, 941)))
    assert next_step(flat, range(1, 65), auto) == Step(phase="expand", depth=8)
    flat.append(ended("expand", 8, scores=(900, 940, 940, 941, 942, 941, 941, 940)))
    assert next_step(flat, range(1, 65), auto) == Step(phase="cooldown", depth=8)
    flat.append(ended("cooldown", 8, scores=(900, 949, 951, 951, 952, 951, 951, 950)))
    assert next_step(flat, range(1, 65), auto) == Step(phase="settle", depth=3)
    settled = [*flat, ended("settle", 3, BUDGET, 950)]  # less than was expected of it
    assert next_step(settled, range(1, 65), auto) is None
    result = expand_result(settled, range(1, 65), auto)
    assert (result.depth, result.reached, result.valid_score, result.target_accuracy) == (3, True, 0.951, 0.951)
    better = [*flat, ended("settle", 3, REACHED, 958)]
    result = expand_result(better, range(1, 65), auto)
    assert (result.depth, result.target_accuracy) == (3, pytest.approx(1 - 0.9 * 0.048 - 0.002))


@pytest.mark.parametrize(("joint", "settled"), [((-0.02, -0.01), -0.015), ((-0.6, -0.5), None)])
def test_numbers_that_nothing_explains_make_no_target(joint, settled):
    """R² is below 0 where a network does worse than one number for every sample."""
    config, plan = dataclasses.replace(TARGET, target_accuracy=0.0), range(1, 17)

    def of_numbers(phase, depth, *scores):
        one = dataclasses.replace(ended(phase, depth), metric="r2", valid_score=scores[-1])
        return dataclasses.replace(one, scores=scores, errors=(0.01,) * len(scores)) if phase != "settle" else one

    history = [of_numbers("cooldown", 2, *joint)]
    if settled is not None:
        assert next_step(history, plan, config) == Step(phase="settle", depth=2, source=2)
        history.append(of_numbers("settle", 2, settled))
    assert next_step(history, plan, config) is None
    result = expand_result(history, plan, config)
    assert (result.reached, result.target_accuracy) == (False, 0.0)
    assert (result.depth, result.valid_score) == (2, joint[1])  # the best, not the one that was settled


def test_a_missed_target_gives_the_best_depth_and_the_shallowest_of_equals():
    history = [ended("cooldown", 3, BUDGET, scores=(900, 910, 910))]
    result = expand_result(history, (1, 2, 3), TARGET)
    assert (result.depth, result.reached, result.valid_score) == (2, False, 0.91)
    assert expand_result(history, (1, 3), TARGET).depth == 3


def test_of_every_depth_the_best_weights_that_were_kept_are_named():
    history = [
        ended("expand", 2, None, scores=(990, 990)),  # was not its last epoch
        ended("expand", 2, scores=(910, 920)),
        ended("expand", 4, scores=(900, 930, 940, 945)),
        ended("settle", 3, None, 960),
        dataclasses.replace(ended("settle", 3, None, 960), epoch=7),  # as good, and annealed further
        ended("settle", 3, BUDGET, 950),
    ]
    kept = kept_by_depth(history)
    assert kept[3][0].epoch == 7
    assert {depth: (own.valid_score, source.phase, source.depth) for depth, (own, source) in kept.items()} == {
        1: (0.91, "expand", 2), 2: (0.93, "expand", 4), 3: (0.96, "settle", 3), 4: (0.945, "expand", 4),
    }  # fmt: skip


def test_a_depth_is_settled_where_the_weights_kept_for_it_were_trained_alone():
    joint = ended("cooldown", 2, scores=(910, 950))
    assert not is_settled([joint], 1)
    assert is_settled([joint, ended("settle", 1, REACHED, 910)], 1)
    assert not is_settled([joint, ended("settle", 1, BUDGET, 909)], 1)
    assert not is_settled([joint, ended("settle", 1, REACHED, 960)], 2)
    assert not is_settled([joint], 3)


def test_a_plan_beyond_the_backbone_is_refused():
    with pytest.raises(UsageError, match="depth 12 is in the plan; allowed: 1 to 9 for this backbone"):
        plan_depths(ExpandConfig(depths=(1, 12)), 9)
    assert plan_depths(ExpandConfig(), 3) == [1, 2, 3]
