"""Fitting temperatures and thresholds of early exits, on data that no weight was fitted to. No torch here.

Shapes: D depths, N samples, K classes.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from odn.errors import OdnError, UsageError
from odn.gates import POLICIES, Costs, Exit, Floats, Labels, Policy, Route, confidence, depths_left, probabilities
from odn.route_record import in_words

_log = logging.getLogger("odn")
FEWEST_SAMPLES = 200
_GRID = 17  # thresholds that are tried at a head
_MARGINS = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the allowed drop, until the other half of the data confirms it
_TEMPERATURES = (0.05, 20.0)
_SLACK = 0.05  # of a mean cost: other samples than those it was fitted to take a little more or less
_ROUNDING = 1e-6  # below the confidence of a sample, so that other arithmetic sends it the same way


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A route and how it does on the half of the calibration data that chose it.

    Attributes:
        route: exits, thresholds and policy.
        accuracy: of the route.
        full_accuracy: of the deepest head.
        mean_cost: of an input, in the units of the costs.
        full_cost: of the deepest head alone.
        samples: of that half.
    """

    route: Route
    accuracy: float
    full_accuracy: float
    mean_cost: float
    full_cost: float
    samples: int


def calibrate(
    logits: Mapping[int, Floats],
    labels: Labels,
    costs: Costs,
    *,
    max_drop: float | None = None,
    mean_cost: float | None = None,
    policy: Policy | None = None,
) -> Calibrated:
    """Fit a route.

    Half of the samples, every other one, set temperatures and thresholds; the rest decides between policies and how
    much of the allowed drop may be spent, because thresholds fitted to some samples are too bold for others.

    Args:
        logits: of every depth, each of shape (N, K), in the order of ``labels``.
        labels: shape (N,).
        costs: of the depths.
        max_drop: accuracy that may be lost against the deepest head, a fraction.
        mean_cost: instead of it, the most an input may take in the mean, give or take 5 %.
        policy: None tries all.

    Returns:
        The cheapest route that holds the drop, or the most accurate one within the cost.

    Raises:
        UsageError: when there are too few samples, or not exactly one goal.
        OdnError: when no route is as cheap as that.
    """
    if (max_drop is None) == (mean_cost is None):
        raise UsageError("give either a drop (max_drop) or a mean cost (mean_cost)")
    if max_drop is not None and not 0 <= max_drop < 1:
        raise UsageError(f"the drop is {max_drop}; allowed: 0 to below 1, e.g. 0.002")
    if mean_cost is not None and not 0 < mean_cost < np.inf:
        raise UsageError(f"the mean cost is {mean_cost}; allowed: above 0")
    if len(labels) < FEWEST_SAMPLES:
        raise UsageError(
            f"thresholds on {len(labels)} samples; allowed: {FEWEST_SAMPLES} or more: use a larger validation split "
            "(data.valid_fraction of a recipe)"
        )
    if max_drop and max_drop * (len(labels) // 2) < 1:
        _log.warning(
            "a drop of %g is less than one of the %d samples that a route is checked on (%.4f), so none may be lost; "
            "more validation data would allow more",
            max_drop,
            len(labels) // 2,
            2 / len(labels),
        )
    depths = sorted(logits)
    halves = [{depth: logits[depth][start::2] for depth in depths} for start in (0, 1)]
    fit, check = (_Half(half, labels[start::2], costs) for start, half in enumerate(halves))
    temperatures = {depth: _temperature(fit.logits[depth], fit.labels) for depth in depths}
    found: list[Calibrated] = []
    for name in (policy,) if policy else POLICIES:
        if mean_cost is not None:
            found.append(check.judge(_fit(name, fit, temperatures, drop=1.0, enough=mean_cost)))
            continue
        assert max_drop is not None
        for margin in _MARGINS:
            judged = check.judge(_fit(name, fit, temperatures, drop=margin * max_drop, enough=0.0))
            if judged.full_accuracy - judged.accuracy <= max_drop:
                found.append(judged)
                break
    if mean_cost is not None:
        allowed = [one for one in found if one.mean_cost <= (1 + _SLACK) * mean_cost]
        if not allowed:
            least, alone = min(one.mean_cost for one in found), costs.of(depths[:1])[depths[0]]
            raise OdnError(
                f"no route takes {in_words(mean_cost, costs.unit)} in the mean: the cheapest that was found takes "
                f"{in_words(least, costs.unit)}, the shallowest depth alone {in_words(alone, costs.unit)}"
            )
        return max(allowed, key=lambda one: one.accuracy)
    found.append(check.judge(Route(policy=policy or POLICIES[0], exits=(), last=depths[-1])))
    return min(found, key=lambda one: one.mean_cost)


class _Half:
    """Half of the samples, with what is asked of them over and over."""

    def __init__(self, logits: Mapping[int, Floats], labels: Labels, costs: Costs) -> None:
        self.logits, self.labels, self.costs = logits, labels, costs
        self.depths = sorted(logits)
        self.correct = np.stack([logits[depth].argmax(1) == labels for depth in self.depths])

    def judge(self, route: Route) -> Calibrated:
        left = depths_left(route, self.logits)
        rows = np.searchsorted(self.depths, left)
        return Calibrated(
            route=route,
            accuracy=float(self.correct[rows, np.arange(len(left))].mean()),
            full_accuracy=float(self.correct[-1].mean()),
            mean_cost=self.costs.mean(route, left),
            full_cost=self.costs.of([self.depths[-1]])[self.depths[-1]],
            samples=len(left),
        )


def _temperature(logits: Floats, labels: Labels) -> float:
    """Find the temperature at which a head's probabilities are likeliest to be right."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def surprise(log_temperature: float) -> float:
        shares = probabilities(logits, float(np.exp(log_temperature)))[rows, labels]
        return float(-np.log(np.maximum(shares, 1e-300)).mean())

    found = minimize_scalar(surprise, bounds=tuple(np.log(_TEMPERATURES)), method="bounded")
    return float(np.exp(found.x))


def _fit(policy: Policy, half: _Half, temperatures: Mapping[int, float], *, drop: float, enough: float) -> Route:
    """Find exits for one policy: cheaper step by step until the drop is spent, or the cost is low enough."""
    *shallow, last = half.depths
    if not shallow:
        return Route(policy=policy, exits=(), last=last)
    if policy == "patience":
        routes = [
            Route(policy=policy, exits=tuple(_exit(depth, temperatures, streak) for depth in shallow), last=last)
            for streak in range(1, len(shallow) + 1)
        ]
        judged = [half.judge(route) for route in [*routes, Route(policy=policy, exits=(), last=last)]]
        fitting = [
            one for one in judged if one.full_accuracy - one.accuracy <= drop and one.mean_cost <= (enough or np.inf)
        ]
        if enough:
            return max(fitting or judged, key=lambda one: (one.accuracy, -one.mean_cost)).route
        return min(fitting, key=lambda one: one.mean_cost).route
    return _descend(policy, half, temperatures, drop=drop, enough=enough)


def _descend(policy: Policy, half: _Half, temperatures: Mapping[int, float], *, drop: float, enough: float) -> Route:
    """Lower one threshold at a time, that which saves most for each answer that it spoils."""
    *shallow, last = half.depths
    sure = np.stack([confidence(policy, half.logits[depth], temperatures[depth]) for depth in shallow])
    grid = np.quantile(sure, np.linspace(0, 1, _GRID), axis=1).T - _ROUNDING
    thresholds = np.full(len(shallow), np.inf)

    def outcome(trial: Floats) -> tuple[int, float]:
        leaves = np.vstack([sure >= trial[:, None], np.ones(sure.shape[1], np.bool_)])
        first = leaves.argmax(0)
        asked = [depth for depth, bound in zip(shallow, trial, strict=True) if np.isfinite(bound)]
        of = half.costs.of([*asked, last])
        spent = np.array([of.get(depth, 0.0) for depth in half.depths])
        # Answers that are right by luck where the deepest head is wrong may not pay for others that are spoilt.
        kept = half.correct[first, np.arange(len(first))] & half.correct[-1]
        return int(kept.sum()), float(spent[first].mean())

    right, cost = outcome(thresholds)
    fewest = right - drop * len(half.labels)
    while cost > enough:
        moves = []
        for row, bound in enumerate(thresholds):
            for lower in grid[row][grid[row] < bound]:
                trial = thresholds.copy()
                trial[row] = lower
                kept, price = outcome(trial)
                if kept >= fewest - 1e-9 and price < cost:
                    moves.append(((cost - price) / max(right - kept, 0.5), -price, row, lower, kept, price))
        if not moves:
            break
        _, _, row, lower, right, cost = max(moves)
        thresholds[row] = lower
    exits = [
        _exit(depth, temperatures, float(bound))
        for depth, bound in zip(shallow, thresholds, strict=True)
        if np.isfinite(bound)
    ]
    return Route(policy=policy, exits=tuple(exits), last=last)


def _exit(depth: int, temperatures: Mapping[int, float], threshold: float) -> Exit:
    return Exit(depth=depth, temperature=temperatures[depth], threshold=threshold)
