"""Datasets that are listed in tables: labelled paths of images, or labelled texts."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from odn.data.sources import Labels, Samples, Source
from odn.errors import OdnError, UsageError
from odn.images import ImageFile
from odn.saved import find_saved, read_saved_split
from odn.tabular import Row, check_files, find_tables, index_labels, kind_of, read_rows
from odn.tasks import Task


def read_tables(path: Path, task: Task = "classification") -> Source:
    """Read tables with the columns ``path,label`` or ``text,label``.

    Args:
        path: what ``find_tables`` finds some in.
        task: what the labels are.

    Returns:
        Paths or texts with their labels; no image has been opened.

    Raises:
        OdnError: when a table has no rows.
        UsageError: when the task is not one that a table can have labels for.
    """
    if task == "segmentation":
        raise UsageError(f"--task segmentation for {path}: a table holds no masks; put them into an .npz file")
    files = find_tables(path)
    kind = kind_of(files["train"])
    rows = {split: list(read_rows(file, kind, task)) for split, file in files.items()}
    for split, file in files.items():
        if not rows[split]:
            raise OdnError(f"{file} has no rows; add some" + ("" if split == "train" else " or remove the file"))
    samples: dict[str, Sequence[str] | Sequence[ImageFile]] = {}
    for split, file in files.items():
        if kind == "text":
            samples[split] = [row.value for row in rows[split]]
        else:
            paths = [file.parent / row.value for row in rows[split]]
            check_files(file, paths)
            samples[split] = paths
    name = path.resolve().stem if path.is_file() else path.resolve().name
    if task == "classification":
        names = {split: [(str(row.label), row.where) for row in rows[split]] for split in files}
        return labelled_source(name, samples, names, texts=kind == "text")
    classes, targets = _outputs(rows) if task == "multilabel" else _numbers(rows)
    parts = {split: Samples(images=samples[split], labels=targets[split]) for split in files}
    return _source(name, classes, parts, texts=kind == "text", task=task)


def _outputs(rows: dict[str, list[Row]]) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """Turn several names per sample into a 0 or 1 for each name that training samples have."""
    classes = tuple(sorted({str(name) for row in rows["train"] for name in _parts(row)}))
    if not classes:
        raise OdnError(f"{rows['train'][0].where.rpartition(' line ')[0]} has no labels at all; add some")
    targets = {}
    for split, found in rows.items():
        target = np.zeros((len(found), len(classes)), np.float32)
        for index, row in enumerate(found):
            target[index, index_labels([(str(name), row.where) for name in _parts(row)], classes)] = 1
        targets[split] = target
    return classes, targets


def _numbers(rows: dict[str, list[Row]]) -> tuple[tuple[str, ...], dict[str, Labels]]:
    count = len(_parts(rows["train"][0]))
    wrong = next((row for found in rows.values() for row in found if len(_parts(row)) != count), None)
    if wrong is not None:
        raise OdnError(f"{wrong.where} has {len(_parts(wrong))} numbers, the first row has {count}; they must agree")
    names = ("y",) if count == 1 else tuple(f"y{index}" for index in range(count))
    return names, {split: np.asarray([row.label for row in found], np.float32) for split, found in rows.items()}


def _parts(row: Row) -> tuple[str, ...] | tuple[float, ...]:
    assert isinstance(row.label, tuple)
    return row.label


def read_saved(path: Path) -> Source:
    """Read a dataset that Hugging Face's ``datasets`` saved.

    Args:
        path: what ``find_saved`` finds files in.

    Returns:
        Texts, or where the images stand, with their labels.

    Raises:
        OdnError: when splits have other columns.
    """
    splits = {split: read_saved_split(files) for split, files in find_saved(path).items()}
    train = splits["train"]
    if any(split.texts != train.texts for split in splits.values()):
        raise OdnError(f"{path} has texts in one split and images in another; save them apart")
    samples: dict[str, Sequence[str] | Sequence[ImageFile]] = {name: split.samples for name, split in splits.items()}
    labels = {name: split.labels for name, split in splits.items()}
    return labelled_source(path.resolve().stem, samples, labels, texts=train.texts, classes=train.classes)


def labelled_source(
    name: str,
    samples: dict[str, Sequence[str] | Sequence[ImageFile]],
    labels: dict[str, list[tuple[str, str]]],
    *,
    texts: bool,
    classes: Iterable[str] = (),
) -> Source:
    """Make a dataset of samples with names of classes.

    Args:
        name: of the dataset.
        samples: by split, ``train`` among them.
        labels: likewise the class of each and where it stands.
        texts: whether the samples are texts.
        classes: in order; none means those of the training samples, sorted.

    Returns:
        The dataset.
    """
    classes = tuple(classes) or tuple(sorted({label for label, _ in labels["train"]}))
    parts = {
        split: Samples(images=found, labels=np.asarray(index_labels(labels[split], classes), dtype=np.int64))
        for split, found in samples.items()
    }
    return _source(name, classes, parts, texts=texts)


def _source(
    name: str, classes: tuple[str, ...], parts: dict[str, Samples], *, texts: bool, task: Task = "classification"
) -> Source:
    test = parts.get("test")
    return Source(
        name=name,
        classes=classes,
        train=parts["train"],
        valid=parts.get("valid"),
        test=(lambda: test) if test else None,
        texts=texts,
        task=task,
    )
