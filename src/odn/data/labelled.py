"""Datasets that are listed in tables: labelled paths of images, or labelled texts."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from odn.data.sources import Samples, Source
from odn.errors import OdnError
from odn.images import ImageFile
from odn.saved import find_saved, read_saved_split
from odn.tabular import check_files, find_tables, index_labels, kind_of, read_rows


def read_tables(path: Path) -> Source:
    """Read tables with the columns ``path,label`` or ``text,label``.

    Args:
        path: what ``find_tables`` finds some in.

    Returns:
        Paths or texts with their labels; no image has been opened.

    Raises:
        OdnError: when a table has no rows.
    """
    files = find_tables(path)
    kind = kind_of(files["train"])
    rows = {split: list(read_rows(file, kind)) for split, file in files.items()}
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
    labels = {split: [(row.label, row.where) for row in rows[split]] for split in files}
    name = path.resolve().stem if path.is_file() else path.resolve().name
    return labelled_source(name, samples, labels, texts=kind == "text")


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
    test = parts.get("test")
    return Source(
        name=name,
        classes=classes,
        train=parts["train"],
        valid=parts.get("valid"),
        test=(lambda: test) if test else None,
        texts=texts,
    )
