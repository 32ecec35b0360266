"""Tables of labelled samples: CSV and JSONL files with the columns path,label or text,label. No torch here."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from odn.errors import OdnError
from odn.split_names import entries, one_per_split, split_of
from odn.tasks import LARGEST, Task

Label = str | tuple[str, ...] | tuple[float, ...]
Kind = Literal["path", "text"]
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
        path: a ``.csv`` or ``.jsonl`` file, or a folder with ``train.csv`` or ``train.jsonl`` and optionally tables
            for validation and test, whose names ``odn.split_names`` knows.

    Returns:
        The files by split: ``train`` and those that are there; nothing when it is another kind of dataset.

    Raises:
        OdnError: when a folder holds two tables for one split.
    """
    if path.suffix.lower() in _SUFFIXES and path.is_file():
        return {"train": path}
    tables = tables_in(path)
    if not any(split_of(file.stem) == "train" for file in tables):
        return {}
    return one_per_split(tables, lambda file: file.stem, path)


def tables_in(folder: Path) -> list[Path]:
    """List the tables of a folder.

    Args:
        folder: which may be something else.

    Returns:
        Its ``.csv`` and ``.jsonl`` files, sorted.
    """
    return [file for file in entries(folder) if file.suffix.lower() in _SUFFIXES and file.is_file()]


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
        yield Row(where, value, parse_target(task, record["label"], where))


def parse_target(task: Task, value: object, where: str) -> Label:
    """Read what a task wants of a label.

    Args:
        task: what the labels are; those of a segmentation are paths.
        value: as it stands in a file: a name or a number, several with ``;`` between, or a list of them.
        where: file and place, for messages.

    Returns:
        Name of a class or file, names of several, or numbers.

    Raises:
        OdnError: when it is something else.
    """
    if task in ("classification", "segmentation"):
        return parse_label(value, where)
    parts = value if isinstance(value, list) else value.split(";") if isinstance(value, str) else [value]
    if task == "multilabel":
        return tuple(sorted({parse_label(part, where) for part in parts if str(part).strip()}))
    try:
        numbers = tuple(float(str(part)) for part in parts if not isinstance(part, bool))
    except ValueError:
        numbers = ()
    if len(numbers) != len(parts) or not numbers or not all(abs(number) <= LARGEST for number in numbers):
        raise OdnError(
            f"{where}: the label is {_short(value)}; allowed: numbers up to {LARGEST:g}, several with ; between"
        )
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
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_LINE_BYTES))  # a text may be as long as a line
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
