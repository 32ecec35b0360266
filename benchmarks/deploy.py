"""From a run to files that run without us: export, quantise, compare, predict, and time beside other networks.

The networks are trained by `odn run` as a user would start it, for several seeds.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, median

import numpy as np
from PIL import Image

from benchmarks.common import ROOT, Cells, Row, parse, settle_flags, write_page

SEEDS = (0, 1, 2)
# name of the cell: dataset, flags of odn run
JOBS = {
    # A ResNet-18 with a stem of three small convolutions: two blocks are cut to a quarter of their weights.
    "mnist": (
        "mnist",
        ["--backbone", "timm/resnet18d", "--depths", "2", "--target", "0.994", "--finetune-epochs", "20"],
    ),
    # For its latencies: what it learns does not matter to them, so that it learns briefly.
    "mnist depth 2": (
        "mnist",
        ["--backbone", "resnet18", "--depths", "2", "--target", "0.99", "--finetune-epochs", "4"],
    ),
    "fashion-mnist": (
        "fashion-mnist",
        ["--backbone", "cifar_resnet20", "--depths", "6", "--target", "0.93", "--finetune-epochs", "20"],
    ),
}
# What a compressed product is asked for: cell -> argument of --compress.
WIDTHS = {"mnist": "max_parameters=47500"}
RESNET18_BYTES = 4 * 11_175_370  # its parameters for 1x28x28 and 10 classes, in fp32
QUICK = [
    "--train-limit",
    "2000",
    "--target",
    "0.9",
    "--depths",
    "2",
    "--epochs-per-depth",
    "4",
    "--finetune-epochs",
    "3",
]
PICTURES, QUICK_PICTURES = 10_000, 1_000
RIVAL_RUNTIMES = "onnx,int8"
BARS = {
    "mnist_int8_file_bytes": "<= 50,000",
    "mnist_int8_test_accuracy_mean": ">= 0.9950",
    "int8_drop_max": "<= 0.001",
    "fashion_mnist_int8_test_accuracy_mean": ">= 0.926",
    "fashion_mnist_int8_file_bytes": "<= 100,000",
    "mnist_share_of_resnet18": "<= 0.0012",
    "latency_ratio_vs_full": "<= 0.05",
    "int8_vs_fp32_latency_ratio": "<= 0.6",
    "fp32_parity_max": "<= 1e-4",
    "predict_throughput_ratio": ">= 0.9",
}
COLUMNS = (
    "cell", "seed", "depth", "parameters", "fp32_file_bytes", "fp32_weight_bytes", "int8_file_bytes",
    "int8_weight_bytes", "fp32_test", "int8_test", "int8_kept", "int8_valid_drop", "parity", "int8_to_fp32",
    "fp32_ms", "int8_ms", "resnet18_ms", "resnet20_ms", "mobilenet_ms", "images_per_second", "bare_images_per_second",
    "commit",
)  # fmt: skip


def odn(*arguments: object, ok: tuple[int, ...] = (0,)) -> str:
    """Run the command in a fresh process.

    Args:
        arguments: of the command.
        ok: exit codes to accept.

    Returns:
        What it printed.
    """
    command = [sys.executable, "-m", "odn", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in ok:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return done.stdout


def train(dataset: str, flags: list[str], seed: int, data_dir: Path, run: Path) -> None:
    """Do a run unless it is there.

    Args:
        dataset: its name.
        flags: further flags of odn run.
        seed: of the run.
        data_dir: of the named datasets.
        run: the run directory; an interrupted run there is continued.
    """
    resume = ["--resume"] if (run / "config.toml").is_file() else []
    odn(
        "run",
        dataset,
        *flags,
        "--to",
        "onnx,int8",
        "--seed",
        seed,
        "--data-dir",
        data_dir,
        "--run",
        run,
        *resume,
        ok=(0, 3),
    )


def measure(dataset: str, data_dir: Path, run: Path, quick: bool) -> Row:
    """Fill one row.

    Args:
        dataset: its name.
        data_dir: of the named datasets.
        run: the run directory, complete.
        quick: measure briefly.

    Returns:
        The figures.
    """
    from odn.manifest import read_manifest

    artifact = run / "artifact"
    report = json.loads((run / "report.json").read_text())
    rows = {row["name"]: row for row in report["networks"]}
    exports = {export.runtime: export for export in read_manifest(artifact).exports}
    int8 = rows.get("int8", {})
    seconds = 0.1 if quick else 1.0
    timed = json.loads(
        odn("benchmark", artifact, "--runtime", kept(rows), "--threads", 1, "--seconds", seconds, "--json")
    )

    def p50(network: str, runtime: str = "onnx") -> float | None:
        found = [row for row in timed if row["network"].startswith(network) and row["runtime"] == runtime]
        return found[0]["batch_1_p50_ms"] if found else None

    ours, bare = throughput(
        artifact, run, dataset, data_dir, QUICK_PICTURES if quick else PICTURES, rounds=1 if quick else 3
    )
    return {
        "depth": report["depth"],
        "parameters": rows.get("pruned", rows["extracted"])["parameters"],
        "fp32_file_bytes": rows["onnx"]["file_bytes"],
        "fp32_weight_bytes": exports["onnx"].weight_bytes,
        "int8_file_bytes": int8.get("file_bytes"),
        "int8_weight_bytes": exports["int8"].weight_bytes,
        "fp32_test": rows["onnx"]["test_accuracy"],
        "int8_test": int8.get("test_accuracy"),
        "int8_kept": exports["int8"].kept,
        "int8_valid_drop": exports["int8"].valid_score_drop,
        "parity": exports["onnx"].max_difference,
        "int8_to_fp32": in_turn(artifact, seconds) if int8 else None,
        "fp32_ms": p50("artifact"),
        "int8_ms": p50("artifact", "int8"),
        "resnet18_ms": p50("resnet18") or p50("full resnet18"),
        "resnet20_ms": p50("cifar_resnet20") or p50("full cifar_resnet20"),
        "mobilenet_ms": p50("mobilenet"),
        "images_per_second": ours,
        "bare_images_per_second": bare,
    }


def in_turn(artifact: Path, seconds: float) -> float:
    """Time the int8 and the fp32 file in one process, taking turns: a change of the clock meets both.

    Args:
        artifact: with both files.
        seconds: spent on each.

    Returns:
        Latency of int8 as a multiple of that of fp32, batch 1, one thread.
    """
    from odn.manifest import read_manifest
    from odn.sessions import open_session
    from odn.stopwatch import time_in_turn

    manifest = read_manifest(artifact)
    image = manifest.preprocessing.noise(1)
    times = time_in_turn(
        {name: partial(open_session(artifact, manifest, name, 1), image) for name in ("onnx", "int8")}, seconds
    )
    return times["int8"] / times["onnx"]


def kept(rows: dict[str, Row]) -> str:
    """Name the ONNX files that a report tells of.

    Args:
        rows: of its networks, by name.

    Returns:
        Names of runtimes with commas between.
    """
    return ",".join(name for name in RIVAL_RUNTIMES.split(",") if name in rows)


BARE = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime
from PIL import Image
paths = sorted(Path(sys.argv[2]).iterdir())
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
for start in range(0, len(paths), 64):
    chunk = paths[start : start + 64]
    images = np.stack([np.asarray(Image.open(path))[None] for path in chunk])
    logits = session.run(None, {"images": images})[0]
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    for path, row in zip(chunk, probabilities):
        print(path, row.argmax(), row.max(), sep="\\t")
"""


def throughput(artifact: Path, run: Path, dataset: str, data_dir: Path, count: int, rounds: int) -> tuple[float, float]:
    """Time odn predict on PNG files against a hand-written loop, as whole processes that take turns.

    Args:
        artifact: with an ONNX file.
        run: receives the pictures.
        dataset: where they come from.
        data_dir: where that lies.
        count: pictures.
        rounds: of which the median counts.

    Returns:
        Images per second of odn predict and of the loop.
    """
    folder = run.parent / f"{dataset}-pictures-{count}"
    if not folder.is_dir():
        from odn.data import load_data

        partial_folder = folder.with_suffix(".partial")
        partial_folder.mkdir(parents=True, exist_ok=True)
        images = np.asarray(load_data(dataset, data_dir=data_dir).train.images[:count, 0])  # type: ignore[attr-defined]
        for index, image in enumerate(images):
            Image.fromarray(image).save(partial_folder / f"{index:05}.png")
        partial_folder.rename(folder)
    commands = {
        "ours": [sys.executable, "-m", "odn", "predict", str(artifact), str(folder), "--runtime", "onnx"],
        "bare": [sys.executable, "-c", BARE, str(artifact / "model.onnx"), str(folder)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            start = time.perf_counter()
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            seconds[name].append(time.perf_counter() - start)
            assert out.count("\n") == count
    return tuple(round(count / median(seconds[name]), 1) for name in commands)  # type: ignore[return-value]


def summarise(rows: list[Row]) -> Row:
    """Compute the figures of the contract.

    Args:
        rows: of all cells.

    Returns:
        Figure by name; None where no cell was measured.
    """

    def over(values: list[float | None], combine: Callable[[list[float]], float]) -> float | None:
        return combine(values) if values and None not in values else None  # type: ignore[arg-type]

    def ratio(row: Row, above: str, below: str) -> float | None:
        return row[above] / row[below] if row[above] and row[below] else None

    mnist = [row for row in rows if row["cell"] == "mnist"]
    deeper = [row for row in rows if row["cell"] == "mnist depth 2"]
    fashion = [row for row in rows if row["cell"] == "fashion-mnist"]
    return {
        "mnist_int8_file_bytes": over([row["int8_file_bytes"] for row in mnist], max),
        "mnist_int8_test_accuracy_mean": over([row["int8_test"] for row in mnist], fmean),
        "mnist_share_of_resnet18": over([row["int8_file_bytes"] / RESNET18_BYTES for row in mnist], max),
        "fashion_mnist_int8_test_accuracy_mean": over([row["int8_test"] for row in fashion], fmean),
        "fashion_mnist_int8_file_bytes": over([row["int8_file_bytes"] for row in fashion], max),
        "int8_drop_max": over([row["fp32_test"] - row["int8_test"] if row["int8_test"] else None for row in rows], max),
        "latency_ratio_vs_full": over([ratio(row, "int8_ms", "resnet18_ms") for row in mnist], max),
        "int8_vs_fp32_latency_ratio": over([row["int8_to_fp32"] for row in deeper], median),
        "fp32_parity_max": over([row["parity"] for row in rows], max),
        "predict_throughput_ratio": over(
            [ratio(row, "images_per_second", "bare_images_per_second") for row in mnist], median
        ),
    }


def main() -> None:
    """Measure every cell, then print and write the page."""
    options = parse("deploy", __doc__ or "")
    cells = Cells(options, summarise)
    runs = ROOT / "runs" / ("deploy_quick" if options.quick else "deploy")
    jobs: list[tuple[Row, Callable[[], Row]]] = []
    for cell, (dataset, flags) in list(JOBS.items())[: 2 if options.quick else None]:
        compress = ["--compress", WIDTHS[cell]] if cell in WIDTHS else []
        final = settle_flags([*flags, *compress, *(QUICK if options.quick else [])])
        for seed in SEEDS[:1] if options.quick else SEEDS:
            run = runs / f"{cell.replace(' ', '-')}-{seed}"
            if not (run / "report.json").is_file():
                train(dataset, final, seed, options.data_dir, run)
            work = partial(measure, dataset, options.data_dir, run, options.quick)
            jobs.append(({"cell": cell, "seed": seed}, work))
    for key, work in jobs:  # when all is trained, so that nothing runs beside what is timed
        cells.run(key, work)
    cells.save()
    bars: list[Row] = [
        {"figure": name, "bar": BARS[name], "measured": value} for name, value in summarise(cells.rows).items()
    ]
    text = (
        "Each row is one `odn run --to onnx,int8` in a fresh process; accuracies are those of the files in their own "
        "runtime, on the test split, which each run reads once. `*_weight_bytes` are the constants in a file, "
        "`*_file_bytes` the whole of it. Latencies are medians at batch 1 with one thread, all in onnxruntime, each in "
        "a process of its own; `int8_to_fp32` is their ratio measured in one process in turn, of which the figure is "
        "the median of three trainings of the same graph; `resnet18_ms`, `resnet20_ms` and "
        "`mobilenet_ms` are the full ResNet-18, `cifar_resnet20` and torchvision's MobileNetV3-small, in fp32 with "
        "random weights. `images_per_second` is `odn predict` on PNG "
        "files, start of the process included, beside a hand-written loop of Pillow and onnxruntime."
    )
    write_page(cells.path, "Deploy: files that run without us", text, bars, cells.rows, COLUMNS)


if __name__ == "__main__":
    main()
