"""Datasets that are listed in tables: labelled paths of images, or labelled texts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from odn.data.masks import mask_classes
from odn.data.sources import Labels, Samples, Source
from odn.errors import OdnError, UsageError
from odn.images import ImageFile
from odn.saved import find_saved, read_saved_split, splits_in
from odn.split_names import split_of, tell_left_out
from odn.tabular import Label, check_files, find_tables, index_labels, kind_of, read_rows, tables_in
from odn.tasks import Task

Place = tuple[Label, str]  # a label, and where it stands
Targets = dict[str, Labels]


def read_tables(path: Path, task: Task = "classification") -> Source:
    """Read tables with the columns ``path,label`` or ``text,label``; labels of a segmentation are paths of masks.

    Args:
        path: what ``find_tables`` finds some in.
        task: what the labels are.

    Returns:
        Paths or texts with their labels; no image has been opened.

    Raises:
        OdnError: when a table has no rows.
        UsageError: when the task is not one that a table can have labels for.
    """
    files = find_tables(path)
    others = [file.name for file in tables_in(path) if file not in files.values()]
    tell_left_out(path, others, "which are named for no split")
    kind = kind_of(files["train"])
    if task == "segmentation" and kind == "text":
        raise UsageError(f"--task segmentation for {path}, which holds texts; allowed: images with masks, path,label")
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
    labels: dict[str, list[Place]] = {split: [(row.label, row.where) for row in rows[split]] for split in files}
    if task == "segmentation":
        return _masked_source(name, samples, {split: _masks(file, labels[split]) for split, file in files.items()})
    return labelled_source(name, samples, labels, texts=kind == "text", task=task)


def _masks(table: Path, labels: Sequence[Place]) -> list[Path]:
    files = [table.parent / str(label) for label, _ in labels]
    check_files(table, files)
    return files


def _masked_source(
    name: str, samples: Mapping[str, Sequence[str] | Sequence[ImageFile]], masks: Mapping[str, list[Path]]
) -> Source:
    classes = mask_classes(cast(Sequence[Path], samples["train"]), masks["train"])
    parts = {
        split: Samples(images=found, labels=np.asarray(masks[split], dtype=object)) for split, found in samples.items()
    }
    return _source(name, classes, parts, texts=False, task="segmentation")


def read_saved(path: Path, task: Task = "classification") -> Source:
    """Read a dataset that Hugging Face's ``datasets`` saved.

    Args:
        path: what ``find_saved`` finds files in.
        task: what the labels are.

    Returns:
        Texts, or where the images stand, with their labels.

    Raises:
        OdnError: when splits have other columns.
        UsageError: when the task is not one that a column can have labels for.
    """
    if task == "segmentation":
        raise UsageError(f"--task segmentation for {path}: allowed: an .npz file, or a table of images and masks")
    splits = {split: read_saved_split(files, task) for split, files in find_saved(path).items()}
    tell_left_out(path, [name for name in splits_in(path) if split_of(name) is None], "which are named for no split")
    train = splits["train"]
    if any(split.texts != train.texts for split in splits.values()):
        raise OdnError(f"{path} has texts in one split and images in another; save them apart")
    samples: dict[str, Sequence[str] | Sequence[ImageFile]] = {name: split.samples for name, split in splits.items()}
    labels = {name: split.labels for name, split in splits.items()}
    name = path.resolve().stem
    return labelled_source(name, samples, labels, texts=train.texts, classes=train.classes, task=task)


def labelled_source(
    name: str,
    samples: Mapping[str, Sequence[str] | Sequence[ImageFile]],
    labels: Mapping[str, Sequence[Place]],
    *,
    texts: bool,
    classes: tuple[str, ...] = (),
    task: Task = "classification",
) -> Source:
    """Make a dataset of samples with names or numbers.

    Args:
        name: of the dataset.
        samples: by split, ``train`` among them.
        labels: likewise what the task wants of each, and where it stands.
        texts: whether the samples are texts.
        classes: in order; none means those of the training samples, sorted.
        task: what the labels are.

    Returns:
        The dataset.

    Raises:
        OdnError: when a label is none of the training samples', or numbers are not as many as in the first row.
    """
    classes, targets = _TARGETS[task](labels, classes)
    parts = {split: Samples(images=found, labels=targets[split]) for split, found in samples.items()}
    return _source(name, classes, parts, texts=texts, task=task)


def _source(name: str, classes: tuple[str, ...], parts: Mapping[str, Samples], *, texts: bool, task: Task) -> Source:
    return Source(
        name=name,
        classes=classes,
        train=parts["train"],
        valid=parts.get("valid"),
        test=(lambda: parts["test"]) if "test" in parts else None,
        texts=texts,
        task=task,
    )


def _one_name(labels: Mapping[str, Sequence[Place]], classes: tuple[str, ...]) -> tuple[tuple[str, ...], Targets]:
    classes = classes or tuple(sorted({str(label) for label, _ in labels["train"]}))
    return classes, {
        split: np.asarray(index_labels([(str(label), where) for label, where in found], classes), dtype=np.int64)
        for split, found in labels.items()
    }


def _several_names(labels: Mapping[str, Sequence[Place]], classes: tuple[str, ...]) -> tuple[tuple[str, ...], Targets]:
    """Turn several names per sample into a 0 or 1 for each name that training samples have."""
    classes = classes or tuple(sorted({str(name) for label, _ in labels["train"] for name in label}))
    if not classes:
        raise OdnError(f"no training sample has a label, from {labels['train'][0][1]} on; add some")
    targets = {}
    for split, found in labels.items():
        target = np.zeros((len(found), len(classes)), np.float32)
        for index, (label, where) in enumerate(found):
            target[index, index_labels([(str(name), where) for name in label], classes)] = 1
        targets[split] = target
    return classes, targets


def _numbers(labels: Mapping[str, Sequence[Place]], _classes: tuple[str, ...]) -> tuple[tuple[str, ...], Targets]:
    count = len(labels["train"][0][0])
    for found in labels.values():
        for label, where in found:
            if len(label) != count:
                raise OdnError(f"{where} has {len(label)} numbers, the first row has {count}; they must agree")
    names = ("y",) if count == 1 else tuple(f"y{index}" for index in range(count))
    return names, {split: np.asarray([label for label, _ in found], np.float64) for split, found in labels.items()}


_TARGETS: dict[Task, Callable[[Mapping[str, Sequence[Place]], tuple[str, ...]], tuple[tuple[str, ...], Targets]]] = {
    "classification": _one_name,
    "multilabel": _several_names,
    "regression": _numbers,
}
