"""The line of a run, step by step: each step reads the run directory and adds to it."""

import dataclasses
from pathlib import Path

from odn.allocator import reuse_freed_memory
from odn.checkpoint import Checkpoints
from odn.compression import CompressResult, compress_epochs
from odn.config import CompressConfig, ExportConfig
from odn.curve import settle_goal
from odn.data import Data
from odn.engine import Watch, finish
from odn.errors import OdnError, UsageError
from odn.exporting import export
from odn.extraction import FinetuneResult, finetune_epochs
from odn.network import Prefix
from odn.outcome import finetuning_of
from odn.processes import agree, first_only
from odn.pruning import check_request
from odn.recipe import RunConfig, read_run_config
from odn.records import read_history
from odn.reporting import Report, report
from odn.rundata import read_data_spec, reload_data
from odn.rundir import clear_after, held, keep, newest_network, planned_depths, write_config
from odn.starting import read_start
from odn.storage import load_network, save_network
from odn.trained import load_depth, outcome_of
from odn.training import train_run


def run(config: RunConfig, path: Path, *, force: bool = False, resume: bool = False, watch: Watch = finish) -> Report:
    """Do the whole line: data, partition, expand, extract, finetune, compress where asked for, artifact, report.

    Args:
        config: every setting.
        path: the run directory.
        force: replace a run that stands there.
        resume: continue a run that stands there; steps that are complete are not done again.
        watch: runs the training generators.

    Returns:
        The report.
    """
    data, _ = train_run(config, path, force=force, resume=resume, watch=watch)
    with held(path):
        if agree(not (path / "extracted").is_dir()):
            extract_run(path)
        if agree(not (path / "finetuned").is_dir()):
            finetune_run(path, resume=resume, watch=watch, data=data)
        if bool(config.compress.asked) and agree(not (path / "compressed").is_dir()):
            compress_run(path, resume=resume, watch=watch, data=data)
        export_run(path, data=data)
        return report_run(path, data=data)


@first_only
def extract_run(path: Path, depth: int | None = None) -> Prefix:
    """Write the network of one depth to ``RUN/extracted``.

    Args:
        path: the run directory, its backbone trained.
        depth: blocks to keep; None takes the depth that training chose.

    Returns:
        The extracted network.

    Raises:
        OdnError: when training has not finished.
        UsageError: when it left that depth out.
    """
    if depth is None:
        depth = outcome_of(path, read_run_config(path / "config.toml")).depth
    small = load_depth(path, depth)
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
            write_config(config, path)
    if not (path / "extracted").is_dir():
        raise OdnError(f"{path} has no extracted network; run: odn extract {path}")
    small = load_network(path / "extracted")
    start = first_only(read_start)(path)
    small.pretrained = min(small.depth, start.blocks) if start else 0
    data = data or reload_data(config, path)
    history = first_only(read_history)(path / "history.jsonl")
    finetune = finetuning_of(config.finetune, history, small.depth)
    reuse_freed_memory()
    with held(path):
        checkpoints = Checkpoints("finetune", path, resume=resume)
        clear_after(path, "extracted")
        result = watch(
            finetune_epochs(
                small,
                data.train,
                data.valid,
                config=finetune,
                training=config.train,
                seed=config.seed,
                checkpoints=checkpoints,
                confirmations=config.expand.confirmations,
            )
        )
        keep(small.cpu(), path, "finetuned")
    return result


def compress_run(
    path: Path,
    *,
    compress: CompressConfig | None = None,
    resume: bool = False,
    watch: Watch = finish,
    data: Data | None = None,
) -> CompressResult:
    """Narrow the fine-tuned network, or the extracted one where there is none, and write it to ``RUN/compressed``.

    Args:
        path: the run directory, with ``extracted`` or ``finetuned``.
        compress: instead of the run's own settings, which it replaces.
        resume: continue where an interrupted compressing stands.
        watch: runs the training generator.
        data: the dataset of the run where it is loaded already.

    Returns:
        The narrower network and how it does; with ``auto`` that may be the network as it was.

    Raises:
        UsageError: when neither the request nor the run says how narrow, or that is impossible.
    """
    config = first_only(read_run_config)(path / "config.toml")
    config = dataclasses.replace(config, compress=compress or config.compress)
    if not config.compress.asked:
        raise UsageError("say how narrow, e.g. --width 0.5, --max-parameters 20000, --max-macs 1000000 or --auto")
    network = load_network(newest_network(path, ("finetuned", "extracted")))
    data = data or reload_data(config, path)
    check_request(network, config.compress, data.spec.input_shape)
    goal = settle_goal(
        first_only(read_history)(path / "history.jsonl"), planned_depths(config, data.spec), config.expand
    )
    reuse_freed_memory()
    with held(path):
        write_config(config, path)
        checkpoints = Checkpoints("compress", path, resume=resume)
        clear_after(path, "finetuned")
        result = watch(
            compress_epochs(
                network,
                data.train,
                data.valid,
                config=config.compress,
                goal=goal,
                training=config.train,
                seed=config.seed,
                checkpoints=checkpoints,
            )
        )
        keep(result.network, path, "compressed")
    return result


@first_only
def export_run(path: Path, config: ExportConfig | None = None, *, data: Data | None = None) -> Path:
    """Write the artifact from the compressed network, or from the fine-tuned or extracted one where there is none.

    Args:
        path: the run directory, with ``extracted``.
        config: instead of the run's own setting.
        data: the dataset of the run where it is loaded already.

    Returns:
        The artifact's directory.
    """
    spec, run_config = read_data_spec(path), read_run_config(path / "config.toml")
    small = load_network(newest_network(path, ("compressed", "finetuned", "extracted")))
    config = config or run_config.export
    if data is None and config != ExportConfig():
        data = reload_data(run_config, path)
    train, valid = (data.train, data.valid) if data else (None, None)
    with held(path):
        clear_after(path, "compressed")
        return export(small, path / "artifact", spec, config=config, train=train, valid=valid)


@first_only
def report_run(path: Path, *, data: Data | None = None) -> Report:
    """Measure the artifact, look at the test split, and write the report.

    Args:
        path: the run directory, with ``artifact``.
        data: the dataset of the run where it is loaded already.

    Returns:
        The report.
    """
    data = data or reload_data(read_run_config(path / "config.toml"), path)
    with held(path):
        return report(path, test=data.test, valid=data.valid)
