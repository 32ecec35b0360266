"""What all commands share: exit codes, switches, JSON on stdout. No torch here."""

import json
from typing import Annotated, Any

from cyclopts import Parameter

from odn.errors import UsageError

DONE, FAILED, USAGE, TARGET_MISSED = 0, 1, 2, 3
Switch = Annotated[bool, Parameter(negative="")]


def print_json(value: Any) -> None:
    """Print a value as indented JSON.

    Args:
        value: made of dictionaries, lists, texts and numbers.
    """
    print(json.dumps(value, indent=2))


def check_threads(threads: int | None) -> None:
    """Refuse an impossible number of threads.

    Args:
        threads: as given, or None.

    Raises:
        UsageError: when it is not 1 to 1024.
    """
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"--threads is {threads}; allowed: 1 to 1024")
