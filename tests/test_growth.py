import dataclasses

import pytest

from odn.config import ExpandConfig
from odn.growth import gains_are_over, near, settle_target
from odn.records import EpochRecord, StopReason
from test_stopping import records, together


def grown(*networks: tuple[int, ...], phase: str = "expand") -> list[EpochRecord]:
    return [dataclasses.replace(together(scores, phase=phase)[0], stop=StopReason.EPOCH_BUDGET) for scores in networks]


def band(depth: int, *scores: int, stop: StopReason | None = StopReason.EPOCH_BUDGET) -> EpochRecord:
    """The depths up to one, trained to their end."""
    return dataclasses.replace(together(scores, phase="settle")[0], depth=depth, stop=stop)


AUTO = ExpandConfig(within=0.002)
GIVEN = ExpandConfig(target_accuracy=0.99)
DOUBLED = (1, 2, 4, 8, 16)


def test_near_compares_the_errors_of_the_best_planned_depth():
    # 20 errors for 980 correct answers are allowed; 30 for 970 are 1.515 times as many.
    config = ExpandConfig(target_accuracy=0.98, reach=1.52)
    found = together((900, 970, 960))
    assert near(found, (1, 2, 3), config)
    assert not near(found, (1, 3), config)
    assert not near(found, (1, 2, 3), dataclasses.replace(config, reach=1.51))
    assert near(together((500,)), (1,), ExpandConfig(target_accuracy=0.6, reach=1.5))
    assert not near(together((499,)), (1,), ExpandConfig(target_accuracy=0.6, reach=1.5))


def test_near_knows_what_training_to_the_end_brought_before():
    config = ExpandConfig(target_accuracy=0.98, reach=2.0)
    before, now = grown((900,), (900, 970))
    # From 900 to 932 of 1,000 the odds of an error fall to 1 of 1.523; from 970 to 980 it would be 1 of 1.515.
    assert near([before, band(1, 932), now], (1, 2), config)
    assert not near([before, band(1, 931), now], (1, 2), config)
    assert near([before, band(1, 932), band(1, 910), now], (1, 2), config)  # the best of its epochs counts
    # The best of its planned depths is what they stand for.
    assert near([*grown((0, 900)), band(2, 0, 932), *grown((0, 0, 970))], (1, 2, 3), config)
    # More than was expected counts as well: from 900 to 960 they fall to 1 of 2.667, from 960 to 980 it would be 2.042.
    assert near([before, band(1, 960), *grown((900, 960))], (1, 2), config)
    assert not near([before, band(1, 940), *grown((900, 960))], (1, 2), config)
    # The network that gained most counts, and one that learnt nothing gained nothing that tells.
    second = [*grown((900, 950)), band(2, 0, 960)]
    assert near([before, band(1, 960), *second, *grown((900, 950, 960, 960))], (1, 2, 3, 4), config)
    assert not near([before, band(1, 940), *second, *grown((900, 950, 960, 960))], (1, 2, 3, 4), config)
    nothing = dataclasses.replace(band(1, 900), trivial_score=0.9)
    assert near([before, nothing, *grown((900, 961))], (1, 2), config)
    assert not near([before, nothing, *grown((900, 960))], (1, 2), config)
    # Also where it is not the deepest head that did best while growing.
    assert not near([*grown((900, 899)), band(2, 0, 931), *grown((0, 0, 970))], (1, 2, 3), config)
    # One that had learnt nothing yet when its growth ended tells how little growing says: from 200 to 700 of 1,000 the
    # odds of an error fall to 1 of 9.333, from 840 to 980 it would be 9.333.
    idle = dataclasses.replace(grown((200,))[0], trivial_score=0.2)
    assert near([idle, band(1, 700), *grown((200, 841))], (1, 2), config)
    assert not near([idle, band(1, 700), *grown((200, 839))], (1, 2), config)
    # The odds of an R² below zero have no bound, and tell nothing.
    lost = dataclasses.replace(idle, scores=(-0.2,), valid_score=-0.2, metric="r2", trivial_score=0.0)
    learnt = dataclasses.replace(band(1, 500), metric="r2", trivial_score=0.0)
    assert near([lost, learnt, *grown((200, 961))], (1, 2), config)
    assert not near([lost, learnt, *grown((200, 960))], (1, 2), config)


def test_a_network_that_holds_the_target_is_near_whatever_training_brought_before():
    config = ExpandConfig(target_accuracy=0.9)
    worse = [*grown((890,)), band(1, 880)]
    assert near([*worse, *grown((890, 900))], (1, 2), config)
    assert not near([*worse, *grown((890, 899))], (1, 2), config)


def test_a_perfect_score_of_few_samples_is_no_measure_of_what_training_brings():
    def few(record: EpochRecord) -> EpochRecord:
        return dataclasses.replace(record, valid_count=30)

    config = ExpandConfig(target_accuracy=0.98)
    # From 900 to 1,000 of a thousand the odds fall to 1 of 6.556 where half of 30 answers may be wrong.
    before = [few(record) for record in (*grown((900,)), band(1, 1000))]
    assert near([*before, *grown((0, 883))], (1, 2), config)
    assert not near([*before, *grown((0, 881))], (1, 2), config)
    # Having got worse by one of 30 does not rule out what makes no mistake.
    fell = [few(record) for record in (*grown((1000,)), band(1, 967))]
    assert near([*fell, *grown((0, 1000))], (1, 2), config)


def test_with_a_confidence_it_is_the_lower_bound_that_is_near():
    config = ExpandConfig(target_accuracy=0.98, reach=2.0, confidence=0.95)
    plain = dataclasses.replace(config, confidence=0.0)
    assert near(together((961,)), (1,), plain)
    assert not near(together((961,)), (1,), config)
    assert near(together((973,)), (1,), config)  # of 1,000 the bound is 0.961


def test_a_network_that_explains_less_than_a_constant_is_not_near():
    (record,) = together((0,))
    worse = dataclasses.replace(record, scores=(-0.5,), metric="r2")
    assert not near([worse], (1,), ExpandConfig(target_accuracy=0.01, reach=1e5))
    assert not near([record], (1,), ExpandConfig(target_accuracy=0.01, reach=1e5))
    perfect = together((1000,))
    # Of 1,000 answers none may be wrong: half an error is allowed, and 2 times as many are one of 1,000.
    every = ExpandConfig(target_accuracy=1.0, reach=2.01)
    assert near(together((999,)), (1,), every)
    assert not near(together((998,)), (1,), every)
    assert near([*grown((1000,)), band(1, 1000), *perfect], (1,), ExpandConfig(target_accuracy=1.0))


def test_gains_are_over_when_two_networks_in_a_row_gained_less_than_a_standard_error():
    rising = [band(1, 850), band(2, 900), band(4, 900, 901)]
    assert not gains_are_over(rising, DOUBLED, AUTO)
    flat = [*rising, band(8, 0, 0, 0, 905)]
    assert gains_are_over(flat, DOUBLED, AUTO)
    # A gain of more than a standard error (0.0095 at 0.9 of 1000) starts the count anew.
    assert not gains_are_over([*rising, band(8, 0, 0, 0, 912)], DOUBLED, AUTO)
    assert gains_are_over(rising, (1, 2, 4), AUTO)
    # The best of a network's epochs counts.
    assert not gains_are_over([*rising[:2], band(4, 900, 912, stop=None), *flat[2:]], DOUBLED, AUTO)
    assert not gains_are_over([*rising, band(8, 0, 0, 0, 905, stop=None)], DOUBLED, AUTO)
    assert gains_are_over([*flat, dataclasses.replace(band(3, 900), phase="refine")], DOUBLED, AUTO)
    # What is perfect has no error, and no gain either.
    perfect = dataclasses.replace(band(2, 900, 1000), errors=(0.01, 0.0))  # nothing is left to gain
    assert gains_are_over([band(1, 800), perfect], DOUBLED, AUTO)
    assert not gains_are_over([band(1, 800), band(2, 900, 999)], DOUBLED, AUTO)
    assert not gains_are_over(grown((850,), (850, 850), (850, 850, 850, 850)), DOUBLED, AUTO)


def test_without_training_to_the_end_gains_of_growing_count():
    believed = dataclasses.replace(AUTO, settle_epochs=0)
    rising = grown((850,), (850, 900), (850, 900, 900, 901))
    assert not gains_are_over(rising, DOUBLED, believed)
    assert gains_are_over([*rising, *grown((850, 900, 900, 901, 0, 0, 0, 905))], DOUBLED, believed)
    assert gains_are_over(rising, (1, 2, 4), believed)
    assert not gains_are_over(together((900,)), (1,), believed)


def test_networks_that_have_learnt_nothing_end_no_search():
    flat = [band(1, 500), band(2, 500), band(4, 500, 501)]
    assert gains_are_over(flat, DOUBLED, AUTO)
    stuck = [dataclasses.replace(record, trivial_score=0.5) for record in flat]
    assert not gains_are_over(stuck, DOUBLED, AUTO)
    assert gains_are_over(stuck, (1, 2, 4), AUTO)  # nothing deeper is planned


def test_an_automatic_target_is_a_little_less_than_what_the_best_depth_reached():
    assert settle_target([], (1, 2), AUTO) == AUTO
    first = band(1, 850)
    assert settle_target([first], (1, 2), AUTO) == settle_target([first, band(2, 920, stop=None)], (1, 2), AUTO) == AUTO
    ended = [first, band(2, 915, stop=None), band(2, 912)]
    assert settle_target(ended, (1, 2), AUTO).target_accuracy == pytest.approx(0.913)
    assert settle_target([band(1, 930), *ended[1:]], (1, 2), AUTO).target_accuracy == pytest.approx(0.928)
    # What comes later changes nothing.
    later = [dataclasses.replace(records([999])[0], phase=phase) for phase in ("refine", "finetune")]
    assert settle_target([*ended, *later], (1, 2), AUTO).target_accuracy == pytest.approx(0.913)
    believed = dataclasses.replace(AUTO, settle_epochs=0)
    found = grown((850,), (850, 900))
    assert settle_target(found, (1, 2), believed).target_accuracy == pytest.approx(0.898)
    assert settle_target(found, (1, 2, 4), believed) == believed  # it still grows


def test_a_target_that_is_given_stays():
    assert settle_target(grown((500,), (500, 500), (500, 500, 500, 500)), (1, 2, 4), GIVEN) == GIVEN
