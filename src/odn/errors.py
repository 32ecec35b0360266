"""Errors that a person can put right: each says what was given, what is allowed and the fix."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


class OdnError(Exception):
    """Something went wrong that the user can mend; the command prints its text as one line and exits 1."""

    exit_code = 1


class UsageError(OdnError):
    """The request itself is wrong (a flag, a name, a recipe); the command exits 2."""

    exit_code = 2


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return a hint for a misspelt name.

    Args:
        given: what the user wrote.
        allowed: the names that would have been right.

    Returns:
        `` Did you mean 'x'?`` with a leading blank when a name is close, else an empty string.
    """
    close = difflib.get_close_matches(given.lower(), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def require_extra(module: str, *, extra: str, what_for: str) -> Any:
    """Import a library that only some uses need.

    Args:
        module: its name.
        extra: the extra of this package that installs it.
        what_for: what needs it, for the message.

    Returns:
        The imported module.

    Raises:
        UsageError: when it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{what_for} needs {module} ({error}); install it with: pip install 'optimally-deep[{extra}]'"
        ) from error
