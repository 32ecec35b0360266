"""NumPy archives: images with labels, several labels, numbers or masks."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

from odn.data.sources import BROKEN, Samples, Source, first_line
from odn.data.targets import targets_of, task_of
from odn.errors import OdnError
from odn.tasks import Task

_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test", "x", "y", "classes")


def read_npz(path: Path, task: Literal["auto", Task] = "auto") -> Source:
    """Read a NumPy archive with ``x_train y_train`` and optionally ``x_test y_test``, or ``x y`` alone.

    Args:
        path: an ``.npz`` file. Images are uint8, or floats in [0, 1], of shape (N, H, W), (N, H, W, C) or
            (N, C, H, W) with 1 or 3 channels. ``y`` says the task: integers or strings of shape (N,) are classes, 0 or
            1 of shape (N, K) several labels at once, floats of shape (N,) or (N, K) numbers to predict, integers of
            shape (N, H, W) masks, in which 255 marks pixels that do not count. ``classes`` may name the K outputs.
        task: what ``y`` means where it does not say so itself.

    Returns:
        Training images and, where the archive has them, test images.

    Raises:
        OdnError: when the file is no such archive.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            _bound(path, archive.zip.infolist())
            arrays = {key.lower(): archive[key] for key in archive.files if key.lower() in _NPZ_KEYS}
            others = [key for key in archive.files if key.lower() not in _NPZ_KEYS]
    except (*BROKEN, MemoryError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        reason = first_line(error)
        raise OdnError(f"cannot read {path}: {reason}; it must be an .npz file without pickled objects") from error
    keys = ("x_train", "y_train") if "x_train" in arrays else ("x", "y")
    if not set(keys) <= arrays.keys():
        found = ", ".join(sorted([*arrays, *others])) or "nothing"
        raise OdnError(f"{path} holds {found}; allowed: x_train and y_train [x_test y_test], or x and y")
    images, y = _npz_images(path, keys[0], arrays), arrays[keys[1]]
    settled = task_of(y, f"{path}: {keys[1]}") if task == "auto" else task
    given = arrays.get("classes")
    classes, labels = targets_of(settled, y, f"{path}: {keys[1]}", images, None if given is None else given.tolist())
    test = None
    if "x_test" in arrays or "y_test" in arrays:
        if not {"x_test", "y_test"} <= arrays.keys():
            raise OdnError(f"{path} holds only one of x_test and y_test; add the other or remove it")
        test_images = _npz_images(path, "x_test", arrays)
        if test_images.shape[1:] != images.shape[1:]:
            raise OdnError(
                f"{path}: x_test has images of shape {tuple(test_images.shape[1:])}, {keys[0]} of shape "
                f"{tuple(images.shape[1:])}; they must agree"
            )
        y_test = arrays["y_test"]
        if given is None and settled == "classification" and y_test.dtype.kind in "iu":
            y_test = y_test.astype(str)  # only classes that the archive names can be counted; these are their own names
        test_labels = targets_of(settled, y_test, f"{path}: y_test", test_images, classes)[1]
        test_samples = Samples(images=test_images, labels=test_labels)
        test = lambda: test_samples  # noqa: E731
    return Source(name=path.stem, classes=classes, train=Samples(images=images, labels=labels), test=test, task=settled)


def _bound(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Compare what an archive unpacks to with the memory that is free, before any of it is taken."""
    needed = sum(member.file_size for member in members if Path(member.filename).stem.lower() in _NPZ_KEYS)
    free = psutil.virtual_memory().available
    if needed > free:
        raise OdnError(
            f"{path} unpacks to {needed:,} bytes, but {free:,} bytes of memory are free; use a folder of image files, "
            "which is read as it is needed"
        )


def _npz_images(path: Path, key: str, arrays: dict[str, npt.NDArray[Any]]) -> Tensor:
    x = arrays[key]
    if x.ndim == 0 or len(x) == 0:
        raise OdnError(f"{path}: {key} has no images; add some" + (" or leave it out" if key == "x_test" else ""))
    if x.dtype.kind == "f":
        if not np.isfinite(x).all():
            first = int(np.argwhere(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0, 0])
            raise OdnError(f"{path}: {key} has NaN or infinite values, first in image {first}; remove or repair it")
        if x.size and (x.min() < 0 or x.max() > 1):
            raise OdnError(
                f"{path}: {key} is {x.dtype} from {x.min():g} to {x.max():g}; allowed: uint8, or floats in [0, 1]"
            )
        x = (x * 255).round().astype(np.uint8)
    elif x.dtype != np.uint8:
        raise OdnError(f"{path}: {key} is {x.dtype}; allowed: uint8, or floats in [0, 1]; convert it with astype")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[-1] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    elif x.ndim != 4 or x.shape[1] not in (1, 3):
        raise OdnError(
            f"{path}: {key} has shape {x.shape}; allowed: (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3"
        )
    return torch.from_numpy(np.ascontiguousarray(x))
