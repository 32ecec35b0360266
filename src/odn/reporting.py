"""The evidence: what the network costs and how it does on images nobody decided anything on."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from rich.console import Console
from rich.table import Table
from safetensors.torch import save

from odn.artifact import Artifact, load
from odn.config import ReportConfig
from odn.costs import cost_of, macs_of, start_row
from odn.curve import curve_of, settle_goal
from odn.data import DataSpec, Split
from odn.evaluation import evaluate
from odn.files import write_atomically
from odn.measure import measure_cost, measure_latency
from odn.metrics import Score
from odn.narrowing import compression_summary
from odn.network import NetworkSpec, Prefix, rebuild
from odn.oneshot import KEPT
from odn.outcome import kept_by_depth
from odn.page import HEADINGS, cells, compression_sentence, render_page
from odn.processes import training_device
from odn.recipe import RunConfig, read_run_config
from odn.records import EpochRecord, read_history
from odn.rivals import FULL, STOCK, build_rival, rivals_of
from odn.routing_page import routing_sentences
from odn.routing_report import routing_of
from odn.runtime_rows import on_test_split, runtime_rows
from odn.search import plan_depths
from odn.starting import read_start
from odn.stopping import confirmed, meets_target
from odn.storage import load_network, load_partitioned, tensors_of
from odn.tasks import METRIC_NAMES

SCHEMA = 1


@final
class Report:
    """A finished report.

    Args:
        figures: as in report.json.
        directory: the run directory it was written to.
    """

    def __init__(self, figures: dict[str, Any], directory: Path) -> None:
        self.figures, self.directory = figures, directory

    def __rich__(self) -> Table:
        """Return the networks as a table for the terminal."""
        figures = self.figures
        title = f"{figures['backbone']} on {figures['dataset']['name']}"
        if figures["target_accuracy"] is not None:
            verdict = {True: "reached", False: "not reached", None: "unknown"}[figures["reached"]]
            kind = "automatic target" if figures["target_automatic"] else "target"
            if figures["metric"] != "accuracy":
                kind += f" {METRIC_NAMES[figures['metric']]}"
            title += f", {kind} {figures['target_accuracy']:.4f} {verdict}"
        caption = compression_sentence(figures["compression"])
        table = Table(title=f"{title}: depth {figures['depth']} of {figures['max_depth']}")
        # A column per network: a terminal is seldom wide enough for a column per figure.
        columns = [cells(row) for row in figures["networks"]]
        table.add_column(HEADINGS[0])
        for column in columns:
            table.add_column(column[0], justify="right", no_wrap=True)
        for heading, *values in zip(HEADINGS[1:], *(column[1:] for column in columns), strict=True):
            table.add_row(heading, *values)
        notes = [caption] if caption else []
        if len(figures["curve"]) > 1:
            scores = ", ".join(f"{row['depth']}: {row['valid_score']:.4f}" for row in figures["curve"])
            notes.append(f"validation {METRIC_NAMES[figures['metric']]} by depth, before fine-tuning: {scores}")
        notes += [f"not exported to {row['name']}: {row['reason']}" for row in figures["refused"]]
        notes += [routing_sentences(figures["routing"])] if figures["routing"] else []
        table.caption = "\n".join(notes) or None
        return table

    def __str__(self) -> str:
        """Return the table as text."""
        console = Console(width=80, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def report(
    run: str | Path,
    *,
    test: Split | None = None,
    valid: Split | None = None,
    config: ReportConfig | None = None,
) -> Report:
    """Measure the artifact of a run and write report.json and report.html beside it.

    Args:
        run: the run directory; it holds ``artifact`` and, where training was recorded, ``config.toml`` and
            ``history.jsonl``. What is not known is null in the report.
        test: the test split, looked at here and nowhere else.
        valid: the validation split.
        config: what to measure; None takes the run's own settings.

    Returns:
        The report; printing it shows a table.
    """
    run = Path(run)
    settings = read_run_config(run / "config.toml") if (run / "config.toml").is_file() else None
    config = config or (settings.report if settings else ReportConfig())
    artifact = load(run / "artifact")
    records = read_history(run / "history.jsonl")
    figures = _figures(artifact, run, settings, records, test, valid, config)
    figures["routing"], pictures = routing_of(run, artifact.manifest, test)
    write_atomically(run / "report.json", json.dumps(figures, indent=2, allow_nan=False) + "\n")
    spec = artifact.network.spec
    assert spec is not None
    write_atomically(run / "report.html", render_page(figures, records, macs_of(spec), pictures))
    return Report(figures, run)


def _figures(
    artifact: Artifact,
    run: Path,
    settings: RunConfig | None,
    records: Sequence[EpochRecord],
    test: Split | None,
    valid: Split | None,
    config: ReportConfig,
) -> dict[str, Any]:
    network, manifest = artifact.network, artifact.manifest
    spec = network.spec
    assert spec is not None
    start = read_start(run)
    data = next((split.spec for split in (test, valid) if split is not None), None)
    full = _rival(FULL, spec)
    rows = [_full_row(run, full, test, valid, config)]
    if spec.channels:
        rows.append(_extracted_row(run, spec, test, valid, config))
    mine = _row("pruned" if spec.channels else "extracted", network, config)
    mine["file_bytes"] = (run / "artifact" / "weights.safetensors").stat().st_size
    on_valid, on_test = _judge(mine, network, test, valid)
    expand = settings.expand if settings else None
    if expand is not None:
        expand = settle_goal(records, plan_depths(expand, full.depth), expand)
    reached = None
    if settings and expand is not None and on_valid is not None:
        own = [record for record in _kept(records, network.depth) if _trained(record, mine["parameters"], spec)]
        # An automatic target was seen on this very split; only one that was given has to be confirmed. Of all depths
        # trained at once the same epoch is taken, so that none of them chose its own.
        sure = not settings.expand.target_accuracy or settings.mode == "one-shot" or confirmed(own, expand)
        reached = sure and meets_target(on_valid.metric, on_valid.value, on_valid.error, on_valid.count, expand)
    return {
        "schema": SCHEMA,
        "dataset": {
            "name": manifest.dataset.name,
            "train": manifest.dataset.train,
            "valid": manifest.dataset.valid,
            "test": None if test is None else len(test),
            "classes": len(manifest.labels),
            "input_shape": list(spec.input_shape),
        },
        "task": manifest.task,
        "metric": manifest.metric,
        "backbone": spec.backbone,
        "seed": settings.seed if settings else None,
        "target_accuracy": expand.target_accuracy or None if expand is not None else None,
        "target_automatic": settings.expand.target_accuracy == 0 if settings else None,
        "reached": reached,
        "depth": network.depth,
        "max_depth": full.depth,
        "networks": [
            *rows,
            mine,
            *runtime_rows(run / "artifact", manifest, mine, test, config),
            *(_row(name, _rival(name, spec), config) for name in rivals_of(spec) if name == STOCK),
        ],
        "curve": _curve(records),
        "refused": [
            {"name": export.runtime, "reason": export.reason} for export in manifest.exports if not export.kept
        ],
        "truncated": {"train": data.train_truncated, "valid": data.valid_truncated} if data and data.texts else None,
        "classes": _classes(data, on_test) if data and on_test else [],
        "compression": compression_summary(records, settings.compress, expand) if settings and expand else None,
        "start": start and start_row(start, records),
        "cost": cost_of(spec, records, start, config),
    }


def _full_row(run: Path, full: Prefix, test: Split | None, valid: Split | None, config: ReportConfig) -> dict[str, Any]:
    """Describe the full depth; where all depths were trained at once it is one of them."""
    row = _row(FULL, full, config)
    if (run / "checkpoints" / KEPT).is_dir():
        _judge(row, load_partitioned(run / "checkpoints" / KEPT).prefix(full.depth), test, valid)
    return row


def _curve(records: Sequence[EpochRecord]) -> list[dict[str, Any]]:
    """Tell how every depth that was trained does on validation data, before fine-tuning."""
    return [
        {"depth": record.depth, "valid_score": record.valid_score, "valid_error": record.valid_error}
        for record in curve_of(records)
    ]


def _extracted_row(
    run: Path, spec: NetworkSpec, test: Split | None, valid: Split | None, config: ReportConfig
) -> dict[str, Any]:
    """Describe the network before it was narrowed: that of the run, or where it is not at hand, its costs alone."""
    source = next((run / name for name in ("finetuned", "extracted") if (run / name).is_dir()), None)
    if source is None:
        whole = rebuild(spec)
        return _row("extracted", whole.prefix(spec.depth), config)
    network = load_network(source)
    row = _row("extracted", network, config)
    _judge(row, network, test, valid)
    return row


def _judge(
    row: dict[str, Any], network: Prefix, test: Split | None, valid: Split | None
) -> tuple[Score | None, Score | None]:
    """Fill in how a network does, and return its scores on the validation and the test split."""
    judged = copy.deepcopy(network).to(training_device())
    on_valid, on_test = (None if split is None else evaluate(judged, split) for split in (valid, test))
    if on_valid is not None:
        row |= {"valid_accuracy": on_valid.accuracy, "valid_score": on_valid.value}
    if on_test is not None:
        row |= on_test_split(on_test)
    return on_valid, on_test


def _classes(data: DataSpec, score: Score) -> list[dict[str, Any]]:
    """Tell how the deployed network does on each class of the test split, and what it learnt that from."""
    unknown = [None] * len(data.classes)  # masks and numbers are not counted by class
    support = (data.train_support or unknown, data.valid_support or unknown)
    return [
        {"name": name, "train": train, "valid": valid, "count": count, "value": value}
        for name, train, valid, count, value in zip(data.classes, *support, score.support, score.per_class, strict=True)
    ]


def _kept(records: Sequence[EpochRecord], depth: int) -> list[EpochRecord]:
    """Take what a depth came to, without growing, which is a look at it, but for the network that is kept for it."""
    kept = kept_by_depth([record for record in records if record.verb == "expand"]).get(depth)
    grown = kept[1].depth if kept and kept[1].phase == "expand" else None
    ended = [record for record in records if record.phase != "expand" or record.depth == grown]
    return [one for record in ended for one in record.by_depth() if one.depth == depth]


def _trained(record: EpochRecord, parameters: int, spec: NetworkSpec) -> bool:
    """Tell whether an evaluation is of the very network, which may have been narrowed."""
    if record.narrowed is None:
        return not spec.channels
    return bool(spec.channels) and record.narrowed.parameters == parameters


def _rival(name: str, spec: NetworkSpec) -> Prefix:
    network = build_rival(name, spec)
    assert isinstance(network, Prefix)
    return network


def _row(name: str, network: Prefix, config: ReportConfig) -> dict[str, Any]:
    assert network.spec is not None
    shape, dtype = network.spec.input_shape, network.spec.input_dtype
    cost = measure_cost(network, shape, dtype)
    return {
        "name": name,
        "runtime": "torch",
        "depth": network.depth,
        "parameters": cost.parameters,
        "parameter_bytes": cost.parameter_bytes,
        "file_bytes": len(save(tensors_of(network))),
        "macs": cost.macs,
        "peak_activation_bytes": cost.peak_activation_bytes,
        "valid_accuracy": None,
        "valid_score": None,
        "test_accuracy": None,
        "test_score": None,
        "test_interval": None,
        "latency_ms": measure_latency(network, shape, config.latency_seconds, dtype)
        if config.latency_seconds
        else None,
    }
