"""The verb ``odn route``: calibrate exits for a run of all depths, and put the stages into its artifact."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odn.data import DataSpec, Split
from odn.devices import DeviceTable
from odn.errors import OdnError, UsageError, require_extra
from odn.exporting import MAX_DIFFERENCE
from odn.files import read_bytes, remove, write_atomically
from odn.gates import Policy
from odn.judging import write_inputs
from odn.layers import Deployed
from odn.manifest import Exported, read_manifest, sha256, write_manifest
from odn.network import PartitionedNetwork
from odn.oneshot import KEPT
from odn.processes import first_only
from odn.recipe import read_run_config
from odn.records import read_history
from odn.route_record import Routing, write_routing
from odn.routing import Routed, RoutedNetwork, route
from odn.rundata import reload_data
from odn.rundir import held
from odn.runner import Job, run_apart
from odn.runtimes import Export, input_name, routed
from odn.storage import load_partitioned
from odn.trained import outcome_of, require_backbone, together


class NoExitError(OdnError):
    """No exit saves anything within what is allowed.

    Attributes:
        static_depth: the depth to take instead.
    """

    def __init__(self, message: str, static_depth: int) -> None:
        super().__init__(message)
        self.static_depth = static_depth


@first_only
def route_run(
    path: Path,
    *,
    max_drop: float | None = None,
    mean_cost: float | None = None,
    policy: Policy | None = None,
    device: DeviceTable | None = None,
) -> Routing:
    """Let easy inputs leave the network of a run early, and add it to the artifact as the runtime ``routed``.

    Args:
        path: the run directory, of all depths trained at once, with ``artifact``.
        max_drop: accuracy that may be lost against the deepest head, a fraction.
        mean_cost: instead of it, the most that an input may take in the mean.
        policy: what makes a head sure; None tries all.
        device: latencies to count in instead of multiply-accumulates.

    Returns:
        What was found; it stands in ``RUN/routing.json`` too.

    Raises:
        UsageError: when the depths of the run were not trained together, or the table is of another runtime.
        OdnError: when the run is not finished, or the stages do not give what PyTorch gives.
        NoExitError: when no exit saves anything; nothing is written then.
    """
    begin = time.perf_counter()
    require_extra("onnxruntime", "onnx", "routing")
    if device is not None and device.runtime != "onnx":
        raise UsageError(
            f"the device table was measured in {device.runtime}, the stages run in onnx; measure one with: "
            f"odn profile {path} --latency --runtime onnx"
        )
    config = read_run_config(path / "config.toml")
    outcome_of(path, config)
    if not together(read_history(path / "history.jsonl")):
        raise UsageError(f"the depths of {path} were trained apart, so that they share no blocks; use --mode one-shot")
    require_backbone(path)
    if not (path / "artifact").is_dir():
        raise OdnError(f"{path} has no artifact to add the stages to; run: odn export {path}")
    data = reload_data(config, path)
    network = load_partitioned(path / "checkpoints" / KEPT)
    found = route(
        network,
        data.valid,
        train=data.train,
        max_drop=max_drop,
        mean_cost=mean_cost,
        policy=policy,
        device=device,
    )
    if not found.found.route.exits and network.max_depth > 1:
        goal = f"a drop of {max_drop:g}" if max_drop is not None else "that mean cost"
        raise NoExitError(
            f"no exit saves anything within {goal} on the {found.found.samples} validation samples that check it; "
            f"nothing was written. Allow more, or take a static network: odn specialize {path} --depth "
            f"{found.static_depth}",
            found.static_depth,
        )
    network.cpu()
    with held(path), tempfile.TemporaryDirectory() as folder:
        outcome = _write(found, network, data.spec, data.valid, Path(folder))
        routing = _summary(found, time.perf_counter() - begin)
        _install(Path(folder), outcome, routing, path)
    return routing


def _summary(found: Routed, seconds: float) -> Routing:
    best = found.found
    return Routing(
        policy=best.route.policy,
        exits=best.route.exits,
        last=best.route.last,
        samples=best.samples,
        accuracy=best.accuracy,
        full_accuracy=best.full_accuracy,
        mean_cost=best.mean_cost,
        full_cost=best.full_cost,
        static_depth=found.static_depth,
        static_accuracy=found.static_accuracy,
        static_cost=found.static_cost,
        costs=tuple(found.costs.of(best.route.depths).values()),
        unit=found.unit,
        worthwhile=found.worthwhile,
        seconds=round(seconds, 3),
    )


class _First(nn.Module):
    """The first stage: it reads what a deployed network reads."""

    def __init__(self, hop: nn.Module, deployed: Deployed) -> None:
        super().__init__()
        self.hop, self.preprocessing = hop, deployed.preprocessing

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.hop(self.preprocessing.prepare(inputs))
        return found


class _Last(nn.Module):
    """The last stage: nobody reads its features."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.stage(inputs)[1]
        return logits


def _write(found: Routed, network: PartitionedNetwork, data: DataSpec, valid: Split, folder: Path) -> Exported:
    """Write the stages, run them in a process of their own, and refuse them where they do not agree."""
    routed.write_stages(_stages(found.network, network, data), found.found.route, folder)
    judge = write_inputs(valid, folder / "inputs.npy")
    logits = run_apart(Job(directory=str(folder), runtime="routed", inputs=str(folder / "inputs.npy"))).logits
    assert logits is not None
    expected = _in_torch(found.network, data, np.load(folder / "inputs.npy", mmap_mode="r"))
    apart = np.abs(logits - expected).max(1)
    # An input whose confidence lies within rounding of a threshold may leave at another exit.
    astray = int((~(apart <= MAX_DIFFERENCE)).sum())
    if astray > max(1, 0.001 * len(apart)):
        raise OdnError(f"the stages differ from PyTorch on {astray} inputs; not kept")
    return Exported(
        runtime="routed",
        kept=True,
        max_difference=float(np.quantile(apart, 0.999)),
        agreement=judge.agreement(logits, expected),
        valid_score=judge.score(logits).value,
        valid_score_drop=judge.score(expected).value - judge.score(logits).value,
    )


def _install(folder: Path, outcome: Exported, routing: Routing, run: Path) -> None:
    """Put stages into an artifact; one that is interrupted here has none rather than some of another route."""
    artifact = run / "artifact"
    manifest = read_manifest(artifact)
    plain = dataclasses.replace(
        manifest,
        files={name: digest for name, digest in manifest.files.items() if name != routed.FILE},
        exports=tuple(export for export in manifest.exports if export.runtime != "routed"),
    )
    write_manifest(plain, artifact)
    remove(artifact / routed.FOLDER)
    (artifact / routed.FOLDER).mkdir()
    for stage in (*routed.read_stages(folder).files, routed.FILE):
        write_atomically(artifact / stage, read_bytes(folder / stage))
    write_routing(routing, run)
    files = {**plain.files, routed.FILE: sha256(read_bytes(artifact / routed.FILE))}
    write_manifest(dataclasses.replace(plain, files=files, exports=(*plain.exports, outcome)), artifact)


def _stages(network: RoutedNetwork, whole: PartitionedNetwork, data: DataSpec) -> list[Export]:
    exports = []
    inputs: Any = data.preprocessing.noise(2)
    hops = list(network.cpu().eval().hops)
    for number, hop in enumerate(hops, 1):
        stage: nn.Module = _First(hop, Deployed(whole, data.preprocessing)) if number == 1 else hop
        with torch.inference_mode():
            features = stage(torch.from_numpy(inputs))[0].numpy()
        name = input_name(data.texts) if number == 1 else "features_in"
        module = (_Last(stage) if number == len(hops) else stage).eval()
        exports.append(Export(network=module, calibration=inputs, metadata={}, input_name=name))
        inputs = np.ascontiguousarray(features)
    return exports


def _in_torch(network: RoutedNetwork, data: DataSpec, inputs: Any) -> Any:
    network = network.cpu().eval()
    parts = []
    for start in range(0, len(inputs), 64):
        batch = torch.from_numpy(np.array(inputs[start : start + 64]))
        parts.append(network(data.preprocessing.prepare(batch))[0].numpy())
    return np.concatenate(parts)
