"""report.html: one self-contained page with the depth-accuracy-cost curve and the growth timeline."""

import io
import json
from collections.abc import Sequence
from html import escape
from string import Template
from typing import Any, Literal

from odn.records import PHASE_NAMES, EpochRecord
from odn.starting import start_sentence
from odn.stopping import wilson_interval

_BLUE, _ORANGE, _GREEN, _GRAY = "#1f5fa8", "#c85a11", "#2c7a3f", "#777777"

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { font-size: 1.15rem; } .missed { color: #a02020; } .met { color: #2c7a3f; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #444; }
tbody tr { border-bottom: 1px solid #ddd; } svg { max-width: 100%; height: auto; }
p.note { color: #555; font-size: .9rem; }
pre { font-size: .8rem; background: #f5f5f5; padding: 1rem; overflow-x: auto; }
</style></head><body>
<h1>$title</h1>
<p class="verdict">$verdict</p>
<p>$data</p>
<h2>Networks</h2>
<div class="scroll"><table><thead><tr>$headings</tr></thead><tbody>$rows</tbody></table></div>
<p>$compression</p>
<p class="note">Latencies are medians with one CPU thread; the interval is Wilson's at 95 %. A dash was not
measured: networks other than those of this run were built for their cost and not trained. Parameters and bytes are not
time: compare multiply-accumulates (MACs), activations and latency as well.</p>
$refused
$charts
<h2>Cost of the search</h2>
<p>$start</p>
<p>$cost</p>
<h2>Figures</h2>
<details><summary>report.json</summary><pre>$json</pre></details>
</body></html>
""")


def render_page(figures: dict[str, Any], records: Sequence[EpochRecord], macs_by_depth: Sequence[int]) -> str:
    """Write the page of a report.

    Args:
        figures: as in report.json.
        records: every epoch, oldest first; without any the charts are left out.
        macs_by_depth: multiply-accumulates of depth 1, 2, ... to the full depth.

    Returns:
        HTML that refers to nothing outside itself; all names are escaped.
    """
    dataset = figures["dataset"]
    shape = "x".join(map(str, dataset["input_shape"]))
    charts = ""
    if records:
        charts = (
            "<h2>Depth, accuracy and cost</h2>"
            + _depth_chart(records, macs_by_depth, figures["target_accuracy"], figures["depth"])
            + '<p class="note">Best validation accuracy of the averaged weights at each depth tried, before '
            "fine-tuning, with Wilson's 95 % interval; the bars are the MACs of one image.</p>"
            "<h2>Growth</h2>"
            + _timeline(records, figures["target_accuracy"])
            + '<p class="note">Validation accuracy of the averaged weights after every epoch.</p>'
        )
    test = "not measured" if dataset["test"] is None else f"{dataset['test']:,}"
    return _PAGE.substitute(
        title=escape(f"{figures['backbone']} on {dataset['name']}"),
        verdict=_verdict(figures),
        data=escape(
            f"{dataset['classes']} classes, images of {shape}; {dataset['train']:,} for training, "
            f"{dataset['valid']:,} for validation, test: {test}. Seed {figures['seed']}."
        ),
        headings="".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS),
        rows="".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in figures["networks"]
        ),
        compression=escape(compression_sentence(figures["compression"])),
        refused="".join(
            f'<p class="missed">Not exported to {escape(row["name"])}: {escape(row["reason"])}.</p>'
            for row in figures["refused"]
        ),
        charts=charts,
        start=escape(start_sentence(figures["start"])),
        cost=escape(_cost_sentence(figures["cost"])),
        json=escape(json.dumps(figures, indent=2)),
    )


HEADINGS = (
    "network",
    "depth",
    "parameters",
    "MACs",
    "activations",
    "file",
    "valid",
    "test",
    "95 % interval",
    "batch 1",
    "batch 64",
)


def cells(row: dict[str, Any]) -> list[str]:
    """Put one network of a report into words, the same for the terminal and the page.

    Args:
        row: an entry of ``networks`` in report.json.

    Returns:
        One text per heading; a dash stands for what was not measured.
    """
    latency, interval = row["latency_ms"] or {}, row["test_interval"]
    return [
        row["name"],
        str(row["depth"]),
        f"{row['parameters']:,}",
        f"{row['macs'] / 1e6:,.2f} M",
        "-" if row["peak_activation_bytes"] is None else f"{row['peak_activation_bytes'] / 1024:,.0f} KiB",
        f"{row['file_bytes'] / 1024:,.0f} KiB",
        _fraction(row["valid_accuracy"]),
        _fraction(row["test_accuracy"]),
        "-" if interval is None else "-".join(map(_fraction, interval)),
        *(f"{latency[key]['p50']:.2f} ms" if key in latency else "-" for key in ("batch_1", "batch_64")),
    ]


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _verdict(figures: dict[str, Any]) -> str:
    depth = f"depth {figures['depth']} of {figures['max_depth']}"
    full, extracted = figures["networks"][:2]
    kept = next((row for row in figures["networks"] if row["name"] == "pruned"), extracted)
    saved = f"{1 - kept['parameters'] / full['parameters']:.2%} fewer parameters than the full depth"
    if figures["target_accuracy"] is None or figures["reached"] is None:
        return escape(f"{depth}: {saved}.")
    target = f"validation accuracy {figures['target_accuracy']:.4f}"
    if figures["target_automatic"]:
        target += ", found automatically"
    if figures["reached"]:
        return f'<span class="met">Target reached</span> ({escape(target)}) with {escape(depth)}: {escape(saved)}.'
    return (
        f'<span class="missed">Target not reached</span> ({escape(target)}); best was {escape(depth)}: {escape(saved)}.'
    )


def compression_sentence(compression: dict[str, Any] | None) -> str:
    """Say which widths were tried and what became of it.

    Args:
        compression: as in report.json.

    Returns:
        One or two sentences; nothing where the network was not narrowed.
    """
    if compression is None:
        return ""
    tried = ", ".join(
        f"{step['width']:g} ({step['parameters']:,} parameters) {step['valid_accuracy']:.4f}"
        for step in compression["tried"]
    )
    kept = "the target would have been missed, so the network was not narrowed"
    if compression["width"] is not None:
        kept = f"width {compression['width']:g} was kept"
    return f"Widths tried, with validation accuracy: {tried}; {kept}."


def _cost_sentence(cost: dict[str, Any]) -> str:
    if cost["train_macs"] is None:
        return "Training was not recorded."
    ratio = cost["train_macs"] / cost["full_depth_train_macs"]
    epochs = ", ".join(f"{n} at depth {depth}" for depth, n in cost["epochs_by_depth"].items())
    compressing = f", {cost['compress_epochs']} of compressing" if cost["compress_epochs"] else ""
    return (
        f"Epochs: {epochs}; {cost['finetune_epochs']} of fine-tuning{compressing}. {cost['train_macs']:.3e} MACs in "
        f"{cost['seconds']:,.0f} seconds: {ratio:.2f} times a training of the full depth for "
        f"{cost['reference_epochs']} epochs."
    )


def _depth_chart(
    records: Sequence[EpochRecord], macs_by_depth: Sequence[int], target: float | None, chosen: int
) -> str:
    best: dict[int, EpochRecord] = {}
    for record in records:
        if record.verb == "expand" and (
            record.depth not in best or record.valid_correct > best[record.depth].valid_correct
        ):
            best[record.depth] = record
    depths = sorted(best)
    accuracy = [best[d].valid_accuracy for d in depths]
    bounds = [wilson_interval(best[d].valid_correct, best[d].valid_count) for d in depths]
    figure, axis = _figure()
    cost = axis.twinx()
    every = range(1, len(macs_by_depth) + 1)
    cost.bar(every, [m / 1e6 for m in macs_by_depth], width=0.5, color="#dddddd", zorder=0)
    cost.set_ylabel("MACs per image (millions)", color=_GRAY)
    axis.set_zorder(cost.get_zorder() + 1)
    axis.patch.set_visible(False)
    below = [max(0.0, a - low) for a, (low, _) in zip(accuracy, bounds, strict=True)]
    above = [max(0.0, high - a) for a, (_, high) in zip(accuracy, bounds, strict=True)]
    axis.errorbar(depths, accuracy, yerr=[below, above], color=_BLUE, marker="o", capsize=3)
    if chosen in best:
        axis.plot([chosen], [best[chosen].valid_accuracy], "o", markersize=13, fillstyle="none", color=_GREEN)
    _target_line(axis, target, label_at="right")
    axis.set_xticks(list(every)) if len(every) <= 20 else None
    axis.set_xlabel("depth (blocks)")
    return _svg(figure)


def _timeline(records: Sequence[EpochRecord], target: float | None) -> str:
    figure, axis = _figure()
    stages: list[list[int]] = []
    for index, record in enumerate(records):
        new = index == 0 or _stage_of(record) != _stage_of(records[index - 1])
        stages.append([index]) if new else stages[-1].append(index)
    # Labels above narrow stages would run into each other.
    slanted = min(map(len, stages)) < len(records) / 12
    for number, stage in enumerate(stages):
        first = records[stage[0]]
        color = _GREEN if first.verb != "expand" else (_BLUE, _ORANGE)[first.depth % 2]
        axis.plot([i + 1 for i in stage], [records[i].valid_accuracy for i in stage], marker=".", color=color)
        if number:
            axis.axvline(stage[0] + 0.5, color="#cccccc", linewidth=0.8)
        label = {"expand": f"depth {first.depth}", "lookback": f"back to {first.depth}"}.get(
            first.phase, f"width {first.narrowed.width:g}" if first.narrowed else PHASE_NAMES[first.phase]
        )
        axis.annotate(
            label,
            ((stage[0] + stage[-1]) / 2 + 1, 1.01),
            xycoords=("data", "axes fraction"),
            ha="left" if slanted else "center",
            va="bottom",
            rotation=60 if slanted else 0,
            color=color,
            fontsize=9,
        )
    _target_line(axis, target, label_at="left")
    lowest = sorted(record.valid_accuracy for record in records)[len(records) // 10]
    axis.set_ylim(bottom=max(0.0, lowest - 0.02))
    axis.set_xlabel("epoch")
    return _svg(figure)


def _stage_of(record: EpochRecord) -> tuple[object, ...]:
    return record.phase, record.depth, record.narrowed


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axis = figure.add_subplot()
    axis.set_ylabel("validation accuracy")
    axis.grid(axis="y", color="#eeeeee")
    return figure, axis


def _target_line(axis: Any, target: float | None, *, label_at: Literal["left", "right"]) -> None:
    if target is None:
        return
    axis.axhline(target, color=_GRAY, linestyle="--", linewidth=1)
    place = (0.005 if label_at == "left" else 0.995, target)
    style = {"ha": label_at, "va": "bottom", "fontsize": 9, "color": _GRAY}
    axis.annotate(f"target {target:.4g}", place, xycoords=("axes fraction", "data"), **style)


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: the same figures give the same page.
    with matplotlib.rc_context({"svg.hashsalt": "odn"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
