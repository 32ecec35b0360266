"""What a run directory says of a route: ``RUN/routing.json``. No torch here."""

import json
from dataclasses import dataclass
from pathlib import Path

from odn.errors import OdnError, UsageError
from odn.files import read_text, write_atomically
from odn.gates import Exit
from odn.tables import from_table, to_table

ROUTING_FILE = "routing.json"


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What ``RUN/routing.json`` says: the route and what calibration found, on the half of the data that checked it.

    Attributes:
        policy: of the route.
        exits: depth, temperature and threshold of each.
        last: depth at which the rest ends.
        samples: that checked it.
        accuracy: of the route.
        full_accuracy: of the deepest head.
        mean_cost: of an input on the route.
        full_cost: of the deepest head.
        static_depth: the depth to compare with, see ``odn.routing.Routed``.
        static_accuracy: of it.
        static_cost: of it.
        costs: of an input that leaves at each exit, and at the end.
        unit: of the costs: ``macs`` or ``ms``.
        worthwhile: whether the route costs less than that static network, or no static one is as accurate.
        seconds: that calibrating and writing took.
    """

    policy: str
    exits: tuple[Exit, ...]
    last: int
    samples: int
    accuracy: float
    full_accuracy: float
    mean_cost: float
    full_cost: float
    static_depth: int
    static_accuracy: float
    static_cost: float
    costs: tuple[float, ...]
    unit: str
    worthwhile: bool
    seconds: float


def in_words(cost: float, unit: str) -> str:
    """Say what an input takes.

    Args:
        cost: as in ``Routing``.
        unit: of it: ``macs`` or ``ms``.

    Returns:
        A number and its unit.
    """
    return f"{cost:,.4g} ms" if unit == "ms" else f"{cost / 1e6:,.2f} M MACs"


def write_routing(routing: Routing, run: Path) -> None:
    """Write what calibration found to a run directory.

    Args:
        routing: what to write.
        run: the run directory.
    """
    write_atomically(run / ROUTING_FILE, json.dumps(to_table(routing), indent=2) + "\n")


def read_routing(run: Path) -> Routing | None:
    """Read what calibration found.

    Args:
        run: the run directory.

    Returns:
        That, or None where nothing was routed.

    Raises:
        OdnError: when the file is damaged.
    """
    path = run / ROUTING_FILE
    if not path.is_file():
        return None
    try:
        return from_table(Routing, json.loads(read_text(path)))
    except (ValueError, RecursionError, TypeError, AttributeError, UsageError) as error:
        raise OdnError(f"{path} is damaged ({error}); route the network again with: odn route {run}") from error
