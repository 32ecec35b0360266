"""The pictures of a report: score and cost over depth, and the growth over the epochs."""

import io
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

from odn.curve import curve_of
from odn.records import PHASE_NAMES, EpochRecord
from odn.stopping import score_interval
from odn.tasks import METRIC_NAMES

_BLUE, _ORANGE, _GREEN, _GRAY = "#1f5fa8", "#c85a11", "#2c7a3f", "#777777"


def depth_chart(records: Sequence[EpochRecord], macs_by_depth: Sequence[int], target: float | None, chosen: int) -> str:
    """Draw score and cost over depth.

    Args:
        records: of a run, one or more.
        macs_by_depth: multiply-accumulates of depth 1, 2, ... to the full depth.
        target: a line, where there is one.
        chosen: the depth that is ringed.

    Returns:
        SVG.
    """
    best = {record.depth: record for record in curve_of(records)}
    depths = sorted(best)
    scores = [best[d].valid_score for d in depths]
    bounds = [
        score_interval(best[d].metric, best[d].valid_score, best[d].valid_error, best[d].valid_count) for d in depths
    ]
    figure, axis = _figure(records[0])
    cost = axis.twinx()
    every = range(1, len(macs_by_depth) + 1)
    cost.bar(every, [m / 1e6 for m in macs_by_depth], width=0.5, color="#dddddd", zorder=0)
    cost.set_ylabel("MACs per image (millions)", color=_GRAY)
    axis.set_zorder(cost.get_zorder() + 1)
    axis.patch.set_visible(False)
    below = [max(0.0, a - low) for a, (low, _) in zip(scores, bounds, strict=True)]
    above = [max(0.0, high - a) for a, (_, high) in zip(scores, bounds, strict=True)]
    axis.errorbar(depths, scores, yerr=[below, above], color=_BLUE, marker="o", capsize=3)
    if chosen in best:
        axis.plot([chosen], [best[chosen].valid_score], "o", markersize=13, fillstyle="none", color=_GREEN)
    _target_line(axis, target)
    _target_label(axis, target, at="right")
    axis.set_xticks(list(every)) if len(every) <= 20 else None
    axis.set_xlabel("depth (blocks)")
    return _svg(figure)


def timeline(records: Sequence[EpochRecord], target: float | None) -> str:
    """Draw the score over the epochs, and which depth was trained.

    Args:
        records: of a run, one or more.
        target: a line, where there is one.

    Returns:
        SVG.
    """
    figure, axis = _figure(records[0])
    stages: list[list[int]] = []
    for index, record in enumerate(records):
        new = index == 0 or _stage_of(record) != _stage_of(records[index - 1])
        stages.append([index]) if new else stages[-1].append(index)
    passed = list(accumulate(record.epochs for record in records))
    lengths = [sum(records[i].epochs for i in stage) for stage in stages]
    # Labels above narrow stages would run into each other.
    slanted = min(lengths) < passed[-1] / 12
    for number, stage in enumerate(stages):
        first = records[stage[0]]
        color = _GREEN if first.verb != "expand" else (_BLUE, _ORANGE)[first.depth % 2]
        epochs = [passed[i] for i in stage]
        begin, end = epochs[-1] - lengths[number], epochs[-1]
        for scores in zip(*(records[i].scores for i in stage), strict=True):
            axis.plot(epochs, scores, color=color, linewidth=0.6, alpha=0.5)
        axis.plot(epochs, [records[i].valid_score for i in stage], marker=".", color=color)
        if number:
            axis.axvline(begin + 0.5, color="#cccccc", linewidth=0.8)
        band = f"{first.lowest}-{first.depth}" if first.lowest < first.depth else f"{first.depth}"
        names = {"expand": f"depth {first.depth}", "settle": f"settle {band}", "refine": f"refine {band}"}
        names |= {"oneshot": "all depths"}
        label = f"width {first.narrowed.width:g}" if first.narrowed else PHASE_NAMES[first.phase]
        label = names.get(first.phase, label)
        axis.annotate(
            label,
            ((begin + 1 + end) / 2, 1.01),
            xycoords=("data", "axes fraction"),
            ha="left" if slanted else "center",
            va="bottom",
            rotation=60 if slanted else 0,
            color=color,
            fontsize=9,
        )
    _target_line(axis, target)
    # A few poor epochs may fall out of the picture; the line of the target, with its label, may not.
    lowest = sorted(record.valid_score for record in records)[len(records) // 10]
    lowest = min(lowest, target if target is not None else lowest)
    axis.set_ylim(bottom=max(0.0, lowest - 0.02), top=min(axis.get_ylim()[1], 1.005))
    axis.set_xlim(0.5, passed[-1] + 0.5)
    axis.set_xlabel("epoch")
    _target_label(axis, target, at="left")
    return _svg(figure)


def _stage_of(record: EpochRecord) -> tuple[object, ...]:
    return record.phase, record.depth, record.narrowed


def _figure(record: EpochRecord) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axis = figure.add_subplot()
    axis.set_ylabel(f"validation {METRIC_NAMES[record.metric]}")
    axis.grid(axis="y", color="#eeeeee")
    return figure, axis


def _target_line(axis: Any, target: float | None) -> None:
    if target is not None:
        axis.axhline(target, color=_GRAY, linestyle="--", linewidth=1)


def _target_label(axis: Any, target: float | None, *, at: Literal["left", "right"]) -> None:
    if target is None:
        return
    low, high = axis.get_ylim()
    # Near the top a label above its line would run into those of the stages.
    side = "top" if target > high - 0.08 * (high - low) else "bottom"
    place = (0.005 if at == "left" else 0.995, target)
    style = {"ha": at, "va": side, "fontsize": 9, "color": _GRAY}
    axis.annotate(f"target {target:.4g}", place, xycoords=("axes fraction", "data"), **style)


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: the same figures give the same page.
    with matplotlib.rc_context({"svg.hashsalt": "odn"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
