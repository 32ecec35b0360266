import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odn.config import ExpandConfig
from odn.errors import UsageError
from odn.records import EpochRecord, StopReason
from odn.search import Step, expand_result, next_step, plan_depths
from test_stopping import records

TARGET = ExpandConfig(target_accuracy=0.95, reach=1.25)


def ended(phase: str, depth: int, stop: StopReason | None, correct: int = 900) -> EpochRecord:
    return dataclasses.replace(records([correct], depth=depth)[0], phase=phase, stop=stop)


REACHED, PLATEAU, BUDGET = StopReason.TARGET_REACHED, StopReason.PLATEAU, StopReason.EPOCH_BUDGET


def test_a_phase_goes_on_until_it_is_stopped():
    assert next_step([], (2, 4), TARGET) == Step(phase="expand", depth=2)
    for phase in ("expand", "cooldown", "lookback"):
        assert next_step([ended(phase, 2, None)], (1, 2, 4), TARGET) == Step(phase=phase, depth=2)


def test_a_converged_depth_is_annealed_only_where_it_almost_reached_the_target():
    assert next_step([ended("expand", 2, PLATEAU, 940)], (1, 2, 4), TARGET) == Step(phase="cooldown", depth=2)
    assert next_step([ended("expand", 2, PLATEAU, 930)], (1, 2, 4), TARGET) == Step(phase="expand", depth=4)
    cooled = [ended("expand", 2, PLATEAU, 940), ended("cooldown", 2, BUDGET, 945)]
    assert next_step(cooled, (1, 2, 4), TARGET) == Step(phase="expand", depth=4)


def test_growing_doubles_the_planned_depths_and_ends_with_the_deepest():
    history, path = [], []
    while (step := next_step(history, range(1, 28), TARGET)) is not None:
        path.append(step.depth)
        history.append(ended(step.phase, step.depth, PLATEAU))
    assert path == [1, 2, 4, 8, 16, 27]


@given(blocks=st.integers(1, 60), right=st.integers(1, 60), reach=st.booleans())
def test_the_search_finds_the_shallowest_depth_that_holds_the_target(blocks, right, reach):
    """Whatever the depth that is right, the search ends there, after a number of steps that is logarithmic."""
    history: list[EpochRecord] = []
    while (step := next_step(history, range(1, blocks + 1), TARGET)) is not None:
        assert 1 <= step.depth <= blocks
        holds = step.depth >= right
        if step.phase == "lookback":
            assert step.source is not None
            assert step.depth < step.source
        history.append(ended(step.phase, step.depth, REACHED if holds else PLATEAU, 960 if holds else 500))
    result = expand_result(history, range(1, blocks + 1), TARGET)
    assert result.reached == (right <= blocks)
    if result.reached:
        assert result.depth == right
    assert len(history) <= 2 * blocks.bit_length() + 1


def test_looking_back_bisects_between_the_last_failure_and_the_depth_that_holds():
    history = [ended("expand", 4, PLATEAU), ended("expand", 8, REACHED, 960)]
    assert next_step(history, range(1, 9), TARGET) == Step(phase="lookback", depth=6, source=8)
    failed = [*history, ended("lookback", 6, BUDGET)]
    assert next_step(failed, range(1, 9), TARGET) == Step(phase="lookback", depth=7, source=8)
    held = [*history, ended("lookback", 6, REACHED, 950)]
    assert next_step(held, range(1, 9), TARGET) == Step(phase="lookback", depth=5, source=6)
    assert next_step(history, (4, 8), TARGET) is None
    assert next_step(history, range(1, 9), dataclasses.replace(TARGET, lookback_epochs=0)) is None


def test_with_an_automatic_target_the_search_looks_back_from_what_came_close_enough():
    auto = dataclasses.replace(TARGET, target_accuracy=0.0, within=0.002)
    flat = [ended("expand", depth, PLATEAU, correct) for depth, correct in ((1, 900), (2, 950), (4, 951))]
    assert next_step(flat, range(1, 17), auto) == Step(phase="expand", depth=8)
    settled = [*flat, ended("expand", 8, PLATEAU, 950)]
    assert next_step(settled, range(1, 17), auto) is None
    result = expand_result(settled, range(1, 17), auto)
    assert (result.depth, result.reached, result.target_accuracy) == (2, True, pytest.approx(0.949))
    late = [ended("expand", d, PLATEAU, c) for d, c in ((1, 900), (2, 920), (4, 951), (8, 950), (16, 951))]
    assert next_step(late, range(1, 17), auto) == Step(phase="lookback", depth=4, source=4)
    assert not next_step(late, range(1, 17), dataclasses.replace(auto, lookback_epochs=0))
    late.append(ended("lookback", 4, BUDGET, 960))
    assert next_step(late, range(1, 17), auto) == Step(phase="lookback", depth=3, source=4)
    held = [*late, ended("lookback", 3, REACHED, 958)]
    assert next_step(held, range(1, 17), auto) is None
    result = expand_result(held, range(1, 17), auto)
    assert (result.depth, result.target_accuracy) == (3, pytest.approx(0.958))
    lucky = [*late, ended("lookback", 3, BUDGET, 970)]  # one epoch that touches the target is not confirmed
    assert expand_result(lucky, range(1, 17), auto).depth == 4


def test_a_missed_target_gives_the_best_depth_and_the_shallowest_of_equals():
    history = [ended("expand", 1, PLATEAU, 900), ended("expand", 2, PLATEAU, 910), ended("expand", 3, PLATEAU, 910)]
    result = expand_result(history, (1, 2, 3), TARGET)
    assert (result.depth, result.reached, result.valid_score) == (2, False, 0.91)


def test_a_plan_beyond_the_backbone_is_refused():
    with pytest.raises(UsageError, match="depth 12 is in the plan; allowed: 1 to 9 for this backbone"):
        plan_depths(ExpandConfig(depths=(1, 12)), 9)
    assert plan_depths(ExpandConfig(), 3) == [1, 2, 3]
