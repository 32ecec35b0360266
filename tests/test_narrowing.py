import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odn.config import CompressConfig, ExpandConfig
from odn.errors import UsageError
from odn.narrowing import (
    compression_summary,
    kept_channels,
    next_width,
    require_width,
    width_to_keep,
    widths_to_try,
    with_bound,
)
from odn.records import EpochRecord, Narrowed
from odn.stopping import confirmed

AUTO = CompressConfig(auto=True, epochs=3)
GOAL = ExpandConfig(target_accuracy=0.9, confirmations=2)
WIDTHS = [0.75, 0.5, 0.25]
sizes = st.lists(st.integers(1, 2048), min_size=1, max_size=5)
multiples = st.integers(1, 64)
shares = st.floats(0.001, 1)


@given(size=st.integers(1, 2048), width=shares, multiple=multiples)
def test_layers_keep_a_multiple_and_never_nothing(size, width, multiple):
    kept = kept_channels(size, width, multiple)
    assert 1 <= kept <= size
    assert kept % multiple == 0 or kept == size
    assert abs(kept - width * size) <= max(multiple, width * size % multiple)


@given(size=st.integers(1, 2048), low=shares, high=shares, multiple=multiples)
def test_a_smaller_share_never_keeps_more(size, low, high, multiple):
    low, high = sorted((low, high))
    assert kept_channels(size, low, multiple) <= kept_channels(size, high, multiple)
    assert kept_channels(size, 1.0, multiple) == size


@given(sizes=sizes, step=st.floats(0.3, 0.95), multiple=multiples)
def test_the_walk_goes_down_in_steps_that_each_change_a_layer_until_nothing_can_go(sizes, step, multiple):
    widths = widths_to_try(sizes, CompressConfig(auto=True, step=step, channel_multiple=multiple))
    assert widths == sorted(set(widths), reverse=True)
    shapes = [[kept_channels(size, width, multiple) for size in sizes] for width in [1.0, *widths]]
    assert all(a != b for a, b in itertools.pairwise(shapes))
    assert shapes[-1] == [min(size, multiple) for size in sizes]


def records(width: float, correct: list[int], parameters: int = 10) -> list[EpochRecord]:
    shape = Narrowed(width=width, parameters=parameters, macs=5, teacher_macs=20)
    return [
        EpochRecord(
            phase="compress", depth=1, epoch=epoch, cap=3, learning_rate=0.1, train_loss=0.1, valid_score=count / 100,
            valid_error=0.01, valid_count=100, train_samples=10, evaluated_samples=10, seconds=1.0, narrowed=shape,
        )
        for epoch, count in enumerate(correct, 1)
    ]  # fmt: skip


HELD, MISSED = [80, 91, 92], [91, 80, 91]  # the second never twice in a row


@pytest.mark.parametrize(
    ("history", "following", "kept"),
    [
        ([], 0.75, None),
        (records(0.75, HELD[:2]), 0.75, None),
        (records(0.75, HELD), 0.5, 0.75),
        (records(0.75, MISSED), None, None),
        (records(0.75, HELD) + records(0.5, MISSED), None, 0.75),
        (records(0.75, HELD) + records(0.5, HELD) + records(0.25, HELD), None, 0.25),
    ],
)
def test_the_walk_goes_on_while_the_target_is_held_and_keeps_the_smallest_that_did(history, following, kept):
    assert next_width(history, WIDTHS, AUTO, GOAL) == following
    if following is None or kept is not None:
        assert width_to_keep(history, WIDTHS, AUTO, GOAL) == kept


def test_evaluations_of_two_widths_do_not_confirm_each_other():
    assert not confirmed(records(0.75, [80, 80, 91]) + records(0.5, [91, 80, 80]), GOAL)
    assert confirmed(records(0.75, HELD), GOAL)


def test_a_width_that_was_asked_for_is_kept_whatever_it_reaches():
    fixed = CompressConfig(width=0.5, epochs=3)
    assert next_width([], [0.5], fixed, GOAL) == 0.5
    assert next_width(records(0.5, MISSED), [0.5], fixed, GOAL) is None
    assert width_to_keep(records(0.5, MISSED), [0.5], fixed, GOAL) == 0.5


def test_the_summary_tells_every_width_tried_and_the_one_kept():
    history = records(0.75, HELD, 70) + records(0.5, MISSED, 30)
    summary = compression_summary(history, AUTO, GOAL)
    assert summary["bound"] == "auto"
    assert summary["width"] == 0.75
    assert [(s["width"], s["parameters"], s["valid_score"], s["held"]) for s in summary["tried"]] == [
        (0.75, 70, 0.92, True),
        (0.5, 30, 0.91, False),
    ]
    assert compression_summary(history[3:], AUTO, GOAL)["width"] is None
    plain = [dataclasses.replace(record, narrowed=None) for record in history]
    assert compression_summary(plain, AUTO, GOAL) is None


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({}, "compress was given nothing; allowed: exactly one, above 0, of width, max_parameters"),
        ({"width": 0.5, "max_macs": 3}, r"given width=0\.5, max_macs=3; allowed: exactly one"),
        ({"width": 0.0}, r"given width=0\.0; allowed: exactly one, above 0"),
        ({"width": 50.0}, r"compress\.width is 50\.0; allowed: a share above 0 and at most 1; for 50 % write 0\.5"),
        ({"width": -1.0}, r"compress\.width is -1\.0"),
        ({"max_parameters": -1}, "compress.max_parameters is -1; allowed: 0 or more"),
    ],
)
def test_wrong_bounds_are_refused(bounds, message):
    every = {name: bounds.get(name) for name in ("width", "max_parameters", "max_macs", "auto")}
    with pytest.raises(UsageError, match=message):
        with_bound(CompressConfig(), **every)


def test_a_bound_replaces_another():
    assert with_bound(CompressConfig(auto=True, epochs=3), width=0.5) == CompressConfig(width=0.5, epochs=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0.5, "auto": True}, "compress was given width and auto; allowed: one of them"),
        ({"epochs": 0}, "compress.epochs is 0; allowed: 1 or more"),
        ({"step": 1.0}, "compress.step is 1.0; allowed: above 0 and below 1"),
        ({"channel_multiple": 0}, "compress.channel_multiple is 0; allowed: 1 to 64"),
        ({"temperature": 0.0}, "compress.temperature is 0.0; allowed: above 0"),
        ({"soft_share": 1.1}, "compress.soft_share is 1.1; allowed: 0 to 1"),
        ({"max_macs": -5}, "compress.max_macs is -5; allowed: 0 or more"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        CompressConfig(**settings)


def test_the_smallest_width_is_that_of_the_widest_layer():
    require_width([16, 64], CompressConfig(width=0.0625))
    with pytest.raises(UsageError, match=r"width 0\.06 leaves no channel .* has 64\); allowed: 0\.0625 to 1"):
        require_width([16, 64], CompressConfig(width=0.06))
