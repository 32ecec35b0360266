"""report.html: one self-contained page with the depth-accuracy-cost curve and the growth timeline."""

import json
from collections.abc import Sequence
from html import escape
from string import Template
from typing import Any

from odn.charts import depth_chart, timeline
from odn.records import EpochRecord
from odn.routing_page import Picture, render_routing
from odn.starting import start_sentence
from odn.tasks import CLASS_MEASURES, METRIC_NAMES

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
<p class="note">Latencies are medians with one CPU thread; scores are $metric, their intervals at 95 %. A dash was not
measured: networks other than those of this run were built for their cost and not trained. Parameters and bytes are not
time: compare multiply-accumulates (MACs), activations and latency as well.</p>
$refused
$charts
$routing
$classes
<h2>Cost of the search</h2>
<p>$start</p>
<p>$cost</p>
<h2>Figures</h2>
<details><summary>report.json</summary><pre>$json</pre></details>
</body></html>
""")

_MOST_CLASSES = 40


def render_page(
    figures: dict[str, Any],
    records: Sequence[EpochRecord],
    macs_by_depth: Sequence[int],
    pictures: Sequence[Picture] = (),
) -> str:
    """Write the page of a report.

    Args:
        figures: as in report.json.
        records: every evaluation, oldest first; without any the charts are left out.
        macs_by_depth: multiply-accumulates of depth 1, 2, ... to the full depth.
        pictures: of inputs that leave a routed network first and last.

    Returns:
        HTML that refers to nothing outside itself; all names are escaped.
    """
    dataset, metric = figures["dataset"], METRIC_NAMES[figures["metric"]]
    shape = "x".join(map(str, dataset["input_shape"]))
    inputs = f"images of {shape}" if len(dataset["input_shape"]) > 1 else f"texts of {shape} tokens"
    charts = ""
    if records:
        charts = (
            f"<h2>Depth, {escape(metric)} and cost</h2>"
            + depth_chart(records, macs_by_depth, figures["target_accuracy"], figures["depth"])
            + f'<p class="note">Validation score ({escape(metric)}) of the averaged weights kept for each depth, '
            "before fine-tuning, with its 95 % interval; the bars are the MACs of one input.</p>"
            "<h2>Training</h2>"
            + timeline(records, figures["target_accuracy"])
            + f'<p class="note">Validation score ({escape(metric)}) of the averaged weights at every evaluation; where '
            "depths are trained together thin lines are the depths and the thick one is the deepest, their "
            "mean where all are trained at once.</p>"
        )
    test = "not measured" if dataset["test"] is None else f"{dataset['test']:,}"
    outputs = _counted(dataset["classes"], "number" if figures["task"] == "regression" else "class")
    return _PAGE.substitute(
        title=escape(f"{figures['backbone']} on {dataset['name']}"),
        verdict=_verdict(figures),
        data=escape(
            f"{outputs}, {inputs}; {dataset['train']:,} for training, "
            f"{dataset['valid']:,} for validation, test: {test}. Seed {figures['seed']}.{_cut(figures['truncated'])}"
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
        metric=escape(metric),
        routing=render_routing(figures["routing"], pictures),
        classes=_classes(figures),
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
        _fraction(row["valid_score"]),
        _fraction(row["test_score"]),
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
    target = f"validation {METRIC_NAMES[figures['metric']]} {figures['target_accuracy']:.4f}"
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
        f"{step['width']:g} ({step['parameters']:,} parameters) {step['valid_score']:.4f}"
        for step in compression["tried"]
    )
    kept = "the target would have been missed, so the network was not narrowed"
    if compression["width"] is not None:
        kept = f"width {compression['width']:g} was kept"
    return f"Widths tried, with validation score: {tried}; {kept}."


def _cut(truncated: dict[str, int] | None) -> str:
    """Say how many texts are longer than the network reads."""
    if not truncated or not any(truncated.values()):
        return ""
    return f" Cut off: {truncated['train']:,} training and {truncated['valid']:,} validation texts."


def _counted(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def _classes(figures: dict[str, Any]) -> str:
    """Show how the deployed network does class by class, the worst first: a mean hides those."""
    rows = [row for row in figures["classes"] if row["value"] is not None]
    if not rows:
        return ""
    measure = CLASS_MEASURES[figures["task"]]
    things = "pixels" if figures["task"] == "segmentation" else "samples"
    counted = [split for split in ("train", "valid") if rows[0].get(split) is not None]
    worst = sorted(rows, key=lambda row: row["value"])[:_MOST_CLASSES]
    lines = "".join(
        f"<tr><td>{escape(row['name'])}</td>"
        + "".join(f"<td>{row[split]:,}</td>" for split in (*counted, "count"))
        + f"<td>{row['value']:.4f}</td></tr>"
        for row in worst
    )
    headings = "".join(f"<th>{'training' if split == 'train' else 'validation'} {things}</th>" for split in counted)
    note = f"the {len(worst)} worst of {len(rows):,}, " if len(worst) < len(rows) else ""
    return (
        f'<h2>Classes</h2><div class="scroll"><table><thead><tr><th>class</th>{headings}<th>test {things}</th>'
        f"<th>{escape(measure)}</th></tr></thead><tbody>{lines}</tbody></table></div>"
        f'<p class="note">Of the deployed network on the test split, {note}worst first.</p>'
    )


def _cost_sentence(cost: dict[str, Any]) -> str:
    if cost["train_macs"] is None:
        return "Training was not recorded."
    ratio = cost["train_macs"] / cost["full_depth_train_macs"]
    epochs = ", ".join(f"{n} at depth {depth}" for depth, n in cost["epochs_by_depth"].items())
    epochs = epochs or f"{cost['oneshot_epochs']} of all depths at once"
    compressing = f", {cost['compress_epochs']} of compressing" if cost["compress_epochs"] else ""
    return (
        f"Epochs: {epochs}; {cost['finetune_epochs']} of fine-tuning{compressing}. {cost['train_macs']:.3e} MACs in "
        f"{cost['seconds']:,.0f} seconds: {ratio:.2f} times a training of the full depth for "
        f"{cost['reference_epochs']} epochs."
    )
