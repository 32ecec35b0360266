"""Device tables: how long stem, blocks and heads of a backbone take on one machine, as portable JSON. No torch here.

A network's latency is predicted as the sum of its parts, calibrated by the few depths that were measured whole
(a latency table as of ProxylessNAS, arXiv 1812.00332; the calibration makes up for what a runtime saves or spends
where parts meet).
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from odn.config.checks import require
from odn.errors import OdnError, UsageError
from odn.files import read_text, write_atomically
from odn.spec import NetworkSpec
from odn.tables import from_table, to_table

_log = logging.getLogger("odn")

SCHEMA = 1
_MOST_OFF, _LEAST_ORDER = 0.1, 0.9  # of predictions on depths that were held out
_NAMES = ("backbone", "width", "input_shape", "classes", "task")  # of the network that a table is of


@dataclass(frozen=True, kw_only=True)
class DeviceTable:
    """Latencies of one backbone in one runtime on one machine, medians in milliseconds at batch 1.

    Attributes:
        backbone: its name.
        width: factor on its channels.
        input_shape: of one input.
        classes: logits of its heads.
        task: what the heads are made for, as in a ``NetworkSpec``.
        runtime: ``torch``, ``onnx`` or ``openvino``.
        threads: it computed with.
        machine: where that was, e.g. processor and cores.
        versions: of the runtime and of what it ran on.
        date: of the measurement, ISO 8601.
        call_ms: of a call that computes next to nothing; every part was measured with one.
        stem_ms: of the stem.
        blocks_ms: of each block, from the first.
        heads_ms: of the head behind each block.
        whole_ms: of the whole network at some depths, by depth as text, for calibration.
        held_out_ms: likewise at depths that prediction is judged on.
    """

    backbone: str
    width: float
    input_shape: tuple[int, ...]
    classes: int
    runtime: str
    threads: int
    machine: dict[str, str]
    versions: dict[str, str]
    date: str
    call_ms: float
    stem_ms: float
    blocks_ms: tuple[float, ...]
    heads_ms: tuple[float, ...]
    whole_ms: dict[str, float]
    held_out_ms: dict[str, float]
    task: str = "classification"
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        depths = len(self.blocks_ms)
        require(depths >= 1 and len(self.heads_ms) == depths, f"{depths} blocks and {len(self.heads_ms)} heads")
        require(bool(self.whole_ms), "no depth was measured whole")
        for name, value in {**self.whole_ms, **self.held_out_ms}.items():
            require(name.isascii() and name.isdigit() and 1 <= int(name) <= depths, f"depth {name!r} of {depths}")
            require(value > 0 and math.isfinite(value), f"depth {name} took {value} ms")
        for value in (self.call_ms, self.stem_ms, *self.blocks_ms, *self.heads_ms):
            require(value >= 0 and math.isfinite(value), f"a part took {value} ms")

    def sum_ms(self, depth: int) -> float:
        """Add up the parts of a depth, less the calls that a whole network does without.

        Args:
            depth: number of blocks.

        Returns:
            Milliseconds, above 0.
        """
        parts = [self.stem_ms, *self.blocks_ms[:depth], self.heads_ms[depth - 1]]
        return max(math.fsum(parts) - (len(parts) - 1) * self.call_ms, 1e-6)

    def predict_ms(self, depth: int) -> float:
        """Predict the latency of a depth.

        Args:
            depth: number of blocks, 1 to as many as the table has.

        Returns:
            Milliseconds: the sum of the parts, times what the nearest depths that were measured whole take per their
            own sum, in between by linear interpolation along that sum. More parts take longer, so where a longer sum
            was measured as faster both were measured badly, and count as equally long.
        """
        anchors = sorted((self.sum_ms(int(name)), value) for name, value in self.whole_ms.items())
        sums = np.array([own for own, _ in anchors])
        own = self.sum_ms(depth)
        return own * float(np.interp(own, sums, _rising([whole for _, whole in anchors]) / sums))

    def check(self) -> dict[str, float | None]:
        """Hold predictions against the depths that were measured for it.

        Returns:
            ``mape``, the mean absolute error as a fraction, and ``spearman``, the rank correlation; None where too few
            depths were measured.
        """
        measured = [(self.predict_ms(int(name)), value) for name, value in self.held_out_ms.items()]
        mape = fmean(abs(predicted - value) / value for predicted, value in measured) if measured else None
        return {"mape": mape, "spearman": _spearman(*zip(*measured, strict=True)) if len(measured) > 2 else None}

    def doubt(self) -> str:
        """Say why predictions should not be relied on.

        Returns:
            A reason and what helps; nothing where they were good.
        """
        found = self.check()
        off, order = found["mape"] or 0.0, 1.0 if found["spearman"] is None else found["spearman"]
        if off <= _MOST_OFF and order >= _LEAST_ORDER:
            return ""
        return (
            f"its predictions were off by {off:.1%} in the mean, rank correlation {order:.3f}; measure again on a "
            "machine that does nothing else, or with more --seconds"
        )


def _rising(values: Sequence[float]) -> Any:
    """Return the nearest values that nowhere fall."""
    from sklearn.isotonic import isotonic_regression

    return isotonic_regression(np.asarray(values, float))


def _spearman(left: Sequence[float], right: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(left, right).statistic)


def write_device_table(table: DeviceTable, path: Path) -> None:
    """Write a device table.

    Args:
        table: what was measured.
        path: the file, replaced.
    """
    write_atomically(path, json.dumps(to_table(table), indent=2) + "\n")


def parse_device_table(content: Mapping[str, Any], where: str) -> DeviceTable:
    """Check a device table.

    Args:
        content: as parsed from JSON.
        where: it comes from, for messages.

    Returns:
        The table.

    Raises:
        OdnError: when it is not one.
    """
    try:
        if content["schema"] != SCHEMA:
            raise OdnError(f"{where} has schema {content['schema']}; this odn reads {SCHEMA}; measure it anew")
        return from_table(DeviceTable, dict(content))
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise OdnError(f"{where} is no device table ({error}); make one with odn profile --latency") from error


def read_device_table(path: Path) -> DeviceTable:
    """Read a device table.

    Args:
        path: the file.

    Returns:
        The table.

    Raises:
        OdnError: when it is missing, damaged, or no such table.
    """
    if not path.is_file():
        raise OdnError(f"{path} is missing; make a device table with odn profile --latency --out {path}")
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise OdnError(f"{path} is no device table ({error}); make one with odn profile --latency") from error
    return parse_device_table(content, str(path))


def check_device(table: DeviceTable, spec: NetworkSpec, blocks: int) -> None:
    """Refuse a table of another network, and say when its predictions were far off.

    Args:
        table: of the device.
        spec: of the network that is to run there, at any depth.
        blocks: of its full depth.

    Raises:
        UsageError: with the first difference.
    """
    for name, found, wanted in (
        *((name, getattr(table, name), getattr(spec, name)) for name in _NAMES),
        ("blocks", len(table.blocks_ms), blocks),
    ):
        if found != wanted:
            raise UsageError(
                f"the device table was measured with {name} {found}, the run has {wanted}; measure one with: "
                "odn profile RUN --latency"
            )
    if rough := table.doubt():
        _log.warning("the device table is rough: %s", rough)
