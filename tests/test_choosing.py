"""Choosing a depth for a target and a device."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from odn.choosing import Candidate, Constraints, choose
from odn.errors import OdnError


def candidates(*scores: float, latency: float | None = None) -> list[Candidate]:
    return [
        Candidate(
            depth=depth,
            valid_score=score,
            held_score=score,
            parameters=100 * depth,
            macs=1000 * depth,
            file_bytes=400 * depth,
            latency_ms=latency and latency * depth,
        )
        for depth, score in enumerate(scores, 1)
    ]


def chosen(rows) -> int:
    (row,) = [row for row in rows if row.verdict == "chosen"]
    assert row.reason == ""
    return row.candidate.depth


LADDER = candidates(0.8, 0.9, 0.9, 0.97, latency=0.5)


@pytest.mark.parametrize(
    ("asked", "depth"),
    [
        ({}, 4),
        ({"target": 0.85}, 2),
        ({"target": 0.95}, 4),
        ({"within": 0.0}, 4),
        ({"within": 0.1}, 2),
        ({"max_parameters": 399}, 2),
        ({"max_parameters": 300}, 2),
        ({"max_macs": 1000}, 1),
        ({"max_bytes": 1600}, 4),
        ({"max_latency_ms": 1.2}, 2),
        ({"target": 0.8, "max_parameters": 300}, 1),
        ({"max_parameters": 300, "max_latency_ms": 0.6}, 1),
    ],
)
def test_what_is_chosen(asked, depth):
    assert chosen(choose(LADDER, Constraints(**asked))) == depth


def test_a_target_is_held_against_the_lower_bound_where_there_is_one():
    unsure = [dataclasses.replace(one, held_score=one.valid_score - 0.03) for one in LADDER]
    rows = choose(unsure, Constraints(target=0.9))
    assert chosen(rows) == 4
    assert rows[2].reason == "0.8700, the lower bound of 0.9000, is below 0.9000"
    with pytest.raises(OdnError, match=r"--target 0.95 .* a lower bound of 0.9400 at depth 4 is possible"):
        choose(unsure, Constraints(target=0.95))


def test_every_depth_says_what_became_of_it():
    rows = choose(LADDER, Constraints(target=0.9, max_macs=3500))
    assert [(row.verdict, row.reason) for row in rows] == [
        ("refused", "0.8000 is below 0.9000"),
        ("chosen", ""),
        ("dominated", "depth 2 is as good and nowhere dearer"),
        ("refused", "4,000 MACs are more than 3,500"),
    ]


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"target": 0.99}, "--target 0.99 binds: with the rest as it is, a validation score of 0.9700 at depth 4 is"),
        ({"max_parameters": 99}, "--max-parameters 99 binds: with the rest as it is, 100 parameters at depth 1 is"),
        (
            {"target": 0.95, "max_macs": 2500},
            "--target 0.95 binds: with the rest as it is, a validation score of 0.9000",
        ),
        ({"target": 0.95, "max_macs": 2500}, "or --max-macs 2500 binds: with the rest as it is, 4,000 MACs at depth 4"),
        ({"max_latency_ms": 0.1}, "--max-latency-ms 0.1 binds: with the rest as it is, 0.5 ms at depth 1 is possible"),
        (
            {"target": 0.5, "max_parameters": 50, "max_macs": 500},
            "--max-parameters 50 cannot be met even alone: 100 parameters at depth 1 is possible; or --max-macs 500",
        ),
        ({"target": 0.99, "max_bytes": 5}, "--target 0.99 cannot be met even alone: a validation score of 0.9700 at"),
        (
            {"target": 0.95, "max_macs": 2500, "max_latency_ms": 0.6},
            "--target 0.95 binds: with the rest as it is, a validation score of 0.8000 at depth 1 is possible",
        ),
    ],
)
def test_the_impossible_says_what_binds(asked, text):
    with pytest.raises(OdnError) as error:
        choose(LADDER, Constraints(**asked))
    assert text in str(error.value)


scores = st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=8)
asked = st.builds(
    Constraints,
    target=st.sampled_from([None, 0.0, 0.3, 0.7, 1.0]),
    max_parameters=st.sampled_from([None, 200, 500]),
    max_macs=st.sampled_from([None, 1000, 4000]),
)


@given(scores=scores, constraints=asked)
def test_the_choice_fits_and_nothing_better_fits(scores, constraints):
    ladder = candidates(*scores)

    def fits(candidate) -> bool:
        return (
            candidate.valid_score >= (constraints.target or 0.0)
            and candidate.parameters <= (constraints.max_parameters or candidate.parameters)
            and candidate.macs <= (constraints.max_macs or candidate.macs)
        )

    fitting = [candidate for candidate in ladder if fits(candidate)]
    if not fitting:
        with pytest.raises(OdnError, match="no depth fits"):
            choose(ladder, constraints)
        return
    rows = choose(ladder, constraints)
    best = ladder[chosen(rows) - 1]
    assert best in fitting
    if constraints.target is not None:
        assert best.depth == fitting[0].depth
    else:
        assert best.valid_score == max(candidate.valid_score for candidate in fitting)
    assert [row.candidate for row in rows] == ladder
    assert all((row.verdict == "refused") == (row.candidate not in fitting) for row in rows)


@given(scores=scores, constraints=asked)
def test_what_is_offered_instead_is_possible(scores, constraints):
    ladder = candidates(*scores)
    assume(constraints.given)
    loose = Constraints(target=None if constraints.target is None else min(constraints.target, max(scores)))
    assert chosen(choose(ladder, loose)) <= len(ladder)
    tight = dataclasses.replace(loose, max_parameters=1)
    with pytest.raises(OdnError, match="100 parameters" if loose.target is None else "parameters at depth"):
        choose(ladder, tight)


def test_scores_below_zero_are_scores():
    ladder = candidates(-0.05, 0.3)
    assert chosen(choose(ladder, Constraints(max_parameters=100))) == 1
    assert chosen(choose(ladder, Constraints(within=0.3))) == 2
    assert chosen(choose(candidates(0.0, 0.3), Constraints(within=0.3))) == 1


def test_where_a_deeper_network_is_faster_neither_dominates():
    pair = zip(LADDER[:2], (2.0, 1.0), strict=True)
    slow, fast = (dataclasses.replace(one, latency_ms=ms, valid_score=0.9) for one, ms in pair)
    rows = choose([slow, fast], Constraints(max_latency_ms=1.5))
    assert [(row.verdict, row.reason) for row in rows] == [("refused", "2 ms are more than 1.5"), ("chosen", "")]
    rows = choose([slow, fast], Constraints(max_latency_ms=3.0))
    assert [(row.verdict, row.reason) for row in rows] == [("chosen", ""), ("front", "no more accurate than depth 1")]
