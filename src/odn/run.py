"""The line of a run, step by step: each step reads the run directory and adds to it."""

import dataclasses
import json
from collections.abc import Generator
from pathlib import Path
from typing import Protocol, TypeVar

from odn.allocator import reuse_freed_memory
from odn.backbones import find_backbone
from odn.checkpoint import Checkpoints
from odn.config import ExportConfig
from odn.data import Data, DataSpec, load_data
from odn.engine import finish
from odn.errors import OdnError, UsageError
from odn.expansion import expand_epochs, kept_name
from odn.exporting import export
from odn.extraction import FinetuneResult, finetune_epochs
from odn.files import exclusive, new_directory, remove, write_atomically
from odn.network import Prefix, build_network, partition
from odn.planning import ExpandResult, expand_result, next_step, plan_depths
from odn.recipe import RunConfig, difference, read_run_config, to_toml
from odn.records import EpochRecord, read_history
from odn.reporting import Report, report
from odn.storage import load_network, save_network
from odn.tables import from_table, to_table

Result = TypeVar("Result")

# What the steps after expansion add, in order: writing one makes those after it out of date.
_PRODUCTS = ("extracted", "finetuned", "artifact", "report.json", "report.html")


class Watch(Protocol):
    """Runs a training generator to its end, and may show its records on the way."""

    def __call__(self, epochs: Generator[EpochRecord, None, Result], /) -> Result:
        """Return the generator's result."""


def run(config: RunConfig, path: Path, *, force: bool = False, resume: bool = False, watch: Watch = finish) -> Report:
    """Do the whole line: data, partition, expand, extract, finetune, artifact, report.

    Args:
        config: every setting.
        path: the run directory.
        force: replace a run that stands there.
        resume: continue a run that stands there; steps that are complete are not done again.
        watch: runs the training generators.

    Returns:
        The report.
    """
    data = _expand(config, path, force=force, resume=resume, watch=watch)[0]
    with exclusive(path):
        if not (path / "extracted").is_dir():
            extract_run(path)
        if not (path / "finetuned").is_dir():
            finetune_run(path, resume=resume, watch=watch, data=data)
        export_run(path, data=data)
        return report_run(path, data=data)


def expand_run(
    config: RunConfig, path: Path, *, force: bool = False, resume: bool = False, watch: Watch = finish
) -> ExpandResult:
    """Expand a network and keep the weights of every depth tried.

    Args:
        config: every setting.
        path: the run directory.
        force: replace a run that stands there.
        resume: continue a run that stands there.
        watch: runs the training generator.

    Returns:
        The chosen depth and how it was found.
    """
    return _expand(config, path, force=force, resume=resume, watch=watch)[1]


def _expand(config: RunConfig, path: Path, *, force: bool, resume: bool, watch: Watch) -> tuple[Data, ExpandResult]:
    _check_directory(config, path, force=force, resume=resume)
    # Everything that can be wrong with the request shows before the first byte is written.
    find_backbone(config.backbone, config.width)
    data = _load_data(config)
    network = partition(config.backbone, data.spec, width=config.width, seed=config.seed)
    depths = plan_depths(config.expand, network.max_depth)
    if resume:
        _check_data(path, data)
    else:
        if path.is_dir():
            with exclusive(path):  # a run that is going on is not replaced
                pass
        _create(config, data, path)
    reuse_freed_memory()
    with exclusive(path):
        checkpoints = Checkpoints("expand", path, resume=resume)
        if next_step(checkpoints.records, depths, config.expand) is not None:
            _clear_after(path, None)
            watch(
                expand_epochs(
                    network,
                    data.train,
                    data.valid,
                    config=config.expand,
                    training=config.train,
                    seed=config.seed,
                    checkpoints=checkpoints,
                )
            )
    return data, expand_result(checkpoints.records, depths, config.expand)


def extract_run(path: Path, depth: int | None = None) -> Prefix:
    """Write the network of one depth to ``RUN/extracted``.

    Args:
        path: the run directory, expanded.
        depth: blocks to keep; None takes the depth that expansion chose.

    Returns:
        The extracted network.

    Raises:
        OdnError: when expansion has not finished.
        UsageError: when it did not try that depth.
    """
    config, data = read_run_config(path / "config.toml"), _read_data_spec(path)
    records = [record for record in read_history(path / "history.jsonl") if record.verb == "expand"]
    if depth is None:
        full = build_network(config.backbone, data.input_shape, len(data.classes), width=config.width, device="meta")
        depths = plan_depths(config.expand, full.max_depth)
        if next_step(records, depths, config.expand) is not None:
            raise OdnError(f"expansion of {path} has not finished; continue it with: odn run --run {path} --resume")
        depth = expand_result(records, depths, config.expand).depth
    tried = sorted({record.depth for record in records})
    if depth not in tried:
        raise UsageError(f"depth {depth} was not trained; allowed: {', '.join(map(str, tried)) or 'none yet'}")
    small = load_network(path / "checkpoints" / kept_name(depth))
    with exclusive(path):
        _clear_after(path, None)
        save_network(small, path / "extracted")
    return small


def finetune_run(
    path: Path,
    *,
    epochs: int | None = None,
    resume: bool = False,
    watch: Watch = finish,
    data: Data | None = None,
) -> FinetuneResult:
    """Fine-tune the extracted network and write it to ``RUN/finetuned``.

    Args:
        path: the run directory, with ``extracted``.
        epochs: instead of the run's own setting, which it replaces.
        resume: continue where an interrupted fine-tuning stands.
        watch: runs the training generator.
        data: the dataset of the run where it is loaded already.

    Returns:
        Validation accuracy before and after.

    Raises:
        OdnError: when no network has been extracted.
    """
    config = read_run_config(path / "config.toml")
    if epochs is not None and epochs != config.finetune.epochs:
        # The run's settings stay what it was done with, so that resuming follows the same schedule.
        config = dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, epochs=epochs))
        write_atomically(path / "config.toml", to_toml(config))
    if not (path / "extracted").is_dir():
        raise OdnError(f"{path} has no extracted network; run: odn extract {path}")
    small = load_network(path / "extracted")
    data = data or _reload_data(config, path)
    reuse_freed_memory()
    with exclusive(path):
        checkpoints = Checkpoints("finetune", path, resume=resume)
        _clear_after(path, "extracted")
        result = watch(
            finetune_epochs(
                small,
                data.train,
                data.valid,
                config=config.finetune,
                training=config.train,
                seed=config.seed,
                checkpoints=checkpoints,
            )
        )
        save_network(small.cpu(), path / "finetuned")
    return result


def export_run(path: Path, config: ExportConfig | None = None, *, data: Data | None = None) -> Path:
    """Write the artifact from the fine-tuned network, or from the extracted one where there is none.

    Args:
        path: the run directory, with ``extracted`` or ``finetuned``.
        config: instead of the run's own setting.
        data: the dataset of the run where it is loaded already.

    Returns:
        The artifact's directory.

    Raises:
        OdnError: when no network has been extracted.
    """
    spec = _read_data_spec(path)
    source = next((path / name for name in ("finetuned", "extracted") if (path / name).is_dir()), None)
    if source is None:
        raise OdnError(f"{path} has no extracted network; run: odn extract {path}")
    small = load_network(source)
    run_config = read_run_config(path / "config.toml")
    config = config or run_config.export
    if data is None and config != ExportConfig():
        data = _reload_data(run_config, path)
    train, valid = (data.train, data.valid) if data else (None, None)
    with exclusive(path):
        _clear_after(path, "finetuned")
        return export(small, path / "artifact", spec, config=config, train=train, valid=valid)


def report_run(path: Path, *, data: Data | None = None) -> Report:
    """Measure the artifact, look at the test split, and write the report.

    Args:
        path: the run directory, with ``artifact``.
        data: the dataset of the run where it is loaded already.

    Returns:
        The report.
    """
    data = data or _reload_data(read_run_config(path / "config.toml"), path)
    with exclusive(path):
        return report(path, test=data.test, valid=data.valid)


def _load_data(config: RunConfig) -> Data:
    return load_data(
        config.dataset, data_dir=config.data_dir, seed=config.seed, config=config.data, augment=config.augment
    )


def _reload_data(config: RunConfig, path: Path) -> Data:
    data = _load_data(config)
    _check_data(path, data)
    return data


def _read_data_spec(path: Path) -> DataSpec:
    file = path / "data.json"
    if not file.is_file():
        raise OdnError(f"{path} is not a run directory: it has no data.json; start one with odn run")
    try:
        return from_table(DataSpec, json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, UsageError) as error:
        raise OdnError(f"{file} is damaged ({error}); start anew with --force") from error


def _check_data(path: Path, data: Data) -> None:
    if _read_data_spec(path) != data.spec:
        raise OdnError(f"{data.spec.name} is not the data that {path} was started with; restore it, or use --force")


def _check_directory(config: RunConfig, path: Path, *, force: bool, resume: bool) -> None:
    if force and resume:
        raise UsageError("--force and --resume exclude each other; give one of them")
    if resume:
        stored = read_run_config(path / "config.toml")
        if stored != config:
            raise UsageError(f"{path} was started with {difference(stored, config)}; leave that out to resume")
    elif path.is_dir() and any(path.iterdir()):
        if not all((path / name).is_file() for name in ("config.toml", "data.json")):
            raise UsageError(f"{path} exists and is not a run directory; choose another with --run")
        if not force:
            raise UsageError(f"{path} holds a run; continue it with --resume, replace it with --force, or choose --run")
    elif path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; choose a directory with --run")


def _create(config: RunConfig, data: Data, path: Path) -> None:
    with new_directory(path) as partial:
        write_atomically(partial / "data.json", json.dumps(to_table(data.spec), indent=2) + "\n")
        write_atomically(partial / "config.toml", to_toml(config))


def _clear_after(path: Path, product: str | None) -> None:
    if product is None:
        Checkpoints("finetune", path)  # a new network is fine-tuned from the start
    start = 0 if product is None else _PRODUCTS.index(product) + 1
    for name in _PRODUCTS[start:]:
        remove(path / name)
