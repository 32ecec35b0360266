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


class ElsewhereError(OdnError):
    """The first of several processes failed and says why; this one only ends."""


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


def require_extra(module: str, extra: str, what_for: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: its dotted name.
        extra: of this package, that brings the library along.
        what_for: what the user asked for that needs it.

    Returns:
        The module.

    Raises:
        OdnError: when the library is not installed.
        ModuleNotFoundError: when it is, but lacks something itself.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        if error.name != name:
            raise
        raise OdnError(f"{what_for} needs {name}; install it with: pip install 'optimally-deep[{extra}]'") from error
