"""Learning rates and evaluations as pure functions of the epochs trained: resuming needs no state. No torch here."""

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


def anneal(total_epochs: int, warmup_epochs: float, peak: float = 1.0) -> Schedule:
    """Return the schedule of fine-tuning: a linear rise over at most a tenth, then half a cosine down to zero.

    Args:
        total_epochs: length of the whole schedule.
        warmup_epochs: longest rise.
        peak: what it rises to, above 0; less than 1 where weights were annealed before.

    Returns:
        Factor on the learning rate as a function of the epochs trained.
    """
    rise = constant_after_warmup(min(warmup_epochs, total_epochs / 10))
    return lambda epochs: peak * rise(epochs) * 0.5 * (1 + math.cos(math.pi * min(1.0, epochs / total_epochs)))


def is_evaluated(epoch: int, epochs: int, interval: int, last: int) -> bool:
    """Tell whether an evaluation follows an epoch.

    Args:
        epoch: from 1.
        epochs: in all.
        interval: epochs from one evaluation to the next, 1 or more, counted from the end.
        last: so many epochs at the end are evaluated each, 1 or more.

    Returns:
        Whether it does; it always does after the last one.
    """
    left = epochs - epoch
    return left < last or left % interval == 0
