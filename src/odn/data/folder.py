"""Folders of image files, one sub-folder per class."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odn.data.sources import Samples, Source
from odn.errors import OdnError
from odn.files import files_below
from odn.images import BadImage, ImageFile, decode, image_facts, image_warnings
from odn.split_names import entries, one_per_split, tell_left_out

_log = logging.getLogger(__name__)


def read_folder(root: Path) -> Source:
    """Read an ImageFolder: ``root/<class>/*``, or ``root/train/<class>/*`` with optional ``valid`` and ``test``.

    Every file of a class that is not hidden counts as an image; what lies beside the classes is named.

    Args:
        root: the folder.

    Returns:
        Paths and labels; no file has been opened.

    Raises:
        OdnError: when the folder is empty, a class has no image, a split has a class of its own, or there are splits
            but none to train on.
    """
    here = entries(root)
    splits = one_per_split([path for path in here if path.is_dir()], lambda path: path.name, root)
    if not splits:
        classes = _class_names(root)
        return Source(name=root.resolve().name, classes=classes, train=_list(root, classes))
    if "train" not in splits:
        name = next(iter(splits.values())).name
        raise OdnError(
            f"{root} has the folder '{name}', which is named for a split, but no folder train; put the images to "
            f"train on into train/CLASS, or rename '{name}' if it is a class"
        )
    tell_left_out(root, [path.name for path in here if path not in splits.values()], "which are named for no split")
    classes = _class_names(splits["train"])
    parts = {split: _list(folder, classes) for split, folder in splits.items()}
    return Source(
        name=root.resolve().name,
        classes=classes,
        train=parts["train"],
        valid=parts.get("valid"),
        test=(lambda: parts["test"]) if "test" in parts else None,
    )


def _class_names(root: Path) -> tuple[str, ...]:
    names = [path.name for path in entries(root) if path.is_dir()]
    if not names:
        raise OdnError(f"{root} has no class folders; put the images of each class into a folder of its own there")
    return tuple(names)


def _list(root: Path, classes: tuple[str, ...]) -> Samples:
    unknown = sorted(set(_class_names(root)) - set(classes))
    if unknown:
        raise OdnError(
            f"{root} has the class '{unknown[0]}', which the training images do not have; remove or rename it"
        )
    tell_left_out(root, [path.name for path in entries(root) if path.is_file()], "which are in no class folder")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if not (root / name).is_dir():
            continue  # a valid or test folder need not show every class
        found = [*files_below(root / name)]
        if not found:
            raise OdnError(f"the class folder {root / name} has no image; add some or remove the folder")
        paths += found
        labels += [label] * len(found)
    return Samples(images=paths, labels=np.asarray(labels, dtype=np.int64))


def common_shape(paths: Sequence[ImageFile], image_size: int, *, skip_bad_files: bool) -> tuple[int, int, int]:
    """Find the shape that all images of a dataset share, from their headers.

    Args:
        paths: the files.
        image_size: height and width wanted, or 0 for the size the files have.
        skip_bad_files: pass over files that cannot be opened.

    Returns:
        Channels (1 when every image is grayscale, else 3), height and width.

    Raises:
        OdnError: when sizes differ and none was asked for, or no file can be opened.
    """
    first: tuple[ImageFile, int, int] | None = None
    gray = True
    with image_warnings(), ThreadPoolExecutor() as pool:
        for path, facts in zip(paths, pool.map(_facts_or_error, paths), strict=True):
            if isinstance(facts, BadImage):
                if skip_bad_files:
                    continue
                raise OdnError(_skippable(facts))
            height, width, is_gray = facts
            gray = gray and is_gray
            if first is None:
                first = (path, height, width)
            elif not image_size and (height, width) != first[1:]:
                raise OdnError(
                    f"images differ in size: {first[0]} has {first[1]}x{first[2]} pixels, {path} has "
                    f"{height}x{width}; choose one size with --image-size, e.g. --image-size 64"
                )
    if first is None:
        raise OdnError(f"none of the {len(paths)} files is a readable image, e.g. {paths[0]}")
    return (1 if gray else 3, image_size or first[1], image_size or first[2])


def _skippable(error: BadImage) -> str:
    return f"{error}, or leave bad files out with --skip-bad-files"


def _facts_or_error(path: ImageFile) -> tuple[int, int, bool] | BadImage:
    try:
        return image_facts(path)
    except BadImage as error:
        return error


def decode_all(
    paths: Sequence[ImageFile], shape: tuple[int, int, int], *, skip_bad_files: bool
) -> Iterator[tuple[int, Tensor]]:
    """Decode files in order, several at a time.

    Args:
        paths: the files.
        shape: channels, height and width to decode to.
        skip_bad_files: name unreadable files in a warning and leave them out.

    Yields:
        Position of each readable file and its uint8 image.

    Raises:
        OdnError: at the first unreadable file, unless these are skipped.
    """

    def attempt(path: ImageFile) -> Tensor | BadImage:
        try:
            return torch.from_numpy(decode(path, shape))
        except BadImage as error:
            return error

    chunk = 1024  # bounds what is decoded ahead of the consumer
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), chunk):
            with image_warnings():
                images = list(pool.map(attempt, paths[start : start + chunk]))
            for offset, image in enumerate(images):
                if not isinstance(image, BadImage):
                    yield start + offset, image
                elif skip_bad_files:
                    _log.warning("left out %s", image.path)
                else:
                    raise OdnError(_skippable(image))
