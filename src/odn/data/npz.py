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
from odn.split_names import one_per_split, tell_left_out
from odn.tasks import Task

_POOL = ("x", "y", "classes")
_WHY = "which are named for no split"


def read_npz(path: Path, task: Literal["auto", Task] = "auto") -> Source:
    """Read a NumPy archive: ``x_train y_train``, optionally with ``x_valid y_valid`` and ``x_test y_test``; or ``x y``.

    Args:
        path: an ``.npz`` file. Images are uint8, or floats in [0, 1], of shape (N, H, W), (N, H, W, C) or
            (N, C, H, W) with 1 or 3 channels. ``y`` says the task: integers or strings of shape (N,) are classes, 0 or
            1 of shape (N, K) several labels at once, floats of shape (N,) or (N, K) numbers to predict, integers of
            shape (N, H, W) masks, in which 255 marks pixels that do not count. ``classes`` may name the K outputs.
        task: what ``y`` means where it does not say so itself.

    Returns:
        Training images and, where the archive has them, validation and test images.

    Raises:
        OdnError: when the file is no such archive.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            _bound(path, archive.zip.infolist())
            names = _names(path, archive.files)
            arrays = {key: archive[name] for key, name in names.items()}
            others = [name for name in archive.files if name not in names.values()]
    except (*BROKEN, MemoryError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        reason = first_line(error)
        raise OdnError(f"cannot read {path}: {reason}; it must be an .npz file without pickled objects") from error
    keys = ("x_train", "y_train") if "x_train" in arrays else ("x", "y")
    if not set(keys) <= arrays.keys():
        found = ", ".join(sorted([*names.values(), *others])) or "nothing"
        raise OdnError(
            f"{path} holds {found}; allowed: x_train and y_train [x_valid y_valid] [x_test y_test], or x and y"
        )
    tell_left_out(path, sorted({*others, *(names[key] for key in _POOL[:2] if key in names and key not in keys)}), _WHY)
    images, y = _npz_images(path, keys[0], arrays), arrays[keys[1]]
    settled = task_of(y, f"{path}: {keys[1]}") if task == "auto" else task
    given = arrays.get("classes")
    classes, labels = targets_of(settled, y, f"{path}: {keys[1]}", images, None if given is None else given.tolist())
    parts: dict[str, Samples] = {}
    for split in ("valid", "test"):
        x_key, y_key = f"x_{split}", f"y_{split}"
        if not {x_key, y_key} & arrays.keys():
            continue
        if not {x_key, y_key} <= arrays.keys():
            raise OdnError(f"{path} holds only one of {x_key} and {y_key}; add the other or remove it")
        own = _npz_images(path, x_key, arrays)
        if own.shape[1:] != images.shape[1:]:
            raise OdnError(
                f"{path}: {x_key} has images of shape {tuple(own.shape[1:])}, {keys[0]} of shape "
                f"{tuple(images.shape[1:])}; they must agree"
            )
        y = arrays[y_key]
        if given is None and settled == "classification" and y.dtype.kind in "iu":
            y = y.astype(str)  # only classes that the archive names can be counted; these are their own names
        parts[split] = Samples(images=own, labels=targets_of(settled, y, f"{path}: {y_key}", own, classes)[1])
    return Source(
        name=path.stem,
        classes=classes,
        train=Samples(images=images, labels=labels),
        valid=parts.get("valid"),
        test=(lambda: parts["test"]) if "test" in parts else None,
        task=settled,
    )


def _names(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Find out which array of an archive is which: ``x_val`` is ``x_valid``, capitals do not count."""
    found = {key: name for name in names if (key := name.lower()) in _POOL}
    for kind in ("x", "y"):
        splits = [name for name in names if name.lower().startswith(f"{kind}_")]
        found |= {f"{kind}_{split}": name for split, name in one_per_split(splits, lambda name: name[2:], path).items()}
    return found


def _bound(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Compare what an archive unpacks to with the memory that is free, before any of it is taken."""
    sizes = {Path(member.filename).stem: member.file_size for member in members}
    needed = sum(sizes[name] for name in _names(path, [*sizes]).values())
    free = psutil.virtual_memory().available
    if needed > free:
        raise OdnError(
            f"{path} unpacks to {needed:,} bytes, but {free:,} bytes of memory are free; use a folder of image files, "
            "which is read as it is needed"
        )


def _npz_images(path: Path, key: str, arrays: dict[str, npt.NDArray[Any]]) -> Tensor:
    x = arrays[key]
    if x.ndim == 0 or len(x) == 0:
        raise OdnError(
            f"{path}: {key} has no images; add some" + (" or leave it out" if key in ("x_valid", "x_test") else "")
        )
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
