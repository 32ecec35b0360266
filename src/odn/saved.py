"""What Hugging Face's ``datasets`` saved to disk or as parquet, read by pyarrow where it lies. No torch here."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from odn.errors import OdnError, require_extra
from odn.split_names import files_by_split, one_per_split
from odn.tabular import Label, find_tables, kind_of, parse_target
from odn.tasks import Task

_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Picture:
    """An image in a column of a file.

    Attributes:
        file: an Arrow or parquet file.
        column: its name.
        row: from 0.
    """

    file: Path
    column: str
    row: int

    def __str__(self) -> str:
        return f"{self.file} row {self.row}"

    def read_bytes(self) -> bytes:
        """Return the encoded image."""
        with _lock:
            group, first = _locate(self.file, self.row)
            column = _group(self.file, group).column(self.column)
        content = column[self.row - first].as_py()
        if isinstance(content, dict):
            path, content = content.get("path"), content.get("bytes")
            content = Path(path).read_bytes() if content is None and path else content
        if not isinstance(content, bytes):
            raise OSError("the row holds no image")
        return content


@dataclass(frozen=True, kw_only=True)
class SavedSplit:
    """One split of a saved dataset.

    Attributes:
        samples: texts, or pictures.
        labels: what the task wants, and the place of each.
        classes: in order where the dataset names them; else none.
        texts: whether the samples are texts.
    """

    samples: list[str] | list[Picture]
    labels: list[tuple[Label, str]]
    classes: tuple[str, ...]
    texts: bool


def find_saved(path: Path) -> dict[str, list[Path]]:
    """Find the files of a saved dataset.

    Args:
        path: what ``save_to_disk`` wrote, a ``.parquet`` file, or a folder of such files, told apart by how their names
            begin.

    Returns:
        Arrow or parquet files by split, ``train`` among them; nothing when it is another kind of dataset.

    Raises:
        OdnError: when what was saved is damaged or has no training split.
    """
    if path.suffix.lower() == ".parquet" and path.is_file():
        return {"train": [path]}
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return {"train": _arrow_files(path)}
    if not (path / "dataset_dict.json").is_file():
        return files_by_split(path, "*.parquet") or files_by_split(path / "data", "*.parquet")
    names = splits_in(path)
    found = one_per_split(names, str, path)
    if "train" not in found:
        raise OdnError(f"{path} has the splits {', '.join(map(str, names)) or 'none'}; one named train is needed")
    return {split: _arrow_files(path / name) for split, name in found.items()}


def splits_in(path: Path) -> list[str]:
    """List the splits of what ``DatasetDict.save_to_disk`` wrote.

    Args:
        path: any dataset.

    Returns:
        Their names; none for another kind of dataset.
    """
    file = path / "dataset_dict.json"
    names = _read_json(file).get("splits") if file.is_file() else []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _arrow_files(folder: Path) -> list[Path]:
    try:
        return [folder / Path(entry["filename"]).name for entry in _read_json(folder / "state.json")["_data_files"]]
    except (KeyError, TypeError) as error:
        raise OdnError(f"{folder / 'state.json'} lists no files; save the dataset again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OdnError(f"{path} is damaged ({str(error)[:80]}); save the dataset again") from error
    if not isinstance(table, dict):
        raise OdnError(f"{path} is damaged (no object); save the dataset again")
    return table


def _pyarrow(module: str) -> Any:
    return require_extra(module, "datasets", "reading saved datasets")


@lru_cache(maxsize=64)
def _open(file: Path) -> Any:
    """Open a file: an Arrow table that stays on disk, or a parquet file."""
    if file.suffix.lower() == ".parquet":
        return _pyarrow("pyarrow.parquet").ParquetFile(file)
    pyarrow = _pyarrow("pyarrow")
    return pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all()


def _schema(file: Path) -> Any:
    return _open(file).schema_arrow if file.suffix.lower() == ".parquet" else _open(file).schema


@lru_cache(maxsize=64)
def _starts(file: Path) -> list[int]:
    """Number of the first row of every group of rows; an Arrow table is one group."""
    if file.suffix.lower() != ".parquet":
        return [0]
    footer = _open(file).metadata
    starts = [0]
    for group in range(footer.num_row_groups):
        starts.append(starts[-1] + footer.row_group(group).num_rows)
    return starts[:-1]


def _locate(file: Path, row: int) -> tuple[int, int]:
    group, first = next((g, first) for g, first in reversed([*enumerate(_starts(file))]) if first <= row)
    return group, first


@lru_cache(maxsize=4)
def _group(file: Path, group: int) -> Any:
    return _open(file).read_row_group(group) if file.suffix.lower() == ".parquet" else _open(file)


def _features(schema: Any) -> dict[str, Any]:
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError):
        features = {}
    return features if isinstance(features, dict) else {}


def _columns(file: Path) -> tuple[str, str]:
    """Return the names of the columns of samples and labels."""
    schema = _schema(file)
    kinds = _features(schema).items()
    pictures = [name for name, kind in kinds if isinstance(kind, dict) and kind.get("_type") == "Image"]
    if "text" in schema.names and ("image" in schema.names or pictures):
        raise OdnError(f"{file} has images and texts; leave one out with remove_columns, and save the dataset again")
    wanted = "text" if "text" in schema.names else next(iter(pictures), "image")
    if wanted not in schema.names or "label" not in schema.names:
        there = ", ".join(schema.names[:12]) or "none"
        raise OdnError(f"{file} has the columns {there}; allowed: image,label or text,label (others are left alone)")
    return wanted, "label"


def saved_texts(files: dict[str, list[Path]]) -> bool:
    """Tell whether a saved dataset consists of texts.

    Args:
        files: as of ``find_saved``.

    Returns:
        False for images.
    """
    with _readable(files["train"][0]):
        return _columns(files["train"][0])[0] == "text"


class _readable:
    """Explains what pyarrow says of a file that it cannot read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError | ValueError | KeyError | TypeError | NotImplementedError):
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise OdnError(f"{self.file} is damaged ({reason}); save the dataset again") from error


def read_saved_split(files: list[Path], task: Task = "classification") -> SavedSplit:
    """Read the labels of a split, and its texts; images stay where they are.

    Args:
        files: of the split.
        task: what the labels are: names, lists of names, or numbers.

    Returns:
        Its samples.

    Raises:
        OdnError: when a column is missing, a label or a text is empty, or a file is damaged.
    """
    samples: list[Any] = []
    labels: list[tuple[Label, str]] = []
    classes: tuple[str, ...] = ()
    texts = False
    for file in files:
        with _readable(file):
            sample, label = _columns(file)
            texts = sample == "text"
            classes = _names_of(_features(_schema(file)).get(label))
            for row, values in enumerate(_rows(file, [label, sample] if texts else [label])):
                where = f"{file} row {row}"
                labels.append((parse_target(task, _named(values[0], classes), where), where))
                if texts and (not isinstance(values[1], str) or not values[1].strip()):
                    raise OdnError(f"{where} has an empty text; fill it in or remove the row")
                samples.append(values[1] if texts else Picture(file, sample, row))
    if not samples:
        raise OdnError(f"{files[0] if files else 'the split'} has no rows; add some")
    return SavedSplit(samples=samples, labels=labels, classes=classes, texts=texts)


def _names_of(feature: Any) -> tuple[str, ...]:
    """Return the names of a ClassLabel, or of a list of them; none of another feature."""
    while isinstance(feature, list | dict) and (inner := _inner(feature)) is not None:
        feature = inner
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(str(name).strip() for name in names) if isinstance(names, list) else ()


def _inner(feature: list[Any] | dict[str, Any]) -> Any:
    if isinstance(feature, dict):
        return feature.get("feature")
    return feature[0] if feature else None


def _named(value: Any, classes: tuple[str, ...]) -> Any:
    """Put the name of a class in the place of its number, None where there is no such number."""
    if isinstance(value, list):
        return [_named(one, classes) for one in value]
    if not classes or not isinstance(value, int):
        return value
    return classes[value] if 0 <= value < len(classes) else None


def _rows(file: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    table = _open(file)
    batches = (
        table.iter_batches(columns=columns) if file.suffix.lower() == ".parquet" else table.select(columns).to_batches()
    )
    for batch in batches:
        yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def holds_texts(dataset: str) -> bool:
    """Tell whether a dataset consists of texts, without reading more than its columns.

    Args:
        dataset: as the user gave it.

    Returns:
        False for images.
    """
    path = Path(dataset)
    if tables := find_tables(path):
        return kind_of(tables["train"]) == "text"
    saved = find_saved(path)
    return bool(saved) and saved_texts(saved)
