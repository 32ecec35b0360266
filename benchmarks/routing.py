"""Networks whose easy inputs leave early, against the full depth and against the static depth that is as accurate.

They are routed from the trainings of ``benchmarks.oneshot``, which are done here where they are missing. All run in
onnxruntime with one thread, on images of the test split, taking turns.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import geometric_mean, mean, median
from typing import Any

import numpy as np

import odn
from benchmarks.common import ROOT, Cells, Row, parse, write_page
from benchmarks.oneshot import FULL, QUICK, settings, subsets
from odn.data import Data
from odn.devices import read_device_table
from odn.judging import write_inputs
from odn.oneshot import KEPT
from odn.recipe import RunConfig
from odn.route_record import Routing
from odn.routed_artifact import NoExitError, route_run
from odn.rundata import load_run_data
from odn.runtimes import onnx, routed
from odn.storage import load_partitioned
from odn.training import train_run

MAX_DROP = 0.002
ONE_BY_ONE, ROUNDS, BATCH = 500, 4, 64
BARS = {
    "speedup_vs_full_batch_1": ">= 1.5",
    "accuracy_drop": "<= 0.002",
    "accuracy_drop_most": "published",
    "p50_ratio": "<= 1.0",
    "speedup_vs_static": "published",
    "speedup_batch_64": ">= 1.2",
}
COLUMNS = (
    "dataset", "backbone", "seed", "counted_in", "policy", "exits", "full_depth", "static_depth", "full_test",
    "static_test", "routed_test", "speedup_vs_full_batch_1", "p50_ratio", "speedup_vs_static", "speedup_batch_64",
    "static_speedup_batch_64", "full_ms", "recommended", "commit",
)  # fmt: skip
Run = Callable[[Any], Any]


def command(*words: object) -> None:
    """Run a verb of odn in a process of its own."""
    subprocess.run([sys.executable, "-m", "odn", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def measure(config: RunConfig, data: Data, run: Path, seconds: float, unit: str) -> Row:
    """Route one trained run and compare it with static networks.

    Args:
        config: of the run.
        data: its splits.
        run: the run directory; trained first where it is not.
        seconds: spent on timing each part of the backbone.
        unit: what costs are counted in: ``macs`` or ``ms``.

    Returns:
        Accuracies on the test split, and times.
    """
    train_run(config, run, resume=(run / "config.toml").is_file())
    if not (run / "artifact").is_dir():
        command("extract", run)
        command("export", run, "--to", "onnx")
    device = None
    if unit == "ms":
        table = run / "device.json"
        table.unlink(missing_ok=True)
        command("profile", run, "--latency", "--seconds", seconds, "--out", table)
        device = read_device_table(table)
    network = load_partitioned(run / "checkpoints" / KEPT)
    found: Routing | None = None
    try:
        found = route_run(run, max_drop=MAX_DROP, device=device)
        static_depth = found.static_depth
    except NoExitError as error:  # then every input takes the full depth
        static_depth = error.static_depth
    with tempfile.TemporaryDirectory() as folder:
        judge = write_inputs(data.test, Path(folder) / "inputs.npy")
        inputs = np.load(Path(folder) / "inputs.npy")
        runs: dict[str, Run] = {}
        for name, depth in (("full", network.max_depth), ("static", static_depth)):
            artifact = Path(folder) / name
            small, options = odn.extract(network, depth), odn.ExportConfig(to=("onnx",))
            odn.export(small, artifact, data.spec, config=options, train=data.train, valid=data.valid)
            runs[name] = onnx.open_file(artifact / onnx.FILE, 1)
        runs["routed"] = partial(_logits, routed.open_chain(run / "artifact", 1)) if found else runs["full"]
    right = {name: judge.score(_all(one, inputs)).value for name, one in runs.items()}
    singles = timed(runs, [inputs[i : i + 1] for i in range(min(ONE_BY_ONE, len(inputs)))])
    groups = timed(runs, [inputs[i : i + BATCH] for i in range(0, min(4 * ONE_BY_ONE, len(inputs)) - BATCH, BATCH)])
    return {
        "policy": found.policy if found else "-",
        "exits": " ".join(str(exit_.depth) for exit_ in found.exits) if found else "none",
        "full_depth": network.max_depth,
        "static_depth": static_depth,
        **{f"{name}_test": right[name] for name in ("full", "static", "routed")},
        "speedup_vs_full_batch_1": mean(singles["full"]) / mean(singles["routed"]),
        "p50_ratio": median(singles["routed"]) / median(singles["full"]),
        "speedup_vs_static": mean(singles["static"]) / mean(singles["routed"]),
        "speedup_batch_64": mean(groups["full"]) / mean(groups["routed"]),
        "static_speedup_batch_64": mean(groups["full"]) / mean(groups["static"]),
        "full_ms": median(singles["full"]) * 1e3,
        "recommended": "routed" if found and found.worthwhile else "static",
    }


def _all(run: Run, inputs: Any) -> Any:
    return np.concatenate([run(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)])


def _logits(chain: routed.Chain, inputs: Any) -> Any:
    return chain(inputs)[0]


def timed(runs: dict[str, Run], batches: list[Any]) -> dict[str, list[float]]:
    """Time networks on the same inputs, taking turns.

    Args:
        runs: by name.
        batches: what each of them is given.

    Returns:
        Seconds of every call, by name; inputs are different, so that neither the fastest nor the median says it all.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for first in range(0, len(batches), 50):
            group = batches[first : first + 50]
            for name, run in runs.items():
                run(group[0])
                for batch in group:
                    start = time.perf_counter()
                    run(batch)
                    times[name].append(time.perf_counter() - start)
    return times


def summarise(rows: list[Row]) -> Row:
    """Compute the figures of the contract.

    Args:
        rows: of all cells.

    Returns:
        Geometric means over the routes that count in milliseconds, with the mean and the largest drop; None where
        nothing was measured.
    """
    rows = [row for row in rows if row["counted_in"] == "ms"]
    if not rows:
        return dict.fromkeys(BARS)
    figures = {
        name: geometric_mean(row[name] for row in rows)
        for name in ("speedup_vs_full_batch_1", "p50_ratio", "speedup_vs_static", "speedup_batch_64")
    }
    drops = [row["full_test"] - row["routed_test"] for row in rows]
    figures |= {"accuracy_drop": mean(drops), "accuracy_drop_most": max(drops)}
    return {name: figures[name] for name in BARS}


def main() -> None:
    """Measure every cell, then print and write the page."""
    options = parse("routing", __doc__ or "")
    plan = QUICK if options.quick else FULL
    cells = Cells(options, summarise)
    runs = ROOT / "runs" / ("oneshot_quick" if options.quick else "oneshot")
    for training in plan.grid:
        dataset, backbone = training[:2]
        for seed in plan.seeds:
            config = settings(training, seed, plan.epochs, options.data_dir)
            data = load_run_data(config)
            run = runs / f"{dataset}-{backbone}-{seed}"
            for unit in ("ms", "macs") if seed == plan.seeds[0] else ("ms",):
                key: Row = {"dataset": dataset, "backbone": backbone, "seed": seed, "counted_in": unit}
                cells.run(key, partial(measure, config, data, run, plan.seconds, unit))
            shutil.rmtree(run / "artifact", ignore_errors=True)
    cells.save()
    bars: list[Row] = [
        {"figure": name, "bar": BARS[name], "measured": value} for name, value in summarise(cells.rows).items()
    ]
    text = (
        f"Trainings of `benchmarks.oneshot`. {subsets(plan)}, {plan.epochs} epochs. Exits are "
        f"calibrated on validation images (`odn route --max-drop {MAX_DROP}`), once with costs in milliseconds of a "
        "device table and, for the first seed, once in multiply-accumulates; accuracies are those of the ONNX files on "
        "the test split. "
        "`static` is the shallowest depth of the same training that is as accurate as the route on validation images. "
        f"Speed-ups are ratios of mean times over the first {ONE_BY_ONE} test images one by one, and over the first "
        f"{4 * ONE_BY_ONE:,} in batches of {BATCH}; the figures are geometric means of the rows counted in "
        "milliseconds, `accuracy_drop` is their mean and `accuracy_drop_most` their largest drop. `recommended` is "
        "what `odn route` and the report advise; without exits every input takes the full depth."
    )
    write_page(cells.path, "Dynamic depth", text, bars, cells.rows, COLUMNS)


if __name__ == "__main__":
    main()
