"""The rows of a report that stand for an artifact's files in other runtimes."""

import logging
import tempfile
from pathlib import Path
from typing import Any

from odn.config import ReportConfig
from odn.data import Split
from odn.errors import OdnError
from odn.judging import Judge, write_inputs
from odn.manifest import Exported, Manifest, check_files, files_of
from odn.metrics import Score
from odn.runner import Job, run_apart
from odn.runtimes import RUNTIMES
from odn.stopping import score_interval

_log = logging.getLogger("odn")
_BATCHES = (1, 64)


def runtime_rows(
    directory: Path, manifest: Manifest, network: dict[str, Any], test: Split | None, config: ReportConfig
) -> list[dict[str, Any]]:
    """Run every file of an artifact in a process of its own: on the test split, and for its latency.

    Args:
        directory: the artifact.
        manifest: its manifest.
        network: the row of the same network in PyTorch.
        test: the test split; None leaves the test accuracy unmeasured.
        config: how long to measure.

    Returns:
        A row per file kept; what could not be measured is None.
    """
    kept = [export for export in manifest.exports if export.kept and RUNTIMES[export.runtime].static]
    if not kept:
        return []
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npy"
        judge = None if test is None else write_inputs(test, inputs)
        return [_row(directory, manifest, network, export, inputs, judge, config) for export in kept]


def _row(
    directory: Path,
    manifest: Manifest,
    network: dict[str, Any],
    export: Exported,
    inputs: Path,
    judge: Judge | None,
    config: ReportConfig,
) -> dict[str, Any]:
    runtime = RUNTIMES[export.runtime]
    exact = runtime.exact is None
    row = {
        **network,
        "name": export.runtime,
        "runtime": runtime.engine,
        "parameter_bytes": export.weight_bytes or (network["parameter_bytes"] if exact else None),
        "file_bytes": sum((directory / name).stat().st_size for name in files_of(export.runtime)),
        "peak_activation_bytes": None,
        "valid_accuracy": export.valid_score if network["test_accuracy"] is not None else None,
        "valid_score": export.valid_score,
        "test_accuracy": None,
        "test_score": None,
        "test_interval": None,
        "latency_ms": None,
    }
    job = Job(
        directory=str(directory),
        runtime=export.runtime,
        inputs="" if judge is None else str(inputs),
        seconds=config.latency_seconds,
        batches=_BATCHES,
        preprocessing=manifest.preprocessing,
    )
    check_files(directory, manifest, export.runtime)
    try:
        outcome = run_apart(job)
    except OdnError as error:  # its library may not be installed here
        _log.warning("%s is not measured: %s", export.runtime, error)
        return row
    if outcome.logits is not None and judge is not None:
        row |= on_test_split(judge.score(outcome.logits))
    return {**row, "latency_ms": outcome.latency_ms or None}


def on_test_split(score: Score) -> dict[str, Any]:
    """Put a score on the test split into the words of a report.

    Args:
        score: of a network.

    Returns:
        Accuracy where there is such a thing, score and its 95 % interval.
    """
    interval = score_interval(score.metric, score.value, score.error, score.count)
    return {"test_accuracy": score.accuracy, "test_score": score.value, "test_interval": list(interval)}
