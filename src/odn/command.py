"""What all commands share: exit codes, switches, JSON on stdout. No torch here."""

import json
from typing import Annotated, Any

from cyclopts import Parameter

DONE, FAILED, USAGE, TARGET_MISSED = 0, 1, 2, 3
Switch = Annotated[bool, Parameter(negative="")]


def print_json(value: Any) -> None:
    """Print a value as indented JSON.

    Args:
        value: made of dictionaries, lists, texts and numbers.
    """
    print(json.dumps(value, indent=2))
