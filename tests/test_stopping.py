import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from odn.config import ExpandConfig
from odn.errors import UsageError
from odn.records import EpochRecord, StopReason
from odn.stopping import (
    almost_reached,
    cap_of,
    confirmed,
    decide,
    hopeless,
    knee,
    meets_target,
    settle_target,
    wilson_interval,
)


def records(
    accuracies: list[int], *, depth: int = 1, count: int = 1000, cap: int = 10, loss: float | None = 0.5
) -> list[EpochRecord]:
    return [
        EpochRecord(
            phase="expand", depth=depth, epoch=epoch, cap=cap, learning_rate=0.1, train_loss=loss,
            valid_score=correct / count, valid_error=math.sqrt(correct * (count - correct) / count**3),
            valid_count=count, train_samples=1, evaluated_samples=1, seconds=0.0,
        )
        for epoch, correct in enumerate(accuracies, 1)
    ]  # fmt: skip


CONFIG = ExpandConfig(target_accuracy=0.99, patience=3, min_improvement=0.001, epochs_per_depth=10)


@given(count=st.integers(1, 20000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_interval_agrees_with_scipy(count, share, confidence):
    correct = round(share * count)
    expected = binomtest(correct, count).proportion_ci(confidence, method="wilson")
    assert wilson_interval(correct, count, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_is_decided_without_records():
    assert decide([], CONFIG) is None


def test_target_needs_as_many_consecutive_evaluations_as_configured():
    assert decide(records([990]), CONFIG) is None
    assert decide(records([990, 989, 990]), CONFIG) is None
    assert decide(records([980, 990, 991]), CONFIG) == StopReason.TARGET_REACHED
    assert decide(records([990]), dataclasses.replace(CONFIG, confirmations=1)) == StopReason.TARGET_REACHED


def test_confirmations_do_not_reach_back_to_the_depth_before():
    assert decide([*records([990]), *records([990], depth=2)], CONFIG) is None


def test_confidence_demands_more_than_the_point_estimate():
    sure = dataclasses.replace(CONFIG, confidence=0.95)
    assert meets_target("accuracy", 0.99, 0.0, 1000, CONFIG)
    assert not meets_target("accuracy", 0.99, 0.0, 1000, sure)
    assert meets_target("accuracy", 0.998, 0.0, 1000, sure)
    assert decide(records([991, 991]), sure) is None
    assert decide(records([998, 998]), sure) == StopReason.TARGET_REACHED


def test_plateau_after_patience_epochs_without_improvement():
    assert decide(records([900, 900, 900]), CONFIG) is None
    assert decide(records([900, 900, 900, 900]), CONFIG) == StopReason.PLATEAU
    assert decide(records([900, 899, 900, 901]), CONFIG) is None
    assert decide(records([910, 900, 901, 902]), CONFIG) == StopReason.PLATEAU


def test_patience_grows_with_the_cap():
    flat = records([900] * 5, cap=40)
    assert decide(flat, CONFIG) is None
    assert decide(records([900] * 6, cap=40), CONFIG) == StopReason.PLATEAU


def test_a_depth_that_has_learnt_nothing_is_given_its_budget():
    stuck, begun = (
        [dataclasses.replace(record, trivial_score=0.5) for record in records([*scores, *[500] * 9])]
        for scores in ([], [540])  # 0.509 is the lower end of the interval of 540 of 1,000
    )
    assert [decide(stuck[: epoch + 1], CONFIG) for epoch in range(8)] == [None] * 8
    assert decide(records([500] * 10), CONFIG) == decide(stuck + stuck[:1], CONFIG) == StopReason.EPOCH_BUDGET
    assert decide(begun[:4], CONFIG) == decide(records([500] * 4), CONFIG) == StopReason.PLATEAU
    far = dataclasses.replace(CONFIG, patience=9)
    assert decide(begun[:8], far) == StopReason.HOPELESS
    assert decide(stuck[:8], far) is None


def test_a_hit_that_waits_for_confirmation_is_not_a_plateau():
    assert decide(records([989, 989, 989, 989, 990]), dataclasses.replace(CONFIG, min_improvement=0.01)) is None


def test_epoch_budget_is_a_hard_cap():
    rising = [800 + 10 * i for i in range(10)]
    assert decide(records(rising[:9]), CONFIG) is None
    assert decide(records(rising), CONFIG) == StopReason.EPOCH_BUDGET


def test_a_cooldown_ends_with_the_target_or_its_budget_and_never_with_a_plateau():
    config = dataclasses.replace(CONFIG, cooldown_epochs=5)

    def cooling(accuracies):
        return [dataclasses.replace(record, phase="cooldown") for record in records(accuracies, cap=5)]

    assert decide(cooling([980] * 4), config) is None
    assert decide(cooling([980] * 5), config) == StopReason.EPOCH_BUDGET
    assert decide(cooling([980, 990, 990]), config) == StopReason.TARGET_REACHED
    assert decide([*records([990]), *cooling([990])], config) is None


def test_confirmed_wants_consecutive_evaluations_of_one_phase():
    assert confirmed(records([980, 990, 990, 980]), CONFIG)
    assert not confirmed(records([990, 980, 990]), CONFIG)
    assert not confirmed([*records([990]), *records([990], depth=2)], CONFIG)


def test_almost_reached_compares_errors():
    config = ExpandConfig(target_accuracy=0.98, reach=1.25)
    assert almost_reached(records([900, 975, 960]), config)
    assert not almost_reached(records([974]), config)
    assert not almost_reached(records([979]), dataclasses.replace(config, cooldown_epochs=0))


def test_non_finite_loss_wins_over_everything():
    assert decide(records([995, 995], loss=None), CONFIG) == StopReason.NON_FINITE


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=10),
    st.lists(st.integers(0, 1000), max_size=10),
)
def test_only_the_last_depth_counts(last, before):
    assert decide([*records(before), *records(last, depth=2)], CONFIG) == decide(records(last, depth=2), CONFIG)


@given(st.lists(st.integers(0, 1000), min_size=10, max_size=10))
def test_every_depth_ends(accuracies):
    assert decide(records(accuracies), CONFIG) is not None


@pytest.mark.parametrize("target", [99.3, -0.1, 1.01])
def test_targets_that_are_no_fractions_are_refused(target):
    with pytest.raises(UsageError, match="target accuracy is .*; allowed: a fraction above 0 and at most 1"):
        ExpandConfig(target_accuracy=target)


def test_a_depth_is_hopeless_when_extrapolation_ends_short_of_the_target():
    config = dataclasses.replace(CONFIG, reach=1.25, patience=20)
    # 0.02 for each doubling: 0.80 after 16 epochs; with reach a target of 0.83 is within sight, one of 0.85 is not.
    curve = records([700, 720, 730, 740, 745, 750, 755, 760], cap=16)
    assert not hopeless(curve, dataclasses.replace(config, target_accuracy=0.82))
    assert hopeless(curve, dataclasses.replace(config, target_accuracy=0.83))
    assert decide(curve, dataclasses.replace(config, target_accuracy=0.83)) == StopReason.HOPELESS
    assert decide(curve[:7], dataclasses.replace(config, target_accuracy=0.83)) is None


@pytest.mark.parametrize(("steps", "cap"), [(211, 16), (78, 17), (43, 30), (5, 64)])
def test_small_datasets_get_more_epochs_of_growing(steps, cap):
    assert cap_of("expand", ExpandConfig(), steps, deepest=False) == cap
    assert cap_of("expand", ExpandConfig(), steps, deepest=True) == 2 * cap
    assert cap_of("expand", ExpandConfig(epochs_per_depth=3), steps, deepest=True) == 3
    assert cap_of("cooldown", ExpandConfig(cooldown_epochs=7), steps, deepest=False) == 7
    assert cap_of("lookback", ExpandConfig(lookback_epochs=9), steps, deepest=False) == 9


def test_a_depth_is_given_half_of_its_cap_before_it_can_be_hopeless():
    curve = [600, 690, 700, 700, 701, 701, 701, 701, 701]
    assert hopeless(records(curve, cap=16), CONFIG)
    assert not hopeless(records(curve, cap=20), CONFIG)
    assert hopeless(records([*curve, 701], cap=20), CONFIG)


def test_a_curve_that_still_steepens_is_never_hopeless():
    assert not hopeless(records([100, 101, 102, 103, 110, 120, 130, 140], cap=16), CONFIG)


def grown(*depths: tuple[int, list[int]]) -> list[EpochRecord]:
    found = []
    for depth, accuracies in depths:
        epochs = records(accuracies, depth=depth)
        found += [*epochs[:-1], dataclasses.replace(epochs[-1], stop=StopReason.PLATEAU)]
    return found


def test_an_automatic_target_is_settled_at_the_knee():
    auto = dataclasses.replace(CONFIG, target_accuracy=0.0, within=0.002)
    rising = [(1, [800, 850]), (2, [900, 890]), (4, [901])]
    doubled = (1, 2, 4, 8, 16)  # nothing is passed over, so nothing is annealed to compare with
    assert settle_target(grown(*rising), doubled, auto) == auto
    assert settle_target(grown(*rising, (8, [905, 904])), doubled, auto).target_accuracy == pytest.approx(0.903)
    # A gain of more than a standard error (0.0095 at 0.9 of 1000) starts the count anew.
    assert settle_target(grown(*rising, (8, [912])), doubled, auto) == auto
    assert settle_target(grown(*rising), (1, 2, 4), auto).target_accuracy == pytest.approx(0.899)
    assert settle_target(records([900]), (1,), auto) == auto


def test_depths_that_have_learnt_nothing_make_no_knee():
    auto = dataclasses.replace(CONFIG, target_accuracy=0.0, within=0.002)
    flat = grown((1, [500]), (2, [500]), (4, [501]))
    assert knee(flat, 16, auto) == 1
    stuck = [dataclasses.replace(record, trivial_score=0.5) for record in flat]
    assert knee(stuck, 16, auto) is None
    assert knee(stuck, 4, auto) == 1  # nothing deeper is planned


def test_an_automatic_target_is_that_of_annealed_weights_where_annealed_ones_are_held_against_it():
    auto = dataclasses.replace(CONFIG, target_accuracy=0.0, within=0.002)
    found = grown((1, [850]), (2, [900]), (4, [930]), (8, [925]), (16, [926]))
    depths = range(1, 17)
    assert knee(found, 16, auto) == 4
    assert settle_target(found, depths, auto) == auto
    assert settle_target(found, depths, dataclasses.replace(auto, lookback_epochs=0)).target_accuracy == pytest.approx(
        0.928
    )
    annealing = [dataclasses.replace(one, phase="lookback") for one in records([930, 951, 950], depth=4)]
    assert settle_target([*found, *annealing], depths, auto) == auto
    annealed = [*annealing[:-1], dataclasses.replace(annealing[-1], stop=StopReason.EPOCH_BUDGET)]
    later = [*found, *annealed, *(dataclasses.replace(one, phase="lookback") for one in records([999], depth=3))]
    assert settle_target(later, depths, auto).target_accuracy == pytest.approx(0.949)


def test_while_the_target_is_not_known_only_convergence_counts():
    auto = dataclasses.replace(CONFIG, target_accuracy=0.0)
    assert decide(records([999, 1000]), auto) is None
    assert decide(records([900] * 4), auto) == StopReason.PLATEAU
    assert not almost_reached(records([999]), auto)
    assert not hopeless(records([10] * 8), auto)
    assert not meets_target("accuracy", 1.0, 0.0, 1000, auto)


def test_a_target_that_is_given_stays():
    assert settle_target(grown((1, [500]), (2, [500]), (4, [500])), (1, 2, 4), CONFIG) == CONFIG


def test_a_percentage_is_answered_with_the_fraction():
    with pytest.raises(UsageError, match=r"for 99\.3 % write 0\.993"):
        ExpandConfig(target_accuracy=99.3)
