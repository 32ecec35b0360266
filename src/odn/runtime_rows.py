"""The rows of a report that stand for an artifact's files in other runtimes."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from odn.config import ReportConfig
from odn.data import Split
from odn.errors import OdnError
from odn.exporting import write_inputs
from odn.manifest import Exported, Manifest, check_files, files_of
from odn.runner import Job, run_apart
from odn.runtimes import RUNTIMES
from odn.stopping import wilson_interval

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
    kept = [export for export in manifest.exports if export.kept]
    if not kept:
        return []
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npy"
        labels = None if test is None else write_inputs(test, inputs)
        return [_row(directory, manifest, network, export, inputs, labels, config) for export in kept]


def _row(
    directory: Path,
    manifest: Manifest,
    network: dict[str, Any],
    export: Exported,
    inputs: Path,
    labels: Any,
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
        "valid_accuracy": export.valid_accuracy,
        "test_accuracy": None,
        "test_interval": None,
        "latency_ms": None,
    }
    job = Job(
        directory=str(directory),
        runtime=export.runtime,
        inputs="" if labels is None else str(inputs),
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
    if outcome.logits is not None:
        hits = int(np.sum(outcome.logits.argmax(1) == labels))
        row |= {"test_accuracy": hits / len(labels), "test_interval": list(wilson_interval(hits, len(labels)))}
    return {**row, "latency_ms": outcome.latency_ms or None}
