"""Writing the deployable directory: PyTorch's files, and one for every further runtime, each run before it is kept."""

import copy
import dataclasses
import json
import logging
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from odn.config import ExportConfig
from odn.data import DataSpec, Split, derive_seed
from odn.errors import OdnError, UsageError, require_extra
from odn.files import new_directory, read_bytes, remove, write_atomically
from odn.judging import Judge, write_inputs
from odn.layers import Deployed
from odn.manifest import MANIFEST_FILE, TOKENIZER_FILE, Exported, Manifest, TrainedOn, files_of, sha256, write_manifest
from odn.network import Prefix
from odn.runner import BATCH, Job, run_apart
from odn.runtimes import RUNTIMES, Export, Logits, Runtime, input_name, torch_session
from odn.runtimes.onnx import weight_bytes
from odn.sessions import run_all
from odn.storage import WEIGHT_TYPES, write_network
from odn.tasks import METRIC_NAMES
from odn.texts import Batch
from odn.weights import weights_of

_log = logging.getLogger("odn")
MAX_DIFFERENCE = 1e-4  # of a logit in fp32
_CALIBRATION_IMAGES, _FEWEST_CALIBRATION_IMAGES = 512, 32


def export(
    network: Prefix,
    directory: str | Path,
    data: DataSpec,
    *,
    config: ExportConfig | None = None,
    train: Split | None = None,
    valid: Split | None = None,
) -> Path:
    """Write a network as an artifact.

    A file for a further runtime is run in a process of its own on the validation split, and kept only when its logits
    are those of PyTorch, or, where it quantises, when its score is. The manifest says which were not kept and why.

    Args:
        network: as extracted from a named backbone.
        directory: the artifact; one that stands there is replaced.
        data: what the network was trained on: labels and preprocessing.
        config: further runtimes, and how the weights are stored; None writes what PyTorch needs.
        train: what quantisation is calibrated on; needed for further runtimes.
        valid: what files and shorter weights are compared on; needed for them.

    Returns:
        The directory.

    Raises:
        OdnError: when the directory holds something else, cannot be written, or a library is missing.
        UsageError: when there is nothing to compare on.
    """
    directory = Path(directory)
    config = config or ExportConfig()
    runtimes = [runtime for name, runtime in RUNTIMES.items() if name in config.to]
    check_runtimes(config, texts=data.texts)
    for runtime in runtimes:
        _require(runtime)
    if directory.exists():
        empty = directory.is_dir() and not any(directory.iterdir())
        if not empty and not (directory / MANIFEST_FILE).is_file():
            raise OdnError(f"{directory} exists and is not an artifact; choose another place")
    network = copy.deepcopy(network).cpu().eval()
    network.load_state_dict(weights_of(network), assign=True)  # training leaves them in another order of dimensions
    with new_directory(directory) as partial, tempfile.TemporaryDirectory() as folder:
        exports: list[Exported] = []
        deployed = Deployed(network, data.preprocessing, data.scaling).eval()
        weights = config.weights
        if config != ExportConfig():
            comparison = _comparison(valid, Path(folder))
            if weights != "fp32" and not _round(deployed, WEIGHT_TYPES[weights], comparison, config.max_drop):
                weights = "fp32"
        write_network(network, partial, kind=weights)
        if data.texts:
            write_atomically(partial / TOKENIZER_FILE, data.tokenizer)
        if runtimes:
            source = _export_of(deployed, data, train)
            exports = _export_each(runtimes, source, comparison, partial, config.max_drop)
        write_manifest(_manifest(data, exports, partial), partial)
    return directory


def _manifest(data: DataSpec, exports: Sequence[Exported], directory: Path) -> Manifest:
    """Describe the files that stand in a directory."""
    kept = [export.runtime for export in exports if export.kept]
    manifest = Manifest(
        labels=data.classes,
        preprocessing=data.preprocessing,
        task=data.task,
        metric=data.metric,
        target_mean=data.target_mean,
        target_std=data.target_std,
        dataset=TrainedOn(name=data.name, train=data.train_count, valid=data.valid_count, seed=data.seed),
        versions=_versions(kept),
        files={
            name: sha256(read_bytes(directory / name)) for runtime in ("torch", *kept) for name in files_of(runtime)
        },
        exports=tuple(exports),
    )
    for name in manifest.shared_files:
        manifest.files[name] = sha256(read_bytes(directory / name))
    return manifest


def check_runtimes(config: ExportConfig, *, texts: bool) -> None:
    """Refuse runtimes that cannot take what a network reads.

    Args:
        config: names them.
        texts: whether it reads texts.

    Raises:
        UsageError: with those that can.
    """
    wrong = [name for name in config.to if texts and not RUNTIMES[name].texts]
    if wrong:
        allowed = ", ".join(name for name, runtime in RUNTIMES.items() if runtime.texts)
        raise UsageError(f"--to {wrong[0]} is for networks that read images; for texts allowed: {allowed}")


def _require(runtime: Runtime) -> None:
    for module in runtime.needs:
        assert runtime.extra is not None
        require_extra(module, runtime.extra, f"exporting to {runtime.name}")


def _versions(runtimes: Sequence[str]) -> dict[str, str]:
    libraries = sorted({name for runtime in runtimes for name in RUNTIMES[runtime].needs})
    return {
        "odn": version("optimally-deep"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Comparison:
    """The validation split on disk, for processes to read."""

    inputs: Path
    judge: Judge

    def reference(self, network: Deployed) -> Logits:
        return run_all(torch_session(network), np.load(self.inputs, mmap_mode="r"), BATCH)


def _comparison(valid: Split | None, folder: Path) -> _Comparison:
    if valid is None:
        raise UsageError("exported files are compared on validation data; give valid=, e.g. load_data(...).valid")
    return _Comparison(inputs=folder / "inputs.npy", judge=write_inputs(valid, folder / "inputs.npy"))


def _export_of(network: Deployed, data: DataSpec, train: Split | None) -> Export:
    if train is None:
        raise UsageError("exporting needs training data to calibrate on; give train=, e.g. load_data(...).train")
    if not data.texts and len(train) < _FEWEST_CALIBRATION_IMAGES:
        _log.warning("calibrating on %d images; %d or more are advised", len(train), _FEWEST_CALIBRATION_IMAGES)
    generator = torch.Generator().manual_seed(derive_seed(data.seed, "calibrate"))
    chosen = torch.randperm(len(train), generator=generator)[:_CALIBRATION_IMAGES]
    batches = train.batches(_CALIBRATION_IMAGES, chosen, torch.device("cpu"))
    calibration: Batch = np.concatenate([inputs.numpy() for inputs, _ in batches])
    shape = "x".join(map(str, data.input_shape))
    form = f"uint8, batch x {shape}; scaling and normalisation are in the graph"
    if data.texts:
        form, calibration = f"int64 ids of {TOKENIZER_FILE}, batch x {shape}", calibration.astype(np.int64)
    metadata = {
        "odn": version("optimally-deep"),
        "labels": json.dumps(data.classes),
        "input": form,
    }
    return Export(network=network, calibration=calibration, metadata=metadata, input_name=input_name(data.texts))


def _export_each(
    runtimes: Sequence[Runtime], export: Export, comparison: _Comparison, directory: Path, max_drop: float
) -> list[Exported]:
    assert isinstance(export.network, Deployed)
    reference = comparison.reference(export.network)
    exports: dict[str, Exported] = {}
    waiting = list(runtimes)
    while waiting:
        runtime = waiting.pop(0)
        _log.info("exporting to %s", runtime.name)
        outcome = _export_one(runtime, export, comparison, reference, directory, max_drop)
        exports[runtime.name] = outcome
        if not outcome.kept:
            for name in runtime.files:
                remove(directory / name)
            # Where int8 loses too much, fp32 takes its place.
            if runtime.exact is not None and runtime.exact not in exports:
                waiting.append(RUNTIMES[runtime.exact])
    return list(exports.values())


def _export_one(
    runtime: Runtime,
    export: Export,
    comparison: _Comparison,
    reference: Logits,
    directory: Path,
    max_drop: float,
) -> Exported:
    judge = comparison.judge
    try:
        runtime.write(export, directory)
        job = Job(directory=str(directory), runtime=runtime.name, inputs=str(comparison.inputs))
        logits = run_apart(job).logits
        assert logits is not None
        score = judge.score(logits).value
    except OdnError as error:
        return Exported(runtime=runtime.name, kept=False, reason=str(error))
    drop, metric = judge.score(reference).value - score, METRIC_NAMES[judge.spec.metric]
    difference = judge.difference(logits, reference)
    reason = ""
    if runtime.exact is None and not difference <= MAX_DIFFERENCE:
        reason = f"its logits differ from PyTorch's by {difference:.2g}; allowed: {MAX_DIFFERENCE:g}"
    elif runtime.exact is not None and not drop <= max_drop:
        reason = (
            f"it costs {drop:.4f} of validation {metric}; allowed: {max_drop:g} (odn export --max-drop); fp32 is kept"
        )
    return Exported(
        runtime=runtime.name,
        kept=not reason,
        reason=reason,
        weight_bytes=weight_bytes(directory / runtime.files[0]) if runtime.engine == "onnxruntime" else None,
        max_difference=difference if np.isfinite(difference) else None,
        agreement=judge.agreement(logits, reference),
        valid_score=score,
        valid_score_drop=drop,
    )


def _round(network: Deployed, kind: torch.dtype, comparison: _Comparison, max_drop: float) -> bool:
    """Round a network's weights in place unless that costs too much, and tell whether it was done."""
    exact = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    judge = comparison.judge
    before = judge.score(comparison.reference(network)).value
    network.load_state_dict({name: t.to(kind).to(t.dtype) if t.is_floating_point() else t for name, t in exact.items()})
    drop = before - judge.score(comparison.reference(network)).value
    if drop <= max_drop:
        return True
    network.load_state_dict(exact)
    _log.warning("%s weights cost %.4f of the validation score, allowed: %g; fp32 is kept", kind, drop, max_drop)
    return False
