"""Which depth of one training fits a target and a device: a pure choice among rows of figures. No torch here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from odn.config.checks import require
from odn.errors import OdnError

# Costs that can be bounded: the constraint, the figure, how it is printed.
_COSTS = (
    ("max_parameters", "parameters", "{:,} parameters"),
    ("max_macs", "macs", "{:,} MACs"),
    ("max_bytes", "file_bytes", "{:,} bytes"),
    ("max_latency_ms", "latency_ms", "{:.4g} ms"),
)
Verdict = Literal["chosen", "front", "dominated", "refused"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The network of one depth, as it would be deployed.

    Attributes:
        depth: number of blocks.
        valid_score: on the validation split.
        held_score: what has to reach a target: that score, or its lower bound where the run asks for confidence.
        parameters: number of weights.
        macs: multiply-accumulates of one input.
        file_bytes: of its weights on disk.
        latency_ms: predicted for the device; None where no device was named.
    """

    depth: int
    valid_score: float
    held_score: float
    parameters: int
    macs: int
    file_bytes: int
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What a network has to fit; None does not bind.

    Attributes:
        target: validation score to hold.
        within: how far below the best score of all depths it may stay.
        depth: that very one.
        max_parameters: most weights.
        max_macs: most multiply-accumulates of one input.
        max_bytes: most bytes of its weights on disk.
        max_latency_ms: most milliseconds of one input on the device.
    """

    target: float | None = None
    within: float | None = None
    depth: int | None = None
    max_parameters: int | None = None
    max_macs: int | None = None
    max_bytes: int | None = None
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        if self.target is not None:
            require(self.target <= 1, f"--target is {self.target}; allowed: a fraction above 0 and at most 1")
        if self.within is not None:
            require(0 <= self.within < 1, f"--within is {self.within}; allowed: 0 to below 1, e.g. 0.005")
            require(self.target is None, "--target and --within exclude each other; give one of them")
        for name, _, _ in _COSTS:
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, f"{_flag(name)} is {value}; allowed: above 0")

    @property
    def given(self) -> list[str]:
        """Names of those that bind."""
        return [
            name
            for name in ("target", "within", "depth", *(cost[0] for cost in _COSTS))
            if getattr(self, name) is not None
        ]

    def goal(self, best: float) -> float | None:
        """Return the validation score to hold, or None where any will do.

        Args:
            best: score of all depths.

        Returns:
            The target, or what ``within`` allows.
        """
        return self.target if self.within is None else best - self.within


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What became of a candidate.

    Attributes:
        candidate: the network.
        verdict: ``chosen``; on the ``front``, where no other is both as good and as cheap; ``dominated``; or
            ``refused`` by a constraint.
        reason: why it was not chosen; empty for the one that was.
    """

    candidate: Candidate
    verdict: Verdict
    reason: str = ""


def choose(candidates: Sequence[Candidate], constraints: Constraints) -> list[Judged]:
    """Choose the network that fits: with a target the shallowest that holds it, without one the best that is allowed.

    Args:
        candidates: by ascending depth, one or more.
        constraints: all of them have to hold.

    Returns:
        Every candidate with what became of it, exactly one of them chosen.

    Raises:
        OdnError: when none fits; it says which constraint binds, and what is possible.
    """
    best = max(candidate.valid_score for candidate in candidates)
    goal = constraints.goal(best)
    broken = {candidate.depth: _broken(candidate, constraints, goal) for candidate in candidates}
    fitting = [candidate for candidate in candidates if not broken[candidate.depth]]
    if not fitting:
        raise OdnError(_impossible(candidates, constraints, goal))
    # max() keeps the first of equals: the shallowest.
    chosen = fitting[0] if goal is not None else max(fitting, key=lambda candidate: candidate.valid_score)
    rows = []
    for candidate in candidates:
        better = next((other for other in candidates if _dominates(other, candidate)), None)
        if candidate is chosen:
            rows.append(Judged(candidate=candidate, verdict="chosen"))
        elif broken[candidate.depth]:
            rows.append(Judged(candidate=candidate, verdict="refused", reason="; ".join(broken[candidate.depth])))
        elif better is not None:
            reason = f"depth {better.depth} is as good and nowhere dearer"
            rows.append(Judged(candidate=candidate, verdict="dominated", reason=reason))
        else:
            reason = (
                "deeper than the target needs" if goal is not None else f"no more accurate than depth {chosen.depth}"
            )
            rows.append(Judged(candidate=candidate, verdict="front", reason=reason))
    return rows


def _dominates(other: Candidate, candidate: Candidate) -> bool:
    """Say whether another network is at least as good, nowhere dearer, and somewhere cheaper or else shallower."""
    theirs, mine = ([getattr(one, figure) or 0 for _, figure, _ in _COSTS] for one in (other, candidate))
    pairs = [*zip(theirs, mine, strict=True), (-other.valid_score, -candidate.valid_score)]
    return all(a <= b for a, b in pairs) and (theirs != mine or other.depth < candidate.depth)


def _broken(candidate: Candidate, constraints: Constraints, goal: float | None) -> list[str]:
    """Name the constraints that a candidate breaks."""
    reasons = []
    if goal is not None and candidate.held_score < goal:
        bound = (
            ""
            if candidate.held_score == candidate.valid_score
            else f", the lower bound of {candidate.valid_score:.4f},"
        )
        reasons.append(f"{candidate.held_score:.4f}{bound} is below {goal:.4f}")
    if constraints.depth not in (None, candidate.depth):
        reasons.append(f"depth {constraints.depth} was asked for")
    for name, figure, words in _COSTS:
        bound, value = getattr(constraints, name), getattr(candidate, figure)
        if bound is not None and value > bound:
            reasons.append(f"{words.format(value)} are more than {bound:,}")
    return reasons


def _impossible(candidates: Sequence[Candidate], constraints: Constraints, goal: float | None) -> str:
    """Say which constraint binds, and the nearest that is possible with the others as they are, or else alone."""
    given = constraints.given

    def left(kept: Sequence[str]) -> list[Candidate]:
        others = Constraints(**{name: getattr(constraints, name) for name in kept})
        floor = goal if {"target", "within"} & set(kept) else None
        return [candidate for candidate in candidates if not _broken(candidate, others, floor)]

    def binds(name: str, how: str, among: Sequence[Candidate]) -> str:
        return f"{_flag(name)} {getattr(constraints, name):g} {how} {_nearest(name, among)} is possible"

    offers = [
        binds(name, "binds: with the rest as it is,", fitting)
        for name in given
        if (fitting := left([other for other in given if other != name]))
    ]
    offers = offers or [binds(name, "cannot be met even alone:", candidates) for name in given if not left([name])]
    offers = offers or [f"{', '.join(map(_flag, given))} contradict each other, whichever of them is left out"]
    return f"no depth fits; {'; or '.join(offers)}"


def _nearest(name: str, candidates: Sequence[Candidate]) -> str:
    """Say which of some candidates comes nearest to what a constraint asks."""
    if name in ("target", "within"):
        nearest = max(candidates, key=lambda candidate: candidate.held_score)
        score = "validation score" if nearest.held_score == nearest.valid_score else "lower bound"
        return f"a {score} of {nearest.held_score:.4f} at depth {nearest.depth}"
    if name == "depth":
        return f"depth {', '.join(str(candidate.depth) for candidate in candidates)}"
    _, figure, words = next(cost for cost in _COSTS if cost[0] == name)
    nearest = min(candidates, key=lambda candidate: getattr(candidate, figure))
    return f"{words.format(getattr(nearest, figure))} at depth {nearest.depth}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
