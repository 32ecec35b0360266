"""Learning rates as pure functions of the epochs trained, so that resuming needs no state. No torch here."""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant_after_warmup(warmup_epochs: float) -> Schedule:
    """Return the schedule of expansion: a linear rise, then a constant learning rate.

    Args:
        warmup_epochs: length of the rise.

    Returns:
        Factor on the learning rate as a function of the epochs trained at this depth.
    """
    return lambda epochs: min(1.0, epochs / warmup_epochs) if warmup_epochs else 1.0


def anneal(total_epochs: int, warmup_epochs: float) -> Schedule:
    """Return the schedule of fine-tuning: a linear rise over at most a tenth, then half a cosine down to zero.

    Args:
        total_epochs: length of the whole schedule.
        warmup_epochs: longest rise.

    Returns:
        Factor on the learning rate as a function of the epochs trained.
    """
    rise = constant_after_warmup(min(warmup_epochs, total_epochs / 10))
    return lambda epochs: rise(epochs) * 0.5 * (1 + math.cos(math.pi * min(1.0, epochs / total_epochs)))
