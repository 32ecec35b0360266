"""Which depth of one training fits a target and a device: a pure choice among rows of figures. No torch here."""

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
        parameters: number of weights.
        macs: multiply-accumulates of one input.
        file_bytes: of its weights on disk.
        latency_ms: predicted for the device; None where no device was named.
    """

    depth: int
    valid_score: float
    parameters: int
    macs: int
    file_bytes: int
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What a network has to fit; 0 does not bind.

    Attributes:
        target: validation score to hold.
        within: how far below the best score of all depths it may stay; negative does not bind.
        max_parameters: most weights.
        max_macs: most multiply-accumulates of one input.
        max_bytes: most bytes of its weights on disk.
        max_latency_ms: most milliseconds of one input on the device.
    """

    target: float = 0.0
    within: float = -1.0
    max_parameters: int = 0
    max_macs: int = 0
    max_bytes: int = 0
    max_latency_ms: float = 0.0

    def __post_init__(self) -> None:
        require(self.target <= 1, f"--target is {self.target}; allowed: a fraction above 0 and at most 1")
        require(self.within < 1, f"--within is {self.within}; allowed: 0 to below 1, e.g. 0.005")
        require(not (self.target and self.within >= 0), "--target and --within exclude each other; give one of them")
        for name, _, _ in _COSTS:
            value = getattr(self, name)
            require(value >= 0, f"--{name.replace('_', '-')} is {value}; allowed: above 0")

    @property
    def given(self) -> list[str]:
        """Names of those that bind."""
        names = ["target"] if self.target else ["within"] if self.within >= 0 else []
        return [*names, *(name for name, _, _ in _COSTS if getattr(self, name))]


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
    """Choose the network that fits: with a target the cheapest that holds it, without one the best that is allowed.

    Args:
        candidates: by ascending depth, one or more.
        constraints: all of them have to hold.

    Returns:
        Every candidate with what became of it, exactly one of them chosen.

    Raises:
        OdnError: when none fits; it says which constraint binds, and what is possible.
    """
    best = max(candidate.valid_score for candidate in candidates)
    goal = constraints.target or (best - constraints.within if constraints.within >= 0 else 0.0)
    broken = {candidate.depth: _broken(candidate, constraints, goal) for candidate in candidates}
    fitting = [candidate for candidate in candidates if not broken[candidate.depth]]
    if not fitting:
        raise OdnError(_impossible(candidates, constraints, goal))
    # max() keeps the first of equals: the shallowest.
    chosen = fitting[0] if goal else max(fitting, key=lambda candidate: candidate.valid_score)
    rows = []
    for candidate in candidates:
        better = next((other for other in candidates if _dominates(other, candidate)), None)
        if candidate is chosen:
            rows.append(Judged(candidate=candidate, verdict="chosen"))
        elif broken[candidate.depth]:
            rows.append(Judged(candidate=candidate, verdict="refused", reason="; ".join(broken[candidate.depth])))
        elif better is not None:
            reason = f"depth {better.depth} is as good and costs less"
            rows.append(Judged(candidate=candidate, verdict="dominated", reason=reason))
        else:
            reason = "deeper than the target needs" if goal else f"{chosen.valid_score:.4f} is possible"
            rows.append(Judged(candidate=candidate, verdict="front", reason=reason))
    return rows


def _dominates(other: Candidate, candidate: Candidate) -> bool:
    """Say whether another network is at least as good and costs less; a deeper one never costs less."""
    return other.depth < candidate.depth and other.valid_score >= candidate.valid_score


def _broken(candidate: Candidate, constraints: Constraints, goal: float) -> list[str]:
    """Name the constraints that a candidate breaks."""
    reasons = []
    if candidate.valid_score < goal:
        reasons.append(f"{candidate.valid_score:.4f} is below {goal:.4f}")
    for name, figure, words in _COSTS:
        bound, value = getattr(constraints, name), getattr(candidate, figure)
        if bound and value > bound:
            reasons.append(f"{words.format(value)} are more than {bound:,}")
    return reasons


def _impossible(candidates: Sequence[Candidate], constraints: Constraints, goal: float) -> str:
    """Say which constraint binds, and the nearest that is possible with the others as they are."""
    offers = []
    for name in constraints.given:
        others = Constraints(**{other: getattr(constraints, other) for other in constraints.given if other != name})
        floor = 0.0 if name in ("target", "within") else goal
        left = [candidate for candidate in candidates if not _broken(candidate, others, floor)]
        if not left:
            continue
        if floor or name not in ("target", "within"):
            _, figure, words = next(cost for cost in _COSTS if cost[0] == name)
            nearest = min(left, key=lambda candidate: getattr(candidate, figure))
            offer = words.format(getattr(nearest, figure))
        else:
            nearest = max(left, key=lambda candidate: candidate.valid_score)
            offer = f"a validation score of {nearest.valid_score:.4f}"
        flag, asked = name.replace("_", "-"), getattr(constraints, name)
        offers.append(f"--{flag} {asked:g} binds: with the rest as it is, {offer} at depth {nearest.depth} is possible")
    if not offers:
        worst = ", ".join(f"--{name.replace('_', '-')}" for name in constraints.given)
        offers = [f"{worst} cannot be met even one at a time"]
    return f"no depth fits; {'; or '.join(offers)}"
