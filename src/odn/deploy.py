"""The commands for what comes after training: export, predict, serve and benchmark. No torch until one is used."""

import csv
import itertools
import json as json_module
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from odn.command import DONE, FAILED, Switch, print_json
from odn.errors import OdnError, UsageError, did_you_mean

if TYPE_CHECKING:
    from odn.manifest import Prediction

Item = TypeVar("Item")
_PROGRESS_SECONDS = 10.0


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
        to=stored.to if to is None else tuple(names(to)),
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
        weight = f", weights {export.weight_bytes:,}" if export.weight_bytes is not None else ""
        print(
            f"{export.runtime}: {' '.join(files_of(export.runtime))}, {size:,} bytes{weight}, valid "
            f"{export.valid_accuracy:.4f}, agreement {export.agreement:.4f}, logits within {export.max_difference:.2g}"
        )
    print(f"{artifact}; next: odn report {run}")
    return DONE if all(export.kept for export in manifest.exports) else FAILED


def names(text: str) -> list[str]:
    """Split what a flag lists.

    Args:
        text: names with commas between.

    Returns:
        The names.
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def predict_command(
    artifact: Path,
    files: Annotated[list[str] | None, Parameter(consume_multiple=True, allow_leading_hyphen=True)] = None,
    /,
    *,
    text: list[str] | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    json: Switch = False,
    csv: Switch = False,
) -> int:
    """Classify image files or texts: path, label and probability, one line each.

    Files that cannot be read are named on stderr; the others are classified all the same, and the exit code is 1.

    Args:
        artifact: the directory that odn run or odn export wrote.
        files: images, folders of them, or - for a list on stdin; they are resized to the network's input. For a network
            that reads texts: files with one text a line, or - for stdin.
        text: a text to classify; may be repeated.
        runtime: onnx, int8 or torch [default: the first that the artifact has a file for].
        threads: to compute with [default: one per processor].
        json: print one JSON object per line.
        csv: print CSV with a header.
    """
    for name in files or []:
        if name.startswith("-") and name != "-":  # the parser lets everything through for the sake of the one dash
            options = ("--text", "--runtime", "--threads", "--json", "--csv")
            hint = did_you_mean(name, options)
            raise UsageError(f"unknown option '{name}'; allowed: {' '.join(options)}; a file is ./{name}.{hint}")
    if json and csv:
        raise UsageError("--json and --csv exclude each other; give one of them")
    _check_threads(threads)
    from odn.manifest import read_manifest

    predict = _predict_texts if read_manifest(artifact).texts else _predict_images
    outcomes = predict(artifact, files or [], text or [], runtime, threads)
    write = _writer("json" if json else "csv" if csv else "text")
    code = DONE
    for outcome in _with_progress(outcomes):
        if isinstance(outcome, OdnError):
            print(f"odn: {outcome}", file=sys.stderr)
            code = FAILED
        else:
            path, prediction = outcome
            write(path, prediction.label, prediction.probability)
    return code


def _predict_images(
    artifact: Path, files: list[str], texts: list[str], runtime: str | None, threads: int | None
) -> "Iterator[tuple[str, Prediction] | OdnError]":
    from odn.predicting import find_files, predict_files

    if texts or not files:
        raise UsageError(f"{artifact} reads images; give FILES" + (" in the place of --text" if texts else ""))
    outcomes = predict_files(artifact, find_files(files, sys.stdin), runtime=runtime, threads=threads)
    return (outcome if isinstance(outcome, OdnError) else (str(path), outcome) for path, outcome in outcomes)


def _predict_texts(
    artifact: Path, files: list[str], texts: list[str], runtime: str | None, threads: int | None
) -> "Iterator[tuple[str, Prediction] | OdnError]":
    from odn.predicting import Text, find_texts, predict_texts

    if not files and not texts:
        raise UsageError(f'{artifact} reads texts; give --text "..." or files with one text a line')
    if not all(map(str.strip, texts)):
        raise UsageError("--text is empty; give a text")
    given = (Text(f"text {number}", text) for number, text in enumerate(texts, 1))
    source = itertools.chain(given, find_texts(files, sys.stdin.buffer))
    outcomes = predict_texts(artifact, source, runtime=runtime, threads=threads)
    return (outcome if isinstance(outcome, OdnError) else (outcome[0].where, outcome[1]) for outcome in outcomes)


def _writer(style: Literal["text", "json", "csv"]) -> Callable[[str, str, float], object]:
    if style == "csv":
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(("path", "label", "probability"))
        return lambda path, label, probability: table.writerow((path, label, f"{probability:.6f}"))
    if style == "json":
        return lambda path, label, probability: sys.stdout.write(
            json_module.dumps({"path": path, "label": label, "probability": probability}) + "\n"
        )
    return lambda path, label, probability: sys.stdout.write(f"{path}\t{label}\t{probability:.4f}\n")


def _with_progress(items: Iterable[Item]) -> Iterator[Item]:
    """Tell on stderr how far it has come: often on a terminal, now and then elsewhere."""
    live = sys.stderr.isatty()
    begin = told = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        if count % 64 == 0 and (now := time.monotonic()) - told > (0.2 if live else _PROGRESS_SECONDS):
            told = now
            text = f"{count:,} classified, {count / (now - begin):,.0f} per second"
            print(f"\r{text}" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)
    if live and told != begin:
        print(file=sys.stderr)


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
        runtime: onnx, int8 or torch [default: the first that the artifact has a file for].
        threads: to compute with [default: one per processor].
        max_request_bytes: largest request.
        max_images: most images in one request.
        max_pixels: largest image.
        max_queue: images that may wait.
        max_requests: requests that may be answered at the same time.
        timeout_seconds: for a request to arrive, and again for its answer.
    """
    _check_threads(threads)
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
    _check_threads(threads)
    if not 0 < seconds < 3600:
        raise UsageError(f"--seconds is {seconds}; allowed: above 0 and below 3600")
    from odn.benchmark import benchmark
    from odn.display import print_rows

    rows = benchmark(artifact, runtimes=names(runtime), threads=threads, seconds=seconds)
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


def _check_threads(threads: int | None) -> None:
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"--threads is {threads}; allowed: 1 to 1024")


COMMANDS: dict[str, Callable[..., int]] = {
    "export": export_command,
    "predict": predict_command,
    "serve": serve_command,
    "benchmark": benchmark_command,
}
