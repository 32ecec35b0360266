"""Running a file of an artifact in a process of its own: ``python -m odn.runner``.

No torch is imported unless the runtime needs it. The process proves that the file works without the program that wrote
it, and its memory is that of the runtime alone.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from odn.errors import OdnError
from odn.images import Preprocessing
from odn.manifest import read_manifest
from odn.runtimes import RUNTIMES, Logits, Session, torch_session
from odn.sessions import open_session, run_all
from odn.tables import from_table, to_table
from odn.texts import TextPreprocessing

BATCH = 64
_PATIENCE_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the process is to do.

    Attributes:
        directory: an artifact, or a folder with the files of one runtime.
        runtime: its name.
        rival: measure a network of ``odn.rivals`` in PyTorch instead of the artifact's own.
        threads: to compute with.
        inputs: an .npy file of decoded images or ids of tokens to run, or an empty string.
        seconds: spent on the latency of each batch size; 0 measures none.
        batches: these sizes.
        preprocessing: of the network, for latencies; None where none are measured.
    """

    directory: str
    runtime: str
    rival: str = ""
    threads: int = 1
    inputs: str = ""
    seconds: float = 0.0
    batches: tuple[int, ...] = ()
    preprocessing: Preprocessing | TextPreprocessing | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the process found.

    Attributes:
        logits: of the inputs, shape (N, K); None where none were given.
        latency_ms: ``{"batch_1": {"p50": ms, "p95": ms}, ...}``, per batch; empty where not measured.
        peak_memory_bytes: of the process, its libraries included; None where the system does not tell.
        modules: imported by it.
    """

    logits: Logits | None
    latency_ms: Mapping[str, Mapping[str, float]]
    peak_memory_bytes: int | None
    modules: Sequence[str]


def run_apart(job: Job) -> Outcome:
    """Do a job in a fresh process.

    Args:
        job: what to do.

    Returns:
        What came out.

    Raises:
        OdnError: when the process failed; with its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "odn.runner", json.dumps(to_table(job)), folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise OdnError(f"{job.runtime} did not finish within {_PATIENCE_SECONDS} seconds") from error
        if done.returncode != 0:
            words = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
            raise OdnError(f"{job.runtime} failed in a process of its own: {words[-1].removeprefix('odn: ')[:300]}")
        result = json.loads((Path(folder) / "result.json").read_text())
        logits = np.load(Path(folder) / "logits.npy") if job.inputs else None
    return Outcome(logits=logits, **result)


def main(arguments: Sequence[str]) -> int:
    """Do a job in this process.

    Args:
        arguments: the job as JSON, and the folder that receives ``result.json`` and ``logits.npy``.

    Returns:
        The exit code.
    """
    job, folder = from_table(Job, json.loads(arguments[0])), Path(arguments[1])
    try:
        session = _session(job)
        if job.inputs:
            inputs = np.load(job.inputs, mmap_mode="r")
            np.save(folder / "logits.npy", run_all(session, inputs, BATCH))
        latency = {f"batch_{size}": _latency(session, size, job) for size in job.batches} if job.seconds else {}
    except OdnError as error:
        print(f"odn: {error}", file=sys.stderr)
        return 1
    result: dict[str, Any] = {"latency_ms": latency, "peak_memory_bytes": _peak_bytes(), "modules": sorted(sys.modules)}
    (folder / "result.json").write_text(json.dumps(result))
    return 0


def _session(job: Job) -> Session:
    directory = Path(job.directory)
    if job.rival:
        from odn.artifact import load
        from odn.layers import Deployed
        from odn.rivals import build_rival

        artifact = load(directory)
        assert artifact.network.spec is not None
        rival = build_rival(job.rival, artifact.network.spec)
        return torch_session(Deployed(rival, artifact.manifest.preprocessing, artifact.manifest.scaling), job.threads)
    if job.runtime == "torch":
        return open_session(directory, read_manifest(directory), "torch", job.threads)
    # Without a manifest: the file may have been written a moment ago, and its artifact is not complete.
    return RUNTIMES[job.runtime].open(directory, job.threads)


def _latency(session: Session, batch: int, job: Job) -> dict[str, float]:
    assert job.preprocessing is not None
    inputs = job.preprocessing.noise(batch)
    for _ in range(3):
        session(inputs)
    times: list[float] = []
    while len(times) < 10 or sum(times) < job.seconds:
        start = time.perf_counter()
        session(inputs)
        times.append(time.perf_counter() - start)
    p50, p95 = np.percentile(times, [50, 95]) * 1e3
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4)}


def _peak_bytes() -> int | None:
    """Read the peak of this program; what getrusage tells includes the one that started it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    peaks = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
    return peaks[0] if peaks else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
