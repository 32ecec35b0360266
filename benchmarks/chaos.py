"""Kill ``odn run`` at random moments, resume it, and compare what comes out with a run that was left alone.

Every run is killed (SIGKILL) several times, at moments spread over all its steps, then resumed to its end. A run is
lost when it cannot be resumed; a figure is changed when its report or its weights differ from those of the run left
alone.
"""

import hashlib
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import odn
from benchmarks.common import ROOT, Cells, Row, parse, write_page
from odn.checkpoint import Checkpoints
from odn.data import training_batches
from odn.engine import Progress
from odn.stage import Stage

KILLS_PER_RUN = 5
RECIPE = """
dataset = "digits"
backbone = "cifar_resnet20"
width = 0.5

[train]
checkpoint_minutes = 0.002

[expand]
target_accuracy = 0.9999
depths = [1, 2, 4]
epochs_per_depth = 3
settle_epochs = 2
reach = 1000.0

[finetune]
epochs = 3

[compress]
width = 0.5
epochs = 3

[export]
to = ["onnx"]

[report]
latency_seconds = 0.05
"""


def start(recipe: Path, run: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start or resume a run in a process of its own.

    Args:
        recipe: its settings.
        run: the run directory.
        log: receives what it says.

    Returns:
        The process.
    """
    command = [sys.executable, "-m", "odn", "run", "--config", str(recipe), "--run", str(run)]
    with log.open("ab") as file:
        resume = ["--resume"] if run.is_dir() else []
        return subprocess.Popen([*command, *resume], stdout=file, stderr=file)


def finish(recipe: Path, run: Path, log: Path) -> bool:
    """Let a run come to its end.

    Args:
        recipe: its settings.
        run: the run directory.
        log: receives what it says.

    Returns:
        Whether it ended as it should; the target of the recipe is out of reach, so that is exit code 3.
    """
    return start(recipe, run, log).wait() in (0, 3)


def figures(run: Path) -> dict[str, object]:
    """Read what must not depend on interruptions.

    Args:
        run: a finished run directory.

    Returns:
        Every figure of the report that is not a time, and the checksum of the deployed weights.
    """
    report = json.loads((run / "report.json").read_text())
    del report["cost"]["seconds"]
    for network in report["networks"]:
        del network["latency_ms"]
    report["weights"] = hashlib.sha256((run / "artifact" / "weights.safetensors").read_bytes()).hexdigest()
    return report


def where(run: Path) -> str:
    """Say how far a run had come.

    Args:
        run: a run directory.

    Returns:
        The step that was going on.
    """
    steps = (
        ("report.json", "after the report"),
        ("artifact", "report"),
        ("compressed", "export"),
        ("finetuned", "compress"),
    )
    for name, step in steps:
        if (run / name).exists():
            return step
    history = run / "history.jsonl"
    lines = history.read_text().splitlines() if history.is_file() else []
    if (run / "extracted").exists():
        return "finetune"
    return "expand" if lines else "before the first epoch"


def torment(seed: int, folder: Path, expected: dict[str, object], seconds: float) -> Row:
    """Kill one run again and again, then let it end.

    Args:
        seed: of the moments.
        folder: for its files.
        expected: figures of the run left alone.
        seconds: that the run left alone took.

    Returns:
        Kills by step, and whether the run was lost or a figure changed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe, run, log = folder / "recipe.toml", folder / "run", folder / "log.txt"
    recipe.write_text(RECIPE)
    chance = random.Random(seed)
    places: Counter[str] = Counter()
    for _ in range(KILLS_PER_RUN):
        process = start(recipe, run, log)
        try:
            # What is left of the run gets shorter with every resumption, so that late steps are met as well.
            code = process.wait(timeout=chance.uniform(0.15, 0.6) * seconds)
            if code not in (0, 3):
                return {"kills": places.total(), "lost": 1, "changed": 0, "places": dict(places)}
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            places[where(run)] += 1
    lost = not finish(recipe, run, log)
    changed = not lost and figures(run) != expected
    row = {"kills": places.total(), "lost": int(lost), "changed": int(changed), "places": dict(places)}
    if not (lost or changed):
        shutil.rmtree(folder)
    return row


def checkpoint_seconds(folder: Path) -> Row:
    """Time what is written after an epoch of a full ResNet-18: its state, and its weights as the best so far.

    Args:
        folder: for its files.

    Returns:
        The median of five times.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = odn.load_data("digits")
    network = odn.partition("resnet18", data.spec)
    stage = Stage(network.prefix(network.max_depth), odn.TrainConfig(), data.train)
    x_BCHW, labels_B = next(training_batches(data.train, 16, stage.device, seed=0))
    stage.train_step(x_BCHW, labels_B, lambda epochs: 1.0)  # now the optimizer has a memory too
    checkpoints = Checkpoints("expand", folder)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        checkpoints.keep("best", stage.averaged)
        checkpoints.save("expand", Progress(), stage)
        times.append(time.perf_counter() - began)
    state_bytes = sum(path.stat().st_size for path in (folder / "checkpoints").glob("expand*"))
    shutil.rmtree(folder)
    return {"seconds": round(statistics.median(times), 3), "state_bytes": state_bytes // 2}


def summarise(rows: list[Row]) -> Row:
    """Compute the figures of the contract.

    Args:
        rows: of all cells.

    Returns:
        Figure by name.
    """
    runs = [row for row in rows if "seed" in row]
    timed = [row["seconds"] for row in rows if "seconds" in row]
    return {
        "kills": sum(row["kills"] for row in runs),
        "runs_lost": sum(row["lost"] for row in runs),
        "figures_changed": sum(row["changed"] for row in runs),
        "checkpoint_share_of_60_seconds": round(timed[0] / 60, 4) if timed else None,
    }


def main() -> None:
    """Kill runs until there were enough kills, then print and write the page."""
    options = parse("chaos", __doc__ or "")
    cells = Cells(options, summarise)
    folder = ROOT / "runs" / "chaos"
    shutil.rmtree(folder / "alone", ignore_errors=True)
    (folder / "alone").mkdir(parents=True)
    recipe = folder / "alone" / "recipe.toml"
    recipe.write_text(RECIPE)
    began = time.perf_counter()
    if not finish(recipe, folder / "alone" / "run", folder / "alone" / "log.txt"):
        raise SystemExit(f"the run left alone failed; see {folder / 'alone' / 'log.txt'}")
    seconds = time.perf_counter() - began
    expected = figures(folder / "alone" / "run")
    cells.run({"checkpoint": "resnet18, full depth"}, partial(checkpoint_seconds, folder / "checkpoint"))
    seed = 0
    while summarise(cells.rows)["kills"] < (10 if options.quick else 100):
        cells.run({"seed": seed}, partial(torment, seed, folder / str(seed), expected, seconds))
        seed += 1
    cells.save()
    places: Counter[str] = Counter()
    runs = [row for row in cells.rows if "seed" in row]
    for row in runs:
        places.update(row["places"])
    bars: list[Row] = [
        {"figure": name, "bar": bar, "measured": summarise(cells.rows)[name]}
        for name, bar in (
            ("kills", ">= 100"),
            ("runs_lost", "0"),
            ("figures_changed", "0"),
            ("checkpoint_share_of_60_seconds", "<= 0.02"),
        )
    ]
    text = (
        "Digits, a narrow `cifar_resnet20` at depths 1, 2 and 4 with cool-downs, fine-tuning, compressing to half the "
        "width, an artifact with an ONNX file, and the report; states are saved within epochs too. Every run was "
        f"killed up to {KILLS_PER_RUN} times and resumed, then its report (times aside) and the checksum of its "
        "weights were compared with those of a run left alone. Kills by the step that was going on: "
        + ", ".join(f"{place} {count}" for place, count in places.most_common())
        + "."
    )
    rows = [{**row, "places": ", ".join(f"{place} {count}" for place, count in row["places"].items())} for row in runs]
    write_page(
        cells.path, "Chaos: runs killed and resumed", text, bars, rows, ("seed", "kills", "lost", "changed", "places")
    )


if __name__ == "__main__":
    main()
