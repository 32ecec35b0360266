import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from odn.config import ExpandConfig, TrainConfig
from odn.errors import UsageError
from odn.optimizers import batch_size_for
from odn.records import EpochRecord, StopReason
from odn.stopping import (
    cap_of,
    check_attainable,
    confirmed,
    confirmed_depths,
    meets_target,
    met_depths,
    wilson_interval,
)
from odn.stopping import decide as decide_planned


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


def together(*epochs: tuple[int, ...], cap: int = 10, phase: str = "expand") -> list[EpochRecord]:
    """Epochs in which depths were trained together, with the correct answers of each."""
    found = records([scores[-1] for scores in epochs], depth=len(epochs[0]), cap=cap)
    return [
        dataclasses.replace(record, phase=phase, scores=tuple(s / 1000 for s in scores), errors=(0.01,) * len(scores))
        for record, scores in zip(found, epochs, strict=True)
    ]


def decide(found, config, depths=range(1, 65)):
    return decide_planned(found, config, depths)


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


def test_a_depth_that_has_learnt_nothing_is_given_its_budget():
    stuck, begun = (
        [dataclasses.replace(record, trivial_score=0.5) for record in records([*scores, *[500] * 9])]
        for scores in ([], [540])  # 0.509 is the lower end of the interval of 540 of 1,000
    )
    assert [decide(stuck[: epoch + 1], CONFIG) for epoch in range(8)] == [None] * 8
    assert decide(records([500] * 10), CONFIG) == decide([*stuck, dataclasses.replace(stuck[0], epoch=10)], CONFIG)
    assert decide(records([500] * 10), CONFIG) == StopReason.EPOCH_BUDGET
    assert decide(begun[:4], CONFIG) == decide(records([500] * 4), CONFIG) == StopReason.PLATEAU


def test_a_hit_that_waits_for_confirmation_is_not_a_plateau():
    assert decide(records([989, 989, 989, 989, 990]), dataclasses.replace(CONFIG, min_improvement=0.01)) is None


def test_epoch_budget_is_a_hard_cap():
    rising = [800 + 10 * i for i in range(10)]
    assert decide(records(rising[:9]), CONFIG) is None
    assert decide(records(rising), CONFIG) == StopReason.EPOCH_BUDGET


def test_what_is_annealed_is_annealed_to_the_end():
    def annealed(*epochs):
        return [dataclasses.replace(r, depth=4) for r in together(*epochs, cap=4, phase="settle")]

    assert decide(annealed((980, 990), (980, 990), (980, 990)), CONFIG) is None
    assert decide(annealed((980, 980), (980, 980), (980, 980), (980, 990)), CONFIG) == StopReason.EPOCH_BUDGET
    assert decide(annealed((980, 980), (980, 980), (980, 990), (980, 990)), CONFIG) == StopReason.TARGET_REACHED
    # Of every depth the best weights are kept, so that it counts whenever it held the target.
    early = annealed((980, 980), (990, 980), (990, 980), (980, 990))
    assert decide(early, CONFIG) == StopReason.TARGET_REACHED
    assert confirmed_depths(early, range(1, 9), CONFIG) == [3]
    assert confirmed_depths(early, range(1, 9), dataclasses.replace(CONFIG, confirmations=1)) == [3, 4]
    assert decide(early, CONFIG, (4,)) == StopReason.EPOCH_BUDGET


def test_any_planned_depth_may_meet_the_target():
    epochs = together((900, 990, 980), (900, 991, 992))
    assert met_depths(epochs, (1, 2, 3), CONFIG) == [2]
    assert met_depths(epochs[1:], (1, 2, 3), dataclasses.replace(CONFIG, confirmations=1)) == [2, 3]
    assert met_depths(epochs[1:], (1, 2, 3), CONFIG) == []
    assert decide(epochs, CONFIG) == StopReason.TARGET_REACHED
    assert decide(epochs, CONFIG, (1, 3)) is None


def test_confirmed_wants_consecutive_evaluations_of_one_phase():
    assert confirmed(records([980, 990, 990, 980]), CONFIG)
    assert not confirmed(records([990, 980, 990]), CONFIG)
    assert not confirmed([*records([990]), *records([990], depth=2)], CONFIG)


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


@pytest.mark.parametrize(
    ("steps", "images", "grow", "settle", "refine"),
    [
        (211, 54_000, 4, 30, 10),
        (78, 10_000, 7, 30, 10),
        (125, 2000, 4, 30, 10),
        (62, 1000, 9, 60, 20),
        (32, 10_000, 16, 60, 20),  # of large batches
        (5, 80, 20, 90, 30),
    ],
)
def test_small_datasets_get_more_epochs(steps, images, grow, settle, refine):
    caps = [cap_of(phase, ExpandConfig(), steps, images) for phase in ("expand", "settle", "refine")]
    assert caps == [grow, settle, refine]
    assert cap_of("expand", ExpandConfig(epochs_per_depth=3), steps, images) == 3
    assert cap_of("settle", ExpandConfig(settle_epochs=0), steps, images) == 0


@given(st.integers(2000, 2**20))
def test_from_2000_samples_on_batches_of_the_size_that_is_chosen_are_not_settled_for_longer(images):
    steps = images // batch_size_for(TrainConfig(), images)
    assert cap_of("settle", ExpandConfig(), steps, images) == ExpandConfig().settle_epochs


def test_while_the_target_is_not_known_only_convergence_counts():
    auto = dataclasses.replace(CONFIG, target_accuracy=0.0)
    assert decide(records([999, 1000]), auto) is None
    assert decide(records([900] * 4), auto) == StopReason.PLATEAU
    assert not meets_target("accuracy", 1.0, 0.0, 1000, auto)


def test_a_percentage_is_answered_with_the_fraction():
    with pytest.raises(UsageError, match=r"for 99\.3 % write 0\.993"):
        ExpandConfig(target_accuracy=99.3)


def test_growing_waits_for_the_confirmation_of_any_depth():
    config = dataclasses.replace(CONFIG, target_accuracy=0.95, confirmations=2, patience=3)
    flat = together((900, 900), (900, 900), (900, 900))
    for scores in ((955, 900), (900, 955)):
        assert decide([*flat, *together((0, 0), (0, 0), (0, 0), scores)[-1:]], config, (1, 2)) is None
    assert decide(together((900, 900), (900, 900), (900, 900), (900, 900)), config, (1, 2)) is StopReason.PLATEAU


def test_a_confidence_that_the_samples_cannot_give_is_refused():
    sure = ExpandConfig(target_accuracy=0.95, confidence=0.95)
    with pytest.raises(UsageError) as refusal:
        check_attainable("accuracy", 50, sure)
    assert str(refusal.value) == (
        "--confidence 0.95 asks for a lower bound of 0.95, and 50 validation samples give 0.9287 at most, without any "
        "mistake; lower --target or --confidence, or give more data"
    )
    check_attainable("accuracy", 100, sure)
    check_attainable("macro_f1", 50, sure)
    check_attainable("accuracy", 50, dataclasses.replace(sure, confidence=0.0))
