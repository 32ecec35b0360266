"""Timing the parts of a network in turn; copied beside parts it is a script that needs numpy and onnxruntime alone.

``python measure.py [--threads 1] [--seconds 0.2] [--out table.json]`` measures what ``odn profile --parts``
wrote, and prints or writes the device table.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

ROUNDS, WARM_UP = 5, 3


def time_in_turn(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Time several calls, taking turns, so that a machine that slows down slows all of them.

    Args:
        calls: by name.
        seconds: spent on each in all.

    Returns:
        Median milliseconds by name.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            for _ in range(WARM_UP):
                call()
            spent, own = 0.0, times[name]
            count = 0
            while spent < seconds / ROUNDS or count < 3:
                start = time.perf_counter()
                call()
                own.append(time.perf_counter() - start)
                spent, count = spent + own[-1], count + 1
    return {name: statistics.median(own) * 1e3 for name, own in times.items()}


def time_parts(plan: Mapping[str, Any], calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Time the parts of a network one after another, as they follow each other in it, and whole networks in turn.

    A part that is called many times in a row finds its weights in the cache; in a network that is larger than the cache
    they have to be fetched for every input.

    Args:
        plan: which measurement stands for which part, as in ``parts.json``.
        calls: by measurement.
        seconds: spent on each in all.

    Returns:
        Median milliseconds by measurement.
    """
    blocks_and_heads = [name for pair in zip(plan["blocks"], plan["heads"], strict=True) for name in pair]
    parts = list(dict.fromkeys([plan["call"], plan["stem"], *blocks_and_heads]))
    times: dict[str, list[float]] = {name: [] for name in parts}
    passes, end = 0, time.perf_counter() + seconds * len(parts)
    while passes < WARM_UP + 3 * ROUNDS or time.perf_counter() < end:
        for name in parts:
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
        passes += 1
    own = {name: statistics.median(values[WARM_UP:]) * 1e3 for name, values in times.items()}
    return own | time_in_turn({name: call for name, call in calls.items() if name not in own}, seconds)


def machine() -> dict[str, str]:
    """Describe this machine.

    Returns:
        Processor, number of cores, architecture and system.
    """
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                processor = line.partition(":")[2].strip()
                break
    return {
        "processor": processor,
        "cores": str(os.cpu_count()),
        "architecture": platform.machine(),
        "system": platform.system(),
    }


def table_of(plan: Mapping[str, Any], milliseconds: Mapping[str, float], versions: dict[str, str]) -> dict[str, Any]:
    """Put what was measured into a device table.

    Args:
        plan: ``parts.json``: of which network, and which measurement stands for which part.
        milliseconds: by measurement.
        versions: of the runtime.

    Returns:
        The table, as JSON holds it.
    """
    about = {name: plan[name] for name in ("schema", "backbone", "width", "input_shape", "classes", "task", "runtime")}
    return {
        **about,
        "threads": plan["threads"],
        "machine": machine(),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "call_ms": milliseconds[plan["call"]],
        "stem_ms": milliseconds[plan["stem"]],
        "blocks_ms": [milliseconds[name] for name in plan["blocks"]],
        "heads_ms": [milliseconds[name] for name in plan["heads"]],
        "whole_ms": {depth: milliseconds[name] for depth, name in plan["whole"].items()},
        "held_out_ms": {depth: milliseconds[name] for depth, name in plan["held_out"].items()},
    }


def main() -> int:
    """Measure the parts that lie beside this file.

    Returns:
        The exit code.
    """
    import numpy as np
    import onnxruntime  # type: ignore[import-untyped]

    parser = argparse.ArgumentParser(description="Measure the parts of a network on this machine.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.2, help="spent on each part")
    parser.add_argument("--out", help="file to write; printed without it")
    options = parser.parse_args()
    folder = Path(__file__).resolve().parent
    plan = json.loads((folder / "parts.json").read_text(encoding="utf-8"))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
    settings.log_severity_level = 4
    calls: dict[str, Callable[[], object]] = {}
    generator = np.random.default_rng(0)
    for name, inputs in plan["inputs"].items():
        path = folder / name / "model.onnx"
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        noise = generator.random(inputs["shape"]) * 255
        batch = {session.get_inputs()[0].name: noise.astype(inputs["dtype"])}
        calls[name] = partial(session.run, None, batch)
    measured = time_parts(plan, calls, options.seconds)
    versions = {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()}
    text = json.dumps(table_of({**plan, "threads": options.threads}, measured, versions), indent=2) + "\n"
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")
        sys.stdout.write(f"written to {options.out}; next: odn specialize RUN --max-latency-ms X --device FILE\n")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
