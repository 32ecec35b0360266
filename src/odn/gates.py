"""When an input may leave a network early: policies over the logits of a head. No torch here.

Shapes: N samples, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from odn.errors import UsageError

Policy = Literal["max-probability", "margin", "entropy", "patience"]
POLICIES: tuple[Policy, ...] = ("max-probability", "margin", "entropy", "patience")
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Exit:
    """A head at which inputs may leave.

    Attributes:
        depth: number of blocks before it.
        temperature: by which its logits are divided, above 0 (Guo et al., arXiv 1706.04599).
        threshold: an input leaves when its confidence is at least this; with patience, when so many exits in a row gave
            it the same label.
    """

    depth: int
    temperature: float
    threshold: float

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UsageError(f"an exit at depth {self.depth}; allowed: 1 or more")
        if not self.temperature > 0:
            raise UsageError(f"temperature {self.temperature} at depth {self.depth}; allowed: above 0")


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where inputs leave a network.

    Attributes:
        policy: what confidence is.
        exits: by ascending depth.
        last: depth at which every input that is left ends, beyond the exits.
    """

    policy: Policy
    exits: tuple[Exit, ...]
    last: int

    def __post_init__(self) -> None:
        depths = [*(exit_.depth for exit_ in self.exits), self.last]
        if depths != sorted(set(depths)):
            raise UsageError(f"exits at depths {depths}; allowed: ascending, the last one deepest")

    @property
    def depths(self) -> tuple[int, ...]:
        """Depths of all heads that are asked, the last included."""
        return (*(exit_.depth for exit_ in self.exits), self.last)


class Memory(NamedTuple):
    """What patience remembers of the inputs that are left.

    Attributes:
        labels: that the exit before gave, shape (N,).
        streaks: for how many exits in a row, shape (N,).
    """

    labels: Labels
    streaks: Labels


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """Turn logits into probabilities.

    Args:
        logits: shape (N, K).
        temperature: by which they are divided, above 0.

    Returns:
        Shape (N, K); rows sum to 1.
    """
    scaled = logits / temperature
    exponentials = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def confidence(policy: Policy, logits: Floats, temperature: float) -> Floats:
    """Say how sure a head is.

    Args:
        policy: ``max-probability``, ``margin`` between the two likeliest classes, or ``entropy``, one less its share of
            the largest possible (Teerapittayanon et al., arXiv 1709.01686).
        logits: shape (N, K), two classes or more.
        temperature: of that head.

    Returns:
        Shape (N,), in [0, 1].
    """
    shares = probabilities(logits, temperature)
    if policy == "max-probability":
        return np.asarray(shares.max(1))
    if policy == "margin":
        top = np.partition(shares, -2, axis=1)
        return np.asarray(top[:, -1] - top[:, -2])
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(1)
    return np.asarray(np.clip(1 - entropy / np.log(shares.shape[1]), 0, 1))


def leaving(
    policy: Policy, exit_: Exit, logits: npt.NDArray[np.floating], memory: Memory | None
) -> tuple[Mask, Memory | None]:
    """Decide which inputs leave at an exit.

    Args:
        policy: of the route.
        exit_: where they are.
        logits: that its head gives, shape (N, K).
        memory: with patience, of the exit before; None at the first.

    Returns:
        A mask of shape (N,), and what the next exit has to know of the same inputs.
    """
    if policy != "patience":
        return confidence(policy, logits.astype(np.float64), exit_.temperature) >= exit_.threshold, None
    labels = logits.argmax(1)
    streaks = np.ones(len(labels), np.int64)
    if memory is not None:
        streaks = np.where(labels == memory.labels, memory.streaks + 1, 1)
    return streaks >= exit_.threshold, Memory(labels, streaks)


# Computes from one exit to the next: features of those that are left in, features and logits out.
Hop = Callable[[Any], tuple[Any, npt.NDArray[np.floating]]]


def follow(route: Route, hops: Sequence[Hop], inputs: Any) -> tuple[npt.NDArray[np.float32], Labels]:
    """Run a network stage by stage; inputs that leave are taken out of the batch, and the rest goes on without them.

    Args:
        route: exits and policy.
        hops: one per exit and one to the end; the first reads inputs.
        inputs: an array or tensor whose first dimension counts them, one or more.

    Returns:
        Logits of shape (N, K), of the head at which each input left, and those depths, shape (N,).
    """
    count = len(inputs)
    waiting, features = np.arange(count), inputs
    depths = np.full(count, route.last, np.int64)
    answers: npt.NDArray[np.float32] | None = None
    memory: Memory | None = None
    for exit_, hop in zip((*route.exits, None), hops, strict=True):
        features, logits = hop(features)
        if answers is None:
            answers = np.empty((count, logits.shape[1]), np.float32)
        if exit_ is None:
            answers[waiting] = logits
            break
        leaves, memory = leaving(route.policy, exit_, logits, memory)
        gone = waiting[leaves]
        answers[gone], depths[gone] = logits[leaves], exit_.depth
        stay = np.flatnonzero(~leaves)
        if not len(stay):
            break
        if len(gone):
            features, waiting = features[stay], waiting[stay]
            memory = memory and Memory(memory.labels[stay], memory.streaks[stay])
    assert answers is not None
    return answers, depths


def depths_left(route: Route, logits: Mapping[int, npt.NDArray[np.floating]]) -> Labels:
    """Say at which depth each input leaves, all logits being known.

    Args:
        route: exits and policy.
        logits: of every depth of the route, each of shape (N, K).

    Returns:
        Depths, shape (N,).
    """
    count = len(logits[route.last])
    depths = np.full(count, route.last, np.int64)
    there = np.ones(count, np.bool_)
    memory: Memory | None = None
    for exit_ in route.exits:
        leaves, memory = leaving(route.policy, exit_, logits[exit_.depth], memory)
        depths[there & leaves] = exit_.depth
        there &= ~leaves
    return depths


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What it takes to come to a depth, in multiply-accumulates or in milliseconds.

    Attributes:
        trunk: of stem and blocks up to depth 1, 2, and so on.
        heads: of each depth's head.
        call: of running on behind an exit, besides what is computed there.
        gate: of deciding at an exit whether an input leaves.
        unit: of all of them.
    """

    trunk: tuple[float, ...]
    heads: tuple[float, ...]
    call: float = 0.0
    gate: float = 0.0
    unit: Literal["macs", "ms"] = "macs"

    def of(self, depths: Sequence[int]) -> dict[int, float]:
        """Add up what an input takes that leaves at each exit.

        Args:
            depths: of a route, ascending; the last one is no exit.

        Returns:
            Cost by depth.
        """
        found, passed = {}, 0.0
        for depth in depths:
            passed += self.heads[depth - 1] + (self.gate if depth != depths[-1] else 0.0)
            found[depth] = self.trunk[depth - 1] + passed
            passed += self.call
        return found

    def mean(self, route: Route, left: Labels) -> float:
        """Average over inputs.

        Args:
            route: exits and policy.
            left: depth at which each input left.

        Returns:
            The mean cost of an input.
        """
        of = self.of(route.depths)
        return float(np.mean([of[int(depth)] for depth in left]))
