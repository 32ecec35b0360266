"""The line of a run, step by step: each step reads the run directory and adds to it.

Of several processes (``torchrun``) all train and the first one writes; the others need to see its run directory.
"""

import dataclasses
from collections.abc import Generator
from pathlib import Path
from typing import Protocol, TypeVar

from odn.allocator import reuse_freed_memory
from odn.artifact import export
from odn.backbones import find_backbone
from odn.checkpoint import Checkpoints
from odn.data import Data, load_data
from odn.engine import finish
from odn.errors import OdnError, UsageError
from odn.expansion import expand_epochs, kept_name
from odn.extraction import FinetuneResult, finetune_epochs
from odn.network import Prefix, build_network, partition
from odn.processes import agree, first_on_each_machine, first_only
from odn.recipe import RunConfig, read_run_config
from odn.records import EpochRecord, read_history
from odn.reporting import Report, report
from odn.rundir import (
    check_data,
    check_directory,
    clear_after,
    create_directory,
    held,
    read_data_spec,
    write_config,
)
from odn.search import ExpandResult, expand_result, next_step, plan_depths
from odn.storage import load_network, save_network

Result = TypeVar("Result")


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
    with held(path):
        if agree(not (path / "extracted").is_dir()):
            extract_run(path)
        if agree(not (path / "finetuned").is_dir()):
            finetune_run(path, resume=resume, watch=watch, data=data)
        export_run(path)
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
    check_directory(config, path, force=force, resume=resume)
    # Everything that can be wrong with the request shows before the first byte is written.
    find_backbone(config.backbone, config.width)
    data = _load_data(config)
    network = partition(config.backbone, data.spec, width=config.width, seed=config.seed)
    depths = plan_depths(config.expand, network.max_depth)
    if resume:
        check_data(path, data.spec)
    else:
        create_directory(config, data.spec, path)
    reuse_freed_memory()
    with held(path):
        checkpoints = Checkpoints("expand", path, resume=resume)
        if next_step(checkpoints.records, depths, config.expand) is not None:
            clear_after(path, None)
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


@first_only
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
    config, data = read_run_config(path / "config.toml"), read_data_spec(path)
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
    with held(path):
        clear_after(path, None)
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
    config = first_only(read_run_config)(path / "config.toml")
    if epochs is not None and epochs != config.finetune.epochs:
        # The run's settings stay what it was done with, so that resuming follows the same schedule.
        config = dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, epochs=epochs))
        with held(path):
            first_only(write_config)(config, path)
    if not (path / "extracted").is_dir():
        raise OdnError(f"{path} has no extracted network; run: odn extract {path}")
    small = load_network(path / "extracted")
    data = data or _reload_data(config, path)
    reuse_freed_memory()
    with held(path):
        checkpoints = Checkpoints("finetune", path, resume=resume)
        clear_after(path, "extracted")
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
        _keep_finetuned(path, small.cpu())
    return result


@first_only
def export_run(path: Path) -> Path:
    """Write the artifact from the fine-tuned network, or from the extracted one where there is none.

    Args:
        path: the run directory, with ``extracted`` or ``finetuned``.

    Returns:
        The artifact's directory.

    Raises:
        OdnError: when no network has been extracted.
    """
    data = read_data_spec(path)
    source = next((path / name for name in ("finetuned", "extracted") if (path / name).is_dir()), None)
    if source is None:
        raise OdnError(f"{path} has no extracted network; run: odn extract {path}")
    small = load_network(source)
    with held(path):
        clear_after(path, "finetuned")
        return export(small, path / "artifact", data)


@first_only
def report_run(path: Path, *, data: Data | None = None) -> Report:
    """Measure the artifact, look at the test split, and write the report.

    Args:
        path: the run directory, with ``artifact``.
        data: the dataset of the run where it is loaded already.

    Returns:
        The report.
    """
    data = data or _reload_data(read_run_config(path / "config.toml"), path)
    with held(path):
        return report(path, test=data.test, valid=data.valid)


def _load_data(config: RunConfig) -> Data:
    with first_on_each_machine():  # it may have to download
        return load_data(
            config.dataset, data_dir=config.data_dir, seed=config.seed, config=config.data, augment=config.augment
        )


def _reload_data(config: RunConfig, path: Path) -> Data:
    data = _load_data(config)
    check_data(path, data.spec)
    return data


@first_only
def _keep_finetuned(path: Path, network: Prefix) -> None:
    save_network(network, path / "finetuned")
