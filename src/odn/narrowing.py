"""How far to narrow: which widths are tried, and which of them is kept. Pure functions; no torch here."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from odn.config import CompressConfig, ExpandConfig
from odn.errors import UsageError
from odn.records import EpochRecord
from odn.stopping import confirmed


def with_bound(config: CompressConfig, **bounds: float | int | bool | None) -> CompressConfig:
    """Set how narrow a network becomes.

    Args:
        config: everything else; a bound of its own is replaced.
        **bounds: ``width``, ``max_parameters``, ``max_macs`` and ``auto``; None stands for not given.

    Returns:
        The settings with that bound.

    Raises:
        UsageError: when not exactly one is given, or it is 0.
    """
    given = {name: value for name, value in bounds.items() if value is not None}
    if len(given) != 1 or not all(given.values()):
        named = ", ".join(f"{name}={value}" for name, value in given.items()) or "nothing"
        raise UsageError(f"compress was given {named}; allowed: exactly one, above 0, of {', '.join(bounds)}")
    none: dict[str, Any] = {"width": 0.0, "max_parameters": 0, "max_macs": 0, "auto": False}
    return dataclasses.replace(config, **{**none, **given})


def kept_channels(size: int, width: float, multiple: int) -> int:
    """Say how many channels a layer keeps.

    Args:
        size: channels that it has.
        width: share to keep, above 0 to 1.
        multiple: the number is rounded to the nearest multiple of this.

    Returns:
        A multiple of ``multiple``, at least one of them; all ``size`` channels where that is less, or at width 1.
    """
    rounded = multiple * math.floor(width * size / multiple + 0.5) if width < 1 else size
    return min(max(rounded, multiple), size)


def narrowed_sizes(sizes: Mapping[str, int], width: float, multiple: int) -> dict[str, int]:
    """Narrow every layer by the same share.

    Args:
        sizes: channels by layer.
        width: share to keep.
        multiple: of which the numbers are.

    Returns:
        Channels to keep by layer.
    """
    return {name: kept_channels(size, width, multiple) for name, size in sizes.items()}


def require_width(sizes: Iterable[int], config: CompressConfig) -> None:
    """Refuse a width that leaves no channel.

    Args:
        sizes: channels of the layers.
        config: the width asked for, if any, and the multiple.

    Raises:
        UsageError: with the smallest width that leaves every layer something.
    """
    widest = max(sizes)
    least = min(config.channel_multiple, widest) / widest
    if 0 < config.width < least:
        raise UsageError(
            f"width {config.width:g} leaves no channel (layers keep a multiple of {config.channel_multiple}, and the "
            f"widest has {widest}); allowed: {math.ceil(least * 1e4) / 1e4:g} to 1"
        )


def widths_to_try(sizes: Iterable[int], config: CompressConfig) -> list[float]:
    """List the widths that ``auto`` walks down: geometric steps, those left out that change no layer.

    Args:
        sizes: channels of the layers.
        config: step and multiple.

    Returns:
        Descending shares; after the last one no layer can lose more.
    """
    whole = tuple(sizes)
    widths: list[float] = []
    last, width = whole, 1.0
    smallest = tuple(kept_channels(size, 0, config.channel_multiple) for size in whole)
    while last != smallest:
        width *= config.step
        rounded = round(width, 3)
        shape = tuple(kept_channels(size, rounded, config.channel_multiple) for size in whole)
        if shape != last:
            widths.append(rounded)
        last = shape
    return widths


def at_width(records: Iterable[EpochRecord], width: float) -> list[EpochRecord]:
    """Choose the records of one width.

    Args:
        records: of compressing.
        width: share of the channels.

    Returns:
        Those of that width, oldest first.
    """
    return [record for record in records if record.narrowed and record.narrowed.width == width]


def next_width(
    records: Sequence[EpochRecord], widths: Sequence[float], config: CompressConfig, goal: ExpandConfig
) -> float | None:
    """Say which width to train next.

    Args:
        records: of compressing, oldest first.
        widths: the plan, descending.
        config: epochs per width; with ``auto`` the walk ends at the first width that misses the target.
        goal: the target and how it is confirmed.

    Returns:
        The width, or None when compressing is over.
    """
    for width in widths:
        done = at_width(records, width)
        if not done or done[-1].epoch < config.epochs:
            return width
        if config.auto and not confirmed(done, goal):
            return None
    return None


def width_to_keep(
    records: Sequence[EpochRecord], widths: Sequence[float], config: CompressConfig, goal: ExpandConfig
) -> float | None:
    """Say which width is kept.

    Args:
        records: of compressing, complete.
        widths: the plan, descending.
        config: whether the target decides.
        goal: the target and how it is confirmed.

    Returns:
        The width asked for, or with ``auto`` the smallest that held the target; None when none did.
    """
    held = [width for width in widths if not config.auto or confirmed(at_width(records, width), goal)]
    return held[-1] if held else None


def compression_summary(
    records: Sequence[EpochRecord], config: CompressConfig, goal: ExpandConfig
) -> dict[str, Any] | None:
    """Tell for the report what was tried and what became of it.

    Args:
        records: of a run.
        config: what was asked for.
        goal: the target and how it is confirmed.

    Returns:
        The bound, the widths tried with the best validation score of each, and the width kept, None where the
        network stayed as it was; None where nothing was tried.
    """
    tried = [record.narrowed for record in records if record.narrowed]
    if not tried:
        return None
    shapes = list(dict.fromkeys(tried))
    return {
        "bound": config.asked[0] if config.asked else None,
        "tried": [
            {
                "width": shape.width,
                "parameters": shape.parameters,
                "macs": shape.macs,
                "valid_score": max(record.valid_score for record in at_width(records, shape.width)),
                "held": confirmed(at_width(records, shape.width), goal),
            }
            for shape in shapes
        ],
        "width": width_to_keep(records, [shape.width for shape in shapes], config, goal),
    }
