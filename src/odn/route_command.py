"""The command ``odn route``. No torch here before it runs."""

import math
from pathlib import Path
from typing import Literal

from odn.command import DONE, Switch, print_json
from odn.errors import UsageError


def route_command(
    run: Path,
    /,
    *,
    max_drop: float | None = None,
    mean_macs: int | None = None,
    mean_ms: float | None = None,
    policy: Literal["max-probability", "margin", "entropy", "patience"] | None = None,
    device: Path | None = None,
    json: Switch = False,
) -> int:
    """Let easy inputs leave the network early: add stages with exits to RUN/artifact, for odn predict --runtime routed.

    Args:
        run: the run directory, of odn run --mode one-shot.
        max_drop: accuracy that may be lost against the full depth, a fraction [default: 0.002].
        mean_macs: instead of it, the most multiply-accumulates of an input in the mean.
        mean_ms: instead of it, the most milliseconds on the device in the mean.
        policy: what makes an exit sure of an input [default: the best of all].
        device: table of latencies to count in, as odn profile --latency writes it.
        json: print what was found as JSON.

    Returns:
        The exit code.

    Raises:
        UsageError: when the goals contradict each other.
    """
    goals = {"--max-drop": max_drop, "--mean-macs": mean_macs, "--mean-ms": mean_ms}
    given = [name for name, value in goals.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other; give one of them")
    for name in given:
        value = goals[name]
        drop = name == "--max-drop"
        if value is None or not (0 <= value < 1 if drop else 0 < value < math.inf):
            allowed = "0 to below 1, e.g. 0.002" if drop else "above 0"
            raise UsageError(f"{name} is {value}; allowed: {allowed}")
    if (mean_ms is not None and device is None) or (mean_macs is not None and device is not None):
        raise UsageError("--mean-ms goes with --device TABLE.json, --mean-macs without; see odn profile --latency")
    from odn.devices import read_device_table
    from odn.route_record import in_words
    from odn.routed_artifact import route_run

    cost = mean_macs if mean_macs is not None else mean_ms
    found = route_run(
        run,
        max_drop=(0.002 if max_drop is None else max_drop) if cost is None else None,
        mean_cost=cost,
        policy=policy,
        device=read_device_table(device) if device else None,
    )
    if json:
        from dataclasses import asdict

        print_json(asdict(found))
        return DONE
    mean, full, static = (in_words(cost, found.unit) for cost in (found.mean_cost, found.full_cost, found.static_cost))
    depths = ", ".join(str(exit_.depth) for exit_ in found.exits) or "none"
    print(
        f"{found.policy}, exits at {depths} of {found.last}: valid {found.accuracy:.4f}, full depth "
        f"{found.full_accuracy:.4f}; {mean} in the mean, full depth {full}"
    )
    if found.worthwhile:
        print(f"without exits: depth {found.static_depth}, {found.static_accuracy:.4f} at {static}")
    else:
        print(
            f"the static network of depth {found.static_depth} does as well ({found.static_accuracy:.4f}) and costs no "
            f"more, {static}: take that one, odn specialize {run} --depth {found.static_depth}"
        )
    print(f"stages added to {run / 'artifact'}; next: odn report {run}")
    return DONE
