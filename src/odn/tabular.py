"""Tables of labelled samples: CSV and JSONL files with the columns path,label or text,label. No torch here."""

import csv
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from odn.errors import OdnError
from odn.tasks import Task

Label = str | tuple[str, ...] | tuple[float, ...]
Kind = Literal["path", "text"]
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
_SUFFIXES = (".csv", ".jsonl")
_MAX_LINE_BYTES = 16 * 1024**2


class Row(NamedTuple):
    """One sample of a table.

    Attributes:
        where: file and line, for messages.
        value: a path or a text, as it stands there.
        label: name of the class, names of several, or numbers, as the task wants.
    """

    where: str
    value: str
    label: Label


def find_tables(path: Path) -> dict[str, Path]:
    """Find the tables that a dataset consists of.

    Args:
        path: a ``.csv`` or ``.jsonl`` file, or a folder with ``train.csv`` or ``train.jsonl`` and, of the same kind,
            optionally ``valid`` and ``test``.

    Returns:
        The files by split: ``train`` and those that are there; nothing when it is another kind of dataset.

    Raises:
        OdnError: when a folder holds both kinds.
    """
    if path.suffix.lower() in _SUFFIXES and path.is_file():
        return {"train": path}
    kinds = [suffix for suffix in _SUFFIXES if (path / f"train{suffix}").is_file()]
    if len(kinds) > 1:
        raise OdnError(f"{path} holds train.csv and train.jsonl; keep one of them")
    found = {
        split: path / f"{name}{suffix}"
        for suffix in kinds
        for split, names in SPLIT_NAMES.items()
        for name in reversed(names)
        if (path / f"{name}{suffix}").is_file()
    }
    return dict(sorted(found.items(), key=lambda item: list(SPLIT_NAMES).index(item[0])))


def kind_of(path: Path) -> Kind:
    """Tell what the samples of a table are, from its columns.

    Args:
        path: the table.

    Returns:
        ``path`` or ``text``.

    Raises:
        OdnError: when it is empty or lacks a column.
    """
    _, record = next(_records(path), (0, None))
    if record is None:
        raise OdnError(f"{path} has no rows; add some")
    return _kind(path, record)


def _kind(path: Path, record: dict[str, Any]) -> Kind:
    kinds: list[Kind] = [kind for kind in ("path", "text") if kind in record]
    if len(kinds) != 1 or "label" not in record:
        there = ", ".join(str(name)[:40] for name in list(record)[:12]) or "none"
        raise OdnError(f"{path} has the columns {there}; allowed: path,label or text,label (others are left alone)")
    return kinds[0]


def read_rows(path: Path, kind: Kind, task: Task = "classification") -> Iterator[Row]:
    """Read a table row by row.

    Args:
        path: a ``.csv`` file with a header, or a ``.jsonl`` file with an object per line; UTF-8.
        kind: what its samples are.
        task: what its labels are: a name, several names or numbers.

    Yields:
        The rows.

    Raises:
        OdnError: when a line is damaged, lacks a column, or has an empty text, path or label.
    """
    for line, record in _records(path):
        where = f"{path} line {line}"
        if (found := _kind(path, record)) != kind:
            raise OdnError(
                f"{where} has a {found}, rows of the training table have a {kind}; use one of them throughout"
            )
        value = record[kind]
        if not isinstance(value, str):
            raise OdnError(f"{where}: '{kind}' is {_short(value)}; allowed: a text")
        if not value.strip():
            raise OdnError(f"{where} has an empty {kind}; fill it in or remove the row")
        yield Row(where, value, _parse(task, record["label"], where))


def _parse(task: Task, value: object, where: str) -> Label:
    """Read what a task wants of a label: a name, several names or numbers with ``;`` between, or a list of them."""
    if task == "classification":
        return parse_label(value, where)
    parts = value if isinstance(value, list) else value.split(";") if isinstance(value, str) else [value]
    if task == "multilabel":
        return tuple(sorted({parse_label(part, where) for part in parts if str(part).strip()}))
    try:
        numbers = tuple(float(str(part)) for part in parts if not isinstance(part, bool))
    except ValueError:
        numbers = ()
    if len(numbers) != len(parts) or not numbers or not all(map(math.isfinite, numbers)):
        raise OdnError(f"{where}: the label is {_short(value)}; allowed: numbers, several with ; between")
    return numbers


def parse_label(value: object, where: str) -> str:
    """Read the label of a sample.

    Args:
        value: as it stands in a file.
        where: file and place, for messages.

    Returns:
        Name of the class.

    Raises:
        OdnError: when it names none.
    """
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise OdnError(f"{where}: the label is {_short(value)}; allowed: a name or a whole number")
    return str(value).strip()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row as a table by column, with the number of its line; a CSV file without rows yields nothing."""
    reader = _csv_records if path.suffix.lower() == ".csv" else _json_records
    try:
        yield from reader(path)
    except OSError as error:
        raise OdnError(f"cannot read {path}: {error.strerror}; check its name and permissions") from error


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > _MAX_LINE_BYTES:
                raise OdnError(f"{path} line {number} is longer than {_MAX_LINE_BYTES:,} bytes; shorten it")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = f"0x{line[error.start]:02x}"
                raise OdnError(f"{path} line {number} is not UTF-8 (byte {byte}); save the file as UTF-8") from error


def _csv_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(_lines(path), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if header:
            _kind(path, dict.fromkeys(header))
        for fields in reader:
            if not fields:
                continue  # an empty line
            if len(fields) != len(header):
                raise OdnError(
                    f"{path} line {reader.line_num} has {len(fields)} fields, the header has {len(header)}; a text "
                    'with commas or quotes stands in quotes: "..."'
                )
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise OdnError(f"{path} line {reader.line_num} is damaged ({error}); repair it") from error


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OdnError(f"{path} line {number} is not JSON ({str(error)[:80]}); repair it") from error
        if not isinstance(record, dict):
            raise OdnError(f'{path} line {number} is no object; allowed: {{"text": "...", "label": "..."}}')
        if "label" not in record or not {"path", "text"} & record.keys():
            there = ", ".join(str(name)[:40] for name in list(record)[:12]) or "none"
            raise OdnError(f"{path} line {number} has the columns {there}; allowed: path,label or text,label")
        yield number, record


def check_files(path: Path, files: list[Path]) -> None:
    """Look whether the files that a table names are there.

    Args:
        path: the table.
        files: that it names.

    Raises:
        OdnError: when some are not; with the first and how many.
    """
    missing = [file for file in files if not os.path.isfile(file)]  # noqa: PTH113 - a name may be too long for a path
    if missing:
        raise OdnError(
            f"{path} names {len(missing)} of {len(files)} files that are not there, first {str(missing[0])[:300]}; "
            "paths are relative to the table's folder"
        )


def files_by_split(path: Path, pattern: str) -> dict[str, list[Path]]:
    """Find the files of a folder by split: in folders of its name, or told apart by how their names begin.

    Args:
        path: the folder.
        pattern: of their names, e.g. ``*.tar``.

    Returns:
        Sorted files by split, ``train`` among them: all of them where no name begins as that of a split does; nothing
        when there are none.

    Raises:
        OdnError: when there are splits, but none to train on, or a file belongs to none.
    """

    def files(folder: Path) -> list[Path]:
        return sorted(folder.glob(pattern)) if folder.is_dir() else []

    names = {name: split for split, known in SPLIT_NAMES.items() for name in known}
    found = {split: files(path / name) for name, split in names.items() if files(path / name)}
    pool = [] if found else files(path)
    rest = []
    for file in pool:
        match = re.match(rf"({'|'.join(names)})([^a-z]|$)", file.stem.lower())
        if match:
            found.setdefault(names[match[1]], []).append(file)
        else:
            rest.append(file)
    if not found:
        return {"train": rest} if rest else {}
    if rest:
        raise OdnError(f"{rest[0]} belongs to no split; allowed: names that begin with train, valid or test")
    if "train" not in found:
        raise OdnError(f"{path} has files for {' and '.join(found)}, but none for train; add some")
    return found


def index_labels(labels: list[tuple[str, str]], classes: tuple[str, ...], kind: str = "row") -> list[int]:
    """Turn names of classes into their numbers.

    Args:
        labels: name and place of each sample.
        classes: those of the training split.
        kind: what a sample is called, for messages.

    Returns:
        The number of each.

    Raises:
        OdnError: when a class is unknown.
    """
    number = {name: index for index, name in enumerate(classes)}
    indices = []
    for label, where in labels:
        if label not in number:
            raise OdnError(
                f"{where} has the label '{label[:80]}', which the training {kind}s do not have; remove or rename it"
            )
        indices.append(number[label])
    return indices
