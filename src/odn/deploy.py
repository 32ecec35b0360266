"""The commands for what comes after training: export, serve and benchmark. No torch until one is used."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from odn.command import DONE, FAILED, Switch, check_threads, print_json
from odn.errors import UsageError
from odn.flags import listed
from odn.predict_command import predict_command


def export_command(
    run: Path,
    /,
    *,
    to: str | None = None,
    max_drop: float | None = None,
    weights: Literal["fp32", "bf16", "fp16"] | None = None,
) -> int:
    """Write the deployable directory, RUN/artifact.

    Every file for a further runtime is run in a process of its own on validation images and compared with PyTorch;
    one that fails is not kept, and the exit code is 1.

    Args:
        run: the run directory.
        to: further runtimes, with commas between: onnx int8 pt2 executorch executorch-int8 openvino
            [default: the run's].
        max_drop: validation accuracy that int8 and shorter weights may cost, a fraction; beyond it fp32 is kept
            [default: the run's, 0.002].
        weights: how PyTorch's weights are stored on disk [default: the run's, fp32].
    """
    from odn.config import ExportConfig
    from odn.manifest import files_of, read_manifest
    from odn.recipe import read_run_config
    from odn.run import export_run

    stored = read_run_config(run / "config.toml").export
    config = ExportConfig(
        to=stored.to if to is None else tuple(listed(to)),
        max_drop=stored.max_drop if max_drop is None else max_drop,
        weights=weights or stored.weights,
    )
    artifact = export_run(run, config)
    manifest = read_manifest(artifact)
    for export in manifest.exports:
        if not export.kept:
            print(f"{export.runtime}: not kept: {export.reason}", file=sys.stderr)
            continue
        size = sum((artifact / name).stat().st_size for name in files_of(export.runtime))
        agreement = f"agreement {export.agreement:.4f}, " if export.agreement is not None else ""
        weight = f", weights {export.weight_bytes:,}" if export.weight_bytes is not None else ""
        print(
            f"{export.runtime}: {' '.join(files_of(export.runtime))}, {size:,} bytes{weight}, valid "
            f"{export.valid_score:.4f}, {agreement}logits within {export.max_difference:.2g}"
        )
    print(f"{artifact}; next: odn report {run}")
    return DONE if all(export.kept for export in manifest.exports) else FAILED


def serve_command(
    artifact: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    runtime: str | None = None,
    threads: int | None = None,
    max_request_bytes: int = 16 * 1024**2,
    max_images: int = 64,
    max_pixels: int = 25_000_000,
    max_queue: int = 1024,
    max_requests: int = 256,
    timeout_seconds: float = 30.0,
) -> int:
    """Answer HTTP requests: /predict, /metadata, /healthz, /openapi.json, and a page to drop images on at /.

    Args:
        artifact: the directory that odn run or odn export wrote.
        host: address to listen on; others than loopback can be reached by anyone who reaches this machine.
        port: to listen on; 0 takes a free one.
        runtime: onnx, int8, routed or torch [default: the first that the artifact has a file for].
        threads: to compute with [default: one per processor].
        max_request_bytes: largest request.
        max_images: most images in one request.
        max_pixels: largest image.
        max_queue: images that may wait.
        max_requests: requests that may be answered at the same time.
        timeout_seconds: for a request to arrive, and again for its answer.
    """
    check_threads(threads)
    if not 0 <= port < 65536:
        raise UsageError(f"--port is {port}; allowed: 0 to 65535")
    from odn.guard import Limits
    from odn.serve import serve

    limits = Limits(
        request_bytes=max_request_bytes,
        images=max_images,
        pixels=max_pixels,
        queue=max_queue,
        requests=max_requests,
        seconds=timeout_seconds,
    )

    def ready(address: str) -> None:
        print(f"serving {artifact} at {address}; Ctrl-C stops", file=sys.stderr, flush=True)

    serve(artifact, host=host, port=port, runtime=runtime, threads=threads, limits=limits, ready=ready)
    return DONE


def benchmark_command(
    artifact: Path,
    /,
    *,
    runtime: str = "",
    threads: int | None = None,
    seconds: float = 0.5,
    json: Switch = False,
) -> int:
    """Measure latency at batch 1 and 64 with one and several threads, memory and bytes, beside other networks.

    Those are the full depth of the same backbone and small stock networks, in fp32 and with random weights.

    Args:
        artifact: the directory that odn run or odn export wrote.
        runtime: those to measure, with commas between [default: every one that the artifact has files for].
        threads: the larger number of threads [default: one per processor].
        seconds: spent on each latency.
        json: print a list of objects instead of the table.
    """
    check_threads(threads)
    if not 0 < seconds < 3600:
        raise UsageError(f"--seconds is {seconds}; allowed: above 0 and below 3600")
    from odn.benchmark import benchmark
    from odn.display import print_rows

    rows = benchmark(artifact, runtimes=listed(runtime), threads=threads, seconds=seconds)
    if json:
        print_json(rows)
    else:
        print_rows(f"{artifact}: milliseconds per batch", [_brief(row) for row in rows])
    return DONE


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    """Shorten a row so that the table fits into a terminal."""
    latencies = {f"batch {size}": [row[f"batch_{size}_{name}_ms"] for name in ("p50", "p95")] for size in (1, 64)}
    memory = row["peak_memory_bytes"]
    return {
        "network": row["network"] if row["weights"] == "trained" else f"{row['network']} (random weights)",
        "runtime": row["runtime"],
        "threads": "own" if row["threads"] is None else row["threads"],
        **{f"{name}, p50 / p95": f"{p50:.3f} / {p95:.3f}" for name, (p50, p95) in latencies.items()},
        "memory MB": "-" if memory is None else round(memory / 1e6),
        "file bytes": row["file_bytes"],
    }


COMMANDS: dict[str, Callable[..., int]] = {
    "export": export_command,
    "predict": predict_command,
    "serve": serve_command,
    "benchmark": benchmark_command,
}
