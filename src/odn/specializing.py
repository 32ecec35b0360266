"""One training, many devices: choose a depth for a target and a device, and make a run of its own of it."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save

from odn.choosing import Candidate, Constraints, Judged, choose
from odn.config import CompressConfig, ExpandConfig, ExportConfig
from odn.curve import Curve, curve_of
from odn.data import Data
from odn.devices import DeviceTable, check_device
from odn.engine import Watch, finish
from odn.errors import UsageError
from odn.evaluation import evaluate, recalibrate
from odn.files import new_directory, read_bytes, write_atomically
from odn.manifest import Exported, read_manifest
from odn.measure import measure_cost
from odn.network import rebuild
from odn.processes import training_device
from odn.recipe import RunConfig, read_run_config
from odn.records import read_history, write_history
from odn.run import compress_run, export_run, finetune_run
from odn.rundata import read_data_spec, reload_data
from odn.rundir import is_run, write_config
from odn.starting import read_start, write_start
from odn.stopping import held, held_score
from odn.storage import load_network, save_network, tensors_of
from odn.trained import load_depth, outcome_of


@dataclass(frozen=True, kw_only=True)
class Specialized:
    """A network made for one purpose.

    Attributes:
        directory: a run directory of its own, with ``extracted`` and ``artifact``.
        depth: the depth chosen.
        valid_score: of the network in the artifact.
        target: validation score that it had to hold; None where any would do.
        reached: whether it does, with the run's confidence, after all that was done to it.
        exports: of each further runtime that was asked for, kept or not.
        rows: every depth with what became of it.
        seconds: that it took, data included.
    """

    directory: Path
    depth: int
    valid_score: float
    target: float | None
    reached: bool
    exports: tuple[Exported, ...]
    rows: tuple[Judged, ...]
    seconds: float


def specialize(
    run: str | Path,
    constraints: Constraints,
    *,
    device: DeviceTable | None = None,
    out: str | Path | None = None,
    finetune_epochs: int = 0,
    compress: CompressConfig | None = None,
    export: ExportConfig | None = None,
    force: bool = False,
    watch: Watch = finish,
) -> Specialized:
    """Take the network for one target and device out of a finished training, on validation data alone.

    Args:
        run: a run directory whose backbone is trained: with ``--mode one-shot`` at every depth, else at those that
            expansion tried.
        constraints: all have to hold; none at all stands for the run's own target.
        device: latencies on the device, for ``constraints.max_latency_ms``.
        out: receives everything, as a run directory of its own; None means ``RUN/specialized/depth_00D``.
        finetune_epochs: epochs over which the network is annealed on its own; 0 takes it as it is.
        compress: narrow it in the end.
        export: files for further runtimes; None writes the one for the runtime of the device.
        force: replace what stands at ``out``.
        watch: runs the training generators.

    Returns:
        What was chosen, and why.

    Raises:
        UsageError: when a latency is bounded without a device, the device is of another network or of a runtime that is
            not exported to, or ``out`` is taken.
        OdnError: when training has not finished, or nothing fits; with what is possible.
    """
    begin = time.perf_counter()
    run = Path(run)
    config = read_run_config(run / "config.toml")
    result = outcome_of(run, config)
    if not constraints.given:
        constraints = dataclasses.replace(constraints, target=result.target_accuracy or None)
    export = export or ExportConfig(to=_files_for(device))
    _check_device(run, constraints, device, export)
    curve = curve_of(result.records)
    goal = constraints.goal(max(record.valid_score for record in curve))
    expand = dataclasses.replace(
        config.expand,
        target_accuracy=max(goal or 0.0, 0.0) or config.expand.target_accuracy,
        # What stays within the best was seen on the very split that it is judged on, as an automatic target was.
        confidence=config.expand.confidence if constraints.within is None else 0.0,
    )
    rows = choose(candidates(run, curve, expand, device), constraints)
    depth = next(row.candidate.depth for row in rows if row.verdict == "chosen")
    directory = Path(out) if out else run / "specialized" / f"depth_{depth:03d}"
    _check_place(directory, run, force=force)
    config = dataclasses.replace(
        config,
        expand=expand,
        finetune=dataclasses.replace(config.finetune, epochs=finetune_epochs),
        compress=compress or CompressConfig(),
        export=export,
    )
    data = reload_data(config, run)
    _begin(run, directory, config, depth, data)
    if finetune_epochs:
        finetune_run(directory, watch=watch, data=data)
    if config.compress.asked:
        compress_run(directory, watch=watch, data=data)
    artifact = export_run(directory, data=data)
    score = evaluate(load_network(artifact).to(training_device()), data.valid)
    least = held(score.metric, score.value, score.error, score.count, expand)
    return Specialized(
        directory=directory,
        depth=depth,
        valid_score=score.value,
        target=goal,
        reached=goal is None or least >= goal,
        exports=read_manifest(artifact).exports,
        rows=tuple(rows),
        seconds=time.perf_counter() - begin,
    )


def _check_device(run: Path, constraints: Constraints, device: DeviceTable | None, export: ExportConfig) -> None:
    if constraints.max_latency_ms is not None and device is None:
        raise UsageError(
            "--max-latency-ms needs --device TABLE.json; measure one with: odn profile RUN --latency --out TABLE.json"
        )
    if device is not None and not set(_files_for(device)) <= set(export.to):
        raise UsageError(
            f"the device table was measured in {device.runtime}, the artifact gets {', '.join(('torch', *export.to))}; "
            f"add --to {device.runtime}, or measure another one with: odn profile {run} --latency --runtime torch"
        )


def _files_for(device: DeviceTable | None) -> tuple[str, ...]:
    """Say what a network needs besides PyTorch's weights to run as a device table was measured."""
    return () if device is None or device.runtime == "torch" else (device.runtime,)


def candidates(run: Path, curve: Curve, config: ExpandConfig, device: DeviceTable | None = None) -> list[Candidate]:
    """Describe the network of every depth that a run trained.

    Args:
        run: the run directory.
        curve: how they do.
        config: how sure a target has to be held.
        device: what predicts their latency.

    Returns:
        By ascending depth.

    Raises:
        UsageError: when the device was measured with another network.
    """
    rows = []
    spec = load_depth(run, curve[-1].depth).spec
    assert spec is not None
    whole = rebuild(spec)
    if device is not None:
        check_device(device, spec, whole.max_depth)
    for record in curve:
        prefix = whole.prefix(record.depth)
        cost = measure_cost(prefix, spec.input_shape, spec.input_dtype)
        rows.append(
            Candidate(
                depth=record.depth,
                valid_score=record.valid_score,
                held_score=held_score(record, config),
                parameters=cost.parameters,
                macs=cost.macs,
                file_bytes=len(save(tensors_of(prefix))),
                latency_ms=device.predict_ms(record.depth) if device else None,
            )
        )
    return rows


def _check_place(directory: Path, run: Path, *, force: bool) -> None:
    """Refuse to put the network where something else stands, above all the training that it is taken from."""
    if run.resolve().is_relative_to(directory.resolve()):
        raise UsageError(f"--out {directory} holds the run itself; choose another place")
    if directory.is_dir() and any(directory.iterdir()) and not is_run(directory):
        raise UsageError(f"{directory} exists and is not a run directory; choose another place with --out")
    if directory.exists() and not force:
        raise UsageError(f"{directory} exists; replace it with --force, or choose another place with --out")


def _begin(run: Path, directory: Path, config: RunConfig, depth: int, data: Data) -> None:
    """Start a run directory from the network of one depth, with the records of the training it comes from."""
    network = load_depth(run, depth).to(training_device())
    # Averaged weights have these statistics already; taken anew they are those of this training split for certain.
    recalibrate(network, data.train, config.train.recalibration_images, seed=config.seed)
    start = read_start(run)
    with new_directory(directory) as partial:
        write_atomically(partial / "data.json", read_bytes(run / "data.json"))
        write_config(config, partial)
        records = [record for record in read_history(run / "history.jsonl") if record.verb in ("expand", "oneshot")]
        write_history(partial / "history.jsonl", records)
        if start is not None:
            write_start(start, partial)
        save_network(network.cpu(), partial / "extracted")
    assert read_data_spec(directory) == data.spec
