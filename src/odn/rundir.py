"""The run directory: begun, checked, held against other runs, and cleared of what is out of date.

Of several processes the first one writes; all have to call these functions.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from odn.backbones import Origin
from odn.checkpoint import Checkpoints
from odn.data import DataSpec
from odn.errors import OdnError, UsageError
from odn.files import exclusive, new_directory, remove, write_atomically
from odn.network import PartitionedNetwork, Prefix, build_network, partition
from odn.processes import first_on_each_machine, first_only, share
from odn.recipe import RunConfig, difference, read_run_config, to_toml
from odn.records import Verb
from odn.search import plan_depths
from odn.starting import read_start
from odn.storage import save_network
from odn.tables import to_table

# What the steps after expansion add, in order: writing one makes those after it out of date.
_PRODUCTS = ("extracted", "finetuned", "compressed", "artifact", "report.json", "report.html")
# What is trained from which product: a new one is trained from the start.
_SOURCES: dict[Verb, str] = {"finetune": "extracted", "compress": "finetuned"}


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other runs out of a run directory; the processes of one run are in it together.

    Args:
        path: a run directory that stands there.

    Yields:
        Nothing.

    Raises:
        OdnError: when another run is in it.
    """
    with exclusive(path) if share().rank == 0 else contextlib.nullcontext():
        yield


@first_only
def check_directory(config: RunConfig, path: Path, *, force: bool, resume: bool) -> None:
    """Refuse a place where a run cannot start or go on, before anything is written.

    Args:
        config: of the run.
        path: the run directory.
        force: a run that stands there may be replaced.
        resume: a run that stands there is continued.

    Raises:
        UsageError: when something else stands there, or a run with other settings.
    """
    if force and resume:
        raise UsageError("--force and --resume exclude each other; give one of them")
    if resume:
        stored = read_run_config(path / "config.toml")
        if not config.weights_sha256:
            config = dataclasses.replace(config, weights_sha256=stored.weights_sha256)
        if stored != config:
            raise UsageError(f"{path} was started with {difference(stored, config)}; leave that out to resume")
        if (path / "extracted").is_dir() and not (path / "checkpoints").is_dir():
            raise UsageError(
                f"{path} has no checkpoints to go on from: it was specialised from another run, or they were removed"
            )
    elif path.is_dir() and any(path.iterdir()):
        if not is_run(path):
            raise UsageError(f"{path} exists and is not a run directory; choose another with --run")
        if not force:
            raise UsageError(f"{path} holds a run; continue it with --resume, replace it with --force, or choose --run")
    elif path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; choose a directory with --run")


def is_run(path: Path) -> bool:
    """Tell whether a directory is that of a run.

    Args:
        path: the directory.

    Returns:
        True where it has settings and what the run learns from.
    """
    return all((path / name).is_file() for name in ("config.toml", "data.json"))


def start_network(config: RunConfig, data: DataSpec, path: Path, *, resume: bool) -> PartitionedNetwork:
    """Partition the backbone of a run, with the weights that it starts from.

    Args:
        config: every setting.
        data: what the run learns from.
        path: the run directory.
        resume: the run goes on. Where its pretrained network is kept there already, no other file is needed, and
            expansion loads it.

    Returns:
        The network.

    Raises:
        OdnError: when the weights are not those that the settings name.
    """
    if resume:
        config = first_only(read_run_config)(path / "config.toml")
    start = first_only(read_start)(path) if resume else None
    if start is not None:
        network = partition(config.backbone, data, width=config.width, seed=config.seed)
        network.origin = Origin(blocks=start.blocks, source=start.source, sha256=config.weights_sha256)
        return network
    with first_on_each_machine() if config.pretrained else contextlib.nullcontext():  # it may have to download
        network = partition(
            config.backbone,
            data,
            width=config.width,
            weights=config.weights or None,
            pretrained=config.pretrained,
            seed=config.seed,
        )
    if network.origin is not None and config.weights_sha256 not in ("", network.origin.sha256):
        raise OdnError(
            f"{network.origin.source} was changed: its SHA-256 is {network.origin.sha256[:12]}..., and "
            f"{config.weights_sha256[:12]}... in the settings of {path}; restore it, or start anew with --force"
        )
    return network


@first_only
def create_directory(config: RunConfig, data: DataSpec, path: Path, origin: Origin | None = None) -> None:
    """Begin a run; one that stands there is replaced.

    Args:
        config: every setting.
        data: what the run learns from.
        path: the run directory.
        origin: of the weights that the network starts from; the settings keep their checksum.

    Raises:
        OdnError: when a run is going on there.
    """
    config = dataclasses.replace(config, weights_sha256=origin.sha256 if origin else "")
    with exclusive(path) if path.is_dir() else contextlib.nullcontext():
        pass
    with new_directory(path) as partial:
        write_atomically(partial / "data.json", json.dumps(to_table(data), indent=2) + "\n")
        write_config(config, partial)


@first_only
def write_config(config: RunConfig, path: Path) -> None:
    """Write the settings of a run.

    Args:
        config: every setting.
        path: the run directory.
    """
    write_atomically(path / "config.toml", to_toml(config))


def planned_depths(config: RunConfig, data: DataSpec) -> list[int]:
    """List the depths that a run may choose.

    Args:
        config: of the run.
        data: what it learns from.

    Returns:
        Ascending depths.
    """
    full = build_network(
        config.backbone,
        data.input_shape,
        len(data.classes),
        width=config.width,
        vocabulary=data.vocabulary,
        padding=data.padding,
        task=data.task,
        device="meta",
    )
    return plan_depths(config.expand, full.max_depth)


@first_only
def keep(network: Prefix, path: Path, product: str) -> None:
    """Write a network to a run.

    Args:
        network: the network.
        path: the run directory.
        product: name of its directory there, e.g. ``finetuned``.
    """
    save_network(network, path / product)


def newest_network(path: Path, products: tuple[str, ...]) -> Path:
    """Find the newest product that holds a network.

    Args:
        path: the run directory.
        products: their names, newest first.

    Returns:
        Its directory.

    Raises:
        OdnError: when there is none.
    """
    source = next((path / name for name in products if (path / name).is_dir()), None)
    if source is None:
        raise OdnError(f"{path} has no extracted network; run: odn extract {path}")
    return source


@first_only
def clear_after(path: Path, product: str | None) -> None:
    """Remove what a new product makes out of date, with the records and states of its training.

    Args:
        path: the run directory.
        product: ``extracted``, ``finetuned``, ``artifact`` ...; None means the outcome of expansion.
    """
    start = 0 if product is None else _PRODUCTS.index(product) + 1
    for verb, source in _SOURCES.items():
        if _PRODUCTS.index(source) >= start:
            Checkpoints(verb, path)
    for name in _PRODUCTS[start:]:
        remove(path / name)
