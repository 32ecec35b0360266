"""Measuring an artifact in every runtime, beside the full depth and small networks that one would pick instead."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from odn.artifact import Artifact, load
from odn.errors import OdnError
from odn.layers import Deployed
from odn.manifest import check_files, files_of
from odn.predicting import cpu_count
from odn.rivals import FULL, build_rival, rivals_of
from odn.runner import BATCH, Job, run_apart
from odn.runtimes import RUNTIMES, Export, input_name
from odn.sessions import choose_runtime
from odn.storage import tensors_of

_log = logging.getLogger("odn")
BATCHES = (1, BATCH)
Row = dict[str, Any]


def benchmark(
    directory: str | Path, *, runtimes: Sequence[str] = (), threads: int | None = None, seconds: float = 0.5
) -> list[Row]:
    """Measure latency, memory and file size, each in a process of its own.

    Args:
        directory: the artifact.
        runtimes: names of those to measure; none means every one that the artifact has files for.
        threads: the larger number of threads; None means one per processor. One thread is measured as well.
        seconds: spent on each latency.

    Returns:
        One row per network, runtime and number of threads: ``network weights runtime threads batch_1_p50_ms
        batch_1_p95_ms batch_64_p50_ms batch_64_p95_ms peak_memory_bytes file_bytes``. Networks to compare with run in
        fp32.
    """
    directory = Path(directory)
    artifact = load(directory)
    manifest, spec = artifact.manifest, artifact.network.spec
    assert spec is not None
    measurable = [name for name in manifest.runtimes if name == "torch" or RUNTIMES[name].static]
    chosen = [choose_runtime(manifest, name, measurable) for name in runtimes or measurable]
    counts = sorted({1, threads or cpu_count()})
    rows: list[Row] = []
    for runtime in chosen:
        check_files(directory, manifest, runtime)
        file_bytes = sum((directory / name).stat().st_size for name in files_of(runtime))
        about: Row = {"network": "artifact", "weights": "trained", "runtime": runtime, "file_bytes": file_bytes}
        rows += _measure(Job(directory=str(directory), runtime=runtime), about, artifact, counts, seconds)
    whole = spec.backbone if spec.width == 1 else None  # which stands there as the full depth
    for runtime in dict.fromkeys(_exact(name) for name in chosen):
        for rival in (name for name in rivals_of(spec) if name != whole):
            rows += _measure_rival(rival, runtime, artifact, directory, counts, seconds)
    return rows


def _exact(runtime: str) -> str:
    """Return the runtime in which a network of the same engine runs in fp32."""
    return runtime if runtime == "torch" else RUNTIMES[runtime].exact or runtime


def _measure_rival(
    rival: str, runtime: str, artifact: Artifact, directory: Path, counts: Sequence[int], seconds: float
) -> Iterator[Row]:
    spec = artifact.network.spec
    assert spec is not None
    network = build_rival(rival, spec)
    about: Row = {
        "network": f"full {spec.backbone}" if rival == FULL else rival,
        "weights": "random",
        "runtime": runtime,
    }
    if runtime == "torch":
        about["file_bytes"] = len(save(tensors_of(network)))
        yield from _measure(
            Job(directory=str(directory), runtime=runtime, rival=rival), about, artifact, counts, seconds
        )
        return
    preprocessing = artifact.manifest.preprocessing
    deployed = Deployed(network, preprocessing, artifact.manifest.scaling).eval()
    export = Export(
        network=deployed,
        calibration=preprocessing.noise(BATCH),
        metadata={},
        input_name=input_name(artifact.manifest.texts),
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            RUNTIMES[runtime].write(export, Path(folder))
        except OdnError as error:
            _log.warning("%s is not measured: %s", rival, error)
            return
        about["file_bytes"] = sum((Path(folder) / name).stat().st_size for name in files_of(runtime))
        yield from _measure(Job(directory=folder, runtime=runtime), about, artifact, counts, seconds)


def _measure(job: Job, about: Row, artifact: Artifact, counts: Sequence[int], seconds: float) -> Iterator[Row]:
    own_threads = job.runtime != "torch" and RUNTIMES[job.runtime].own_threads
    for threads in (None,) if own_threads else counts:
        outcome = run_apart(
            Job(
                directory=job.directory,
                runtime=job.runtime,
                rival=job.rival,
                threads=threads or 1,
                seconds=seconds,
                batches=BATCHES,
                preprocessing=artifact.manifest.preprocessing,
            )
        )
        yield {
            "network": about["network"],
            "weights": about["weights"],
            "runtime": about["runtime"],
            "threads": threads,
            **{
                f"batch_{batch}_{name}_ms": outcome.latency_ms[f"batch_{batch}"][name]
                for batch in BATCHES
                for name in ("p50", "p95")
            },
            "peak_memory_bytes": outcome.peak_memory_bytes,
            "file_bytes": about["file_bytes"],
        }
