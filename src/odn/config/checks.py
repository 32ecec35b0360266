"""What settings have in common: how one is refused. No torch here."""

from odn.errors import UsageError


def require(condition: bool, message: str) -> None:
    """Refuse a setting.

    Args:
        condition: what has to hold.
        message: what was given, what is allowed, the fix.

    Raises:
        UsageError: when it does not hold.
    """
    if not condition:
        raise UsageError(message)


def check_confidence(confidence: float, target_accuracy: float) -> None:
    """Refuse a confidence without a target to be sure of.

    Args:
        confidence: that is asked for; 0 for none.
        target_accuracy: validation accuracy asked for; 0 for an automatic one.

    Raises:
        UsageError: when there is one without the other: the bound of the best score lies below what is within it.
    """
    require(
        not confidence or target_accuracy > 0,
        f"--confidence (expand.confidence of a recipe) is {confidence} with an automatic target, which is seen on the "
        "very scores it would be held against; give --target, or leave it out",
    )


def check_target(target_accuracy: float) -> None:
    """Refuse a target that is not a fraction.

    Args:
        target_accuracy: validation accuracy asked for.

    Raises:
        UsageError: when it is not above 0 and at most 1; percentages get the fraction that was meant.
    """
    hint = f"; for {target_accuracy} % write {target_accuracy / 100:g}" if 1 < target_accuracy <= 100 else ""
    require(
        0 < target_accuracy <= 1,
        f"target accuracy is {target_accuracy}; allowed: a fraction above 0 and at most 1{hint}",
    )
