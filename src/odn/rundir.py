"""The run directory: what it holds, how it begins, and what a new product makes out of date."""

import json
from pathlib import Path

from odn.checkpoint import Checkpoints
from odn.data import Data, DataSpec, load_data
from odn.errors import OdnError, UsageError
from odn.files import new_directory, remove, write_atomically
from odn.recipe import RunConfig, read_run_config, to_toml
from odn.records import Verb
from odn.tables import from_table, to_table

# What the steps after expansion add, in order: writing one makes those after it out of date.
_PRODUCTS = ("extracted", "finetuned", "compressed", "artifact", "report.json", "report.html")
# What is trained from which product: a new one is trained from the start.
_SOURCES: dict[Verb, str] = {"finetune": "extracted", "compress": "finetuned"}


def load_run_data(config: RunConfig) -> Data:
    """Load the dataset of a run.

    Args:
        config: every setting.

    Returns:
        The splits and what is known of them.
    """
    return load_data(
        config.dataset, data_dir=config.data_dir, seed=config.seed, config=config.data, augment=config.augment
    )


def reload_data(config: RunConfig, path: Path) -> Data:
    """Load the dataset of a run that stands, and check that it is still the same.

    Args:
        config: every setting.
        path: the run directory.

    Returns:
        The splits and what is known of them.
    """
    data = load_run_data(config)
    check_data(path, data)
    return data


def read_data_spec(path: Path) -> DataSpec:
    """Read what a run knows of its dataset.

    Args:
        path: the run directory.

    Returns:
        Classes, shape and normalisation.

    Raises:
        OdnError: when the directory is no run, or its file is damaged.
    """
    file = path / "data.json"
    if not file.is_file():
        raise OdnError(f"{path} is not a run directory: it has no data.json; start one with odn run")
    try:
        return from_table(DataSpec, json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, UsageError) as error:
        raise OdnError(f"{file} is damaged ({error}); start anew with --force") from error


def check_data(path: Path, data: Data) -> None:
    """Refuse a dataset that is not the one a run was started with.

    Args:
        path: the run directory.
        data: as it is now.

    Raises:
        OdnError: when it has changed.
    """
    if read_data_spec(path) != data.spec:
        raise OdnError(f"{data.spec.name} is not the data that {path} was started with; restore it, or use --force")


def check_directory(config: RunConfig, path: Path, *, force: bool, resume: bool) -> None:
    """Refuse a place where a run cannot be started, or continued.

    Args:
        config: every setting.
        path: the run directory.
        force: whether a run that stands there may be replaced.
        resume: whether one that stands there is continued.

    Raises:
        UsageError: saying what to do instead.
    """
    if force and resume:
        raise UsageError("--force and --resume exclude each other; give one of them")
    if resume:
        stored = read_run_config(path / "config.toml")
        if stored != config:
            raise UsageError(f"{path} was started with {_difference(stored, config)}; leave that out to resume")
    elif path.is_dir() and any(path.iterdir()):
        if not all((path / name).is_file() for name in ("config.toml", "data.json")):
            raise UsageError(f"{path} exists and is not a run directory; choose another with --run")
        if not force:
            raise UsageError(f"{path} holds a run; continue it with --resume, replace it with --force, or choose --run")
    elif path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; choose a directory with --run")


def _difference(stored: RunConfig, asked: RunConfig) -> str:
    def flat(table: dict[str, object], prefix: str = "") -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in table.items():
            found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return found

    old, new = flat(to_table(stored)), flat(to_table(asked))
    name = next(name for name in old if old[name] != new[name])
    return f"{name} = {old[name]!r}, not {new[name]!r}"


def create_run(config: RunConfig, data: Data, path: Path) -> None:
    """Begin a run directory.

    Args:
        config: every setting.
        data: the dataset.
        path: the run directory; one that stands there is replaced.
    """
    with new_directory(path) as partial:
        write_atomically(partial / "data.json", json.dumps(to_table(data.spec), indent=2) + "\n")
        write_atomically(partial / "config.toml", to_toml(config))


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


def clear_after(path: Path, product: str | None) -> None:
    """Remove what a new product makes out of date, with the records and states of its training.

    Args:
        path: the run directory.
        product: the one that is new; None stands for expansion.
    """
    start = 0 if product is None else _PRODUCTS.index(product) + 1
    for verb, source in _SOURCES.items():
        if _PRODUCTS.index(source) >= start:
            Checkpoints(verb, path)
    for name in _PRODUCTS[start:]:
        remove(path / name)
