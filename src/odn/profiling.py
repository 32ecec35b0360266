"""Measuring the parts of a backbone on this machine, or writing them to files for another one."""

import json
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odn.devices import SCHEMA, DeviceTable, parse_device_table
from odn.errors import OdnError, UsageError, require_extra
from odn.files import new_directory, write_atomically
from odn.layers import Deployed
from odn.network import PartitionedNetwork
from odn.runtimes import RUNTIMES, Export, torch_session
from odn.stopwatch import table_of, time_parts
from odn.texts import AnyPreprocessing

RUNTIME_NAMES = ("torch", "onnx", "openvino")
_PATIENCE_SECONDS = 3600
_MOST_HELD_OUT = 6


def measure_device(
    network: PartitionedNetwork,
    preprocessing: AnyPreprocessing,
    *,
    runtime: str = "onnx",
    threads: int = 1,
    seconds: float = 0.2,
) -> DeviceTable:
    """Measure the parts of a backbone, and some depths whole, on this machine.

    Args:
        network: of a named backbone, on the CPU.
        preprocessing: part of the stem, as of deployed networks.
        runtime: ``torch``, ``onnx`` or ``openvino``.
        threads: to compute with.
        seconds: spent on each part.

    Returns:
        The table.

    Raises:
        UsageError: when there is no such runtime here.
        OdnError: when its library is missing, or a part cannot be written for it.
    """
    if runtime not in RUNTIME_NAMES:
        raise UsageError(f"unknown runtime '{runtime}'; allowed: {', '.join(RUNTIME_NAMES)}")
    modules, plan = _plan(network, preprocessing, runtime)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if runtime == "onnx":
            _write_parts(modules, plan, folder)
            out = folder / "table.json"
            command = [sys.executable, folder / "measure.py", "--threads", threads, "--seconds", seconds, "--out", out]
            done = subprocess.run(
                list(map(str, command)), capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False
            )
            if done.returncode != 0:
                words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                raise OdnError(f"measuring failed in a process of its own: {words[-1][:300]}")
            content = json.loads(out.read_text())
        else:
            calls = {}
            for part, (module, example) in modules.items():
                if runtime == "torch":
                    session = torch_session(module, threads)
                else:
                    _write(RUNTIMES[runtime].name, module, example, folder / part)
                    session = RUNTIMES[runtime].open(folder / part, threads)
                inputs = example[:1].numpy()
                calls[part] = partial(session, inputs)
            measured = time_parts(plan, calls, seconds)
            library = {"torch": str(torch.__version__)} if runtime == "torch" else {runtime: version(runtime)}
            content = table_of({**plan, "threads": threads}, measured, library)
    return parse_device_table(content, "what was measured")


def write_parts(network: PartitionedNetwork, preprocessing: AnyPreprocessing, directory: Path) -> None:
    """Write the parts of a backbone as ONNX files, with a script that measures them where onnxruntime is.

    Args:
        network: of a named backbone, on the CPU.
        preprocessing: part of the stem, as of deployed networks.
        directory: receives ``measure.py``, ``parts.json`` and a folder per part.

    Raises:
        UsageError: when something else stands there.
    """
    if directory.exists() and not (directory / "parts.json").is_file():
        raise UsageError(f"{directory} exists and holds no parts of a network; choose another place with --parts")
    modules, plan = _plan(network, preprocessing, "onnx")
    with new_directory(directory) as partial:
        partial.mkdir(parents=True)
        _write_parts(modules, plan, partial)


def _plan(
    network: PartitionedNetwork, preprocessing: AnyPreprocessing, runtime: str
) -> tuple[dict[str, tuple[nn.Module, Tensor]], dict[str, Any]]:
    """Choose what is measured: each different part once, a few depths whole; and what stands for what."""
    spec = network.spec
    if spec is None:
        raise UsageError("a network built by hand has no name that a table could be recognised by")
    if len(spec.input_shape) == 1:
        raise UsageError(
            f"{spec.backbone} reads texts; the parts of such networks are not timed, only whole ones: odn benchmark"
        )
    network.eval()
    modules: dict[str, tuple[nn.Module, Tensor]] = {}
    known: dict[tuple[str, tuple[int, ...]], str] = {}

    def add(name: str, module: nn.Module, example: Tensor) -> str:
        same = known.setdefault((repr(module), tuple(example.shape)), name)
        if same == name:
            modules[name] = (module.eval(), example)
        return same

    images = torch.from_numpy(preprocessing.noise(2))
    call = add("call", nn.Flatten(), torch.zeros(2, 1))
    stem = add("stem", Deployed(network.stem, preprocessing), images)
    blocks, heads = [], []
    with torch.inference_mode():
        features = modules["stem"][0](images)
        for depth, (block, head) in enumerate(zip(network.blocks, network.heads, strict=True), 1):
            blocks.append(add(f"block_{depth:03d}", block, features))
            features = block(features)
            heads.append(add(f"head_{depth:03d}", head, features))
    most = network.max_depth
    anchors = sorted({1, most, -(-most // 3), -(-2 * most // 3)})
    rest = [depth for depth in range(1, most + 1) if depth not in anchors]
    held_out = rest[:: max(1, -(-len(rest) // _MOST_HELD_OUT))]
    whole = {
        str(depth): add(f"whole_{depth:03d}", Deployed(network.prefix(depth), preprocessing), images)
        for depth in sorted({*anchors, *held_out})
    }
    return modules, {
        "schema": SCHEMA,
        "backbone": spec.backbone,
        "width": spec.width,
        "input_shape": list(spec.input_shape),
        "classes": spec.classes,
        "task": spec.task,
        "runtime": runtime,
        "call": call,
        "stem": stem,
        "blocks": blocks,
        "heads": heads,
        "whole": {str(depth): whole[str(depth)] for depth in anchors},
        "held_out": {str(depth): whole[str(depth)] for depth in held_out},
        "inputs": {
            name: {"shape": [1, *example.shape[1:]], "dtype": str(example.numpy().dtype)}
            for name, (_, example) in modules.items()
        },
    }


def _write_parts(modules: dict[str, tuple[nn.Module, Tensor]], plan: dict[str, Any], folder: Path) -> None:
    for name, (module, example) in modules.items():
        _write("onnx", module, example, folder / name)
    write_atomically(folder / "parts.json", json.dumps(plan, indent=2) + "\n")
    shutil.copyfile(Path(__file__).with_name("stopwatch.py"), folder / "measure.py")


def _write(runtime: str, module: nn.Module, example: Tensor, folder: Path) -> None:
    entry = RUNTIMES[runtime]
    for needed in entry.needs:
        assert entry.extra is not None
        require_extra(needed, entry.extra, f"measuring in {runtime}")
    folder.mkdir(parents=True)
    inputs = np.ascontiguousarray(example.numpy())
    entry.write(Export(network=module, calibration=inputs, metadata={}, input_name="inputs"), folder)
