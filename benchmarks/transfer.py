"""Start from weights trained on other images, against a random start: depth, accuracy and cost of the same search.

``cifar_resnet20`` is trained at full depth on classes 0 to 4 of CIFAR-10's JPEGs; then ``odn run`` looks for the
shallowest network on classes 5 to 9, and on the sample of SVHN, from those weights and from random ones.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import odn
from benchmarks.common import ROOT, Cells, Row, cifar_folder, parse, settle_flags, write_page
from odn.config import AugmentConfig, DataConfig, FinetuneConfig
from odn.extraction import finetune_epochs
from odn.measure import macs_by_depth, train_macs
from odn.network import build_network
from odn.records import EpochRecord
from odn.storage import save_network

BACKBONE = "cifar_resnet20"
SVHN = "SVHN-sample/svhn_official_train_first1083.npz"
SEEDS = (0, 1, 2)
STARTS = ("random", "pretrained")
# dataset, target, further flags; the targets were chosen before the first run
JOBS = {
    "cifar10_5_to_9": ("CIFAR", ["--target", "0.8", "--train-limit", "2500"]),
    "svhn_sample": ("SVHN", ["--target", "0.7"]),
}
QUICK = ["--train-limit", "400", "--depths", "1,3,9", "--epochs-per-depth", "3", "--finetune-epochs", "2"]
COLUMNS = (
    "data", "start", "seed", "target", "reached", "depth", "max_depth", "probes", "first_depth", "parameters", "valid",
    "test", "low", "high", "epochs", "train_macs", "seconds", "commit",
)  # fmt: skip


def halves(data_dir: Path) -> dict[str, Path]:
    """Divide the classes of CIFAR-10 into two folders of links.

    Args:
        data_dir: holds the JPEGs.

    Returns:
        The folders of classes 0 to 4 and 5 to 9.
    """
    source = cifar_folder(data_dir)
    folders = {}
    classes = sorted(path.name for path in (source / "train").iterdir() if path.is_dir())
    for name, chosen in (("0_to_4", classes[:5]), ("5_to_9", classes[5:])):
        folders[name] = ROOT / "runs" / "transfer_data" / name
        for split in ("train", "test"):
            (folders[name] / split).mkdir(parents=True, exist_ok=True)
            for label in chosen:
                link = folders[name] / split / label
                if not link.exists():
                    link.symlink_to((source / split / label).resolve())
    return folders


def pretrain(folder: Path, target: Path, *, images: int, epochs: int) -> Row:
    """Train the full depth, once for all cells, and keep its weights.

    Args:
        folder: the images to learn from.
        target: receives ``weights.safetensors``.
        images: to train on.
        epochs: of one annealing.

    Returns:
        How it did and what it took.
    """
    augment = AugmentConfig(shift=0.125, flip=True)
    data = odn.load_data(str(folder), config=DataConfig(train_limit=images), augment=augment)
    network = odn.partition(BACKBONE, data.spec)
    depth = network.max_depth
    began = time.perf_counter()
    whole = odn.extract(network, depth)
    records: list[EpochRecord] = []
    training = finetune_epochs(whole, data.train, data.valid, config=FinetuneConfig(epochs=epochs, rate=1.0))
    for record in training:
        records.append(record)
        print(f"pretraining: epoch {record.epoch}/{epochs}, valid {record.valid_score:.4f}", flush=True)
    save_network(whole.cpu(), target)
    macs = macs_by_depth(build_network(BACKBONE, data.spec.input_shape, 5, device="meta").prefixes(), (3, 32, 32))
    return {
        "depth": depth,
        "valid": max(record.valid_score for record in records),
        "train_macs": train_macs(records, macs),
        "epochs": str(epochs),
        "seconds": round(time.perf_counter() - began, 1),
    }


def run_odn(dataset: Path, flags: Sequence[str], seed: int, weights: Path | None, run: Path) -> Row:
    """Run the command in a fresh process and read its report.

    Args:
        dataset: its path.
        flags: further flags.
        seed: of the run.
        weights: to start from, or None.
        run: the run directory; an interrupted run there is continued, and the time is then not known.

    Returns:
        The figures of one row.
    """
    interrupted = (run / "config.toml").is_file()
    command = [sys.executable, "-m", "odn", "run", str(dataset), "--backbone", BACKBONE, *flags, "--seed", str(seed)]
    command += ["--weights", str(weights)] if weights else []
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--run", str(run), "--json", *(["--resume"] if interrupted else [])],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    report = json.loads(done.stdout)
    mine, cost, start = report["networks"][1], report["cost"], report["start"]
    return {
        "target": report["target_accuracy"],
        "reached": report["reached"],
        "depth": report["depth"],
        "max_depth": report["max_depth"],
        "probes": start and " ".join(f"{probe['valid_accuracy']:.3f}" for probe in start["probes"]),
        "first_depth": start and start["first_depth"],
        "parameters": mine["parameters"],
        "valid": mine["valid_accuracy"],
        "test": mine["test_accuracy"],
        "low": mine["test_interval"][0],
        "high": mine["test_interval"][1],
        "epochs": " ".join(map(str, [*cost["epochs_by_depth"].values(), f"+{cost['finetune_epochs']}"])),
        "train_macs": cost["train_macs"],
        "cost_vs_full": round(cost["train_macs"] / cost["full_depth_train_macs"], 4),
        "seconds": None if interrupted else round(seconds, 1),
    }


def summarise(rows: list[Row]) -> Row:
    """Compare the two starts, seed by seed.

    Args:
        rows: of all cells.

    Returns:
        Figure by name; None where a cell is missing.
    """
    figures: Row = {}
    for data in JOBS:
        by_start = {start: [r for r in rows if (r["data"], r["start"]) == (data, start)] for start in STARTS}
        seeds = {start: {row["seed"]: row for row in found} for start, found in by_start.items()}
        both = sorted(seeds["random"].keys() & seeds["pretrained"].keys())
        pairs = [(seeds["random"][seed], seeds["pretrained"][seed]) for seed in both]
        figures |= {
            f"{data}_{name}": value(pairs) if pairs else None
            for name, value in {
                "test_gain_mean": lambda p: round(fmean(b["test"] - a["test"] for a, b in p), 4),
                "cost_ratio_mean": lambda p: round(fmean(b["train_macs"] / a["train_macs"] for a, b in p), 4),
                "depth_difference_mean": lambda p: round(fmean(b["depth"] - a["depth"] for a, b in p), 2),
                "random_reached_share": lambda p: round(fmean(a["reached"] for a, _ in p), 2),
                "pretrained_reached_share": lambda p: round(fmean(b["reached"] for _, b in p), 2),
            }.items()
        }
    trained = [row for row in rows if row["data"] == "pretraining"]
    figures["pretraining_valid_accuracy"] = trained[0]["valid"] if trained else None
    return figures


def main() -> None:
    """Measure every cell, then print and write the page."""
    options = parse("transfer", __doc__ or "")
    cells = Cells(options, summarise)
    runs = ROOT / "runs" / ("transfer_quick" if options.quick else "transfer")
    folders = halves(options.data_dir)
    weights = runs / "pretraining"
    sizes = {"images": 500, "epochs": 2} if options.quick else {"images": 12_500, "epochs": 20}
    cells.run(
        {"data": "pretraining", "start": "random", "seed": 0},
        partial(pretrain, folders["0_to_4"], weights, **sizes),
    )
    file = weights / "weights.safetensors"
    if not file.is_file():
        raise SystemExit(f"{file} is gone, though its row is kept in {options.out}; remove that file to begin anew")
    for seed in SEEDS[:1] if options.quick else SEEDS:
        for data, (name, flags) in JOBS.items():
            dataset = folders["5_to_9"] if name == "CIFAR" else options.data_dir / SVHN
            final = settle_flags([*flags, *(QUICK if options.quick else [])])
            for start in STARTS:
                measure = partial(
                    run_odn,
                    dataset,
                    final,
                    seed,
                    file if start == "pretrained" else None,
                    runs / f"{data}-{start}-{seed}",
                )
                cells.run({"data": data, "start": start, "seed": seed}, measure)
    cells.save()
    publish(cells)


def publish(cells: Cells) -> None:
    """Print the page and write it beside the JSON file.

    Args:
        cells: those that are finished.
    """
    bars: list[Row] = [
        {"figure": name, "bar": "told", "measured": value} for name, value in summarise(cells.rows).items()
    ]
    text = (
        f"`{BACKBONE}` is trained once at full depth on classes 0 to 4 of CIFAR-10 (first row). Each further row is "
        "one `odn run` in a fresh process, on a stratified subset of classes 5 to 9 or on a sample of 1,083 images of "
        "SVHN, from random weights or with `--weights`. `probes` are the validation accuracies of linear classifiers "
        "on the frozen features of every depth, `first_depth` is where growing began. `train_macs` counts the whole "
        "run, probing included and pretraining not: that is the first row's, paid once. `cost_ratio` is that of the "
        "pretrained over the random start, seed by seed; `test_gain` pretrained less random.\n\n"
        "CIFAR-10 is a lossy JPEG re-encoding in another order, so its accuracies cannot be compared to the digit with "
        "published ones. The test splits are those of CIFAR-10 and a fifth of the SVHN sample. `low` and `high` bound "
        "the test accuracy (Wilson, 95 %). A dash in `seconds` is a run after an interruption."
    )
    write_page(cells.path, "Transfer: a pretrained against a random start", text, bars, cells.rows, COLUMNS)


if __name__ == "__main__":
    main()
