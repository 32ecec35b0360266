"""Where images come from: one reader per kind of dataset, each handing over labelled images before any split."""

import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

from odn.errors import OdnError
from odn.files import remove
from odn.images import ImageFile

Labels = npt.NDArray[np.int64]
# What readers of files raise when these are cut short or hold something else.
_BROKEN = (OSError, ValueError, RuntimeError, AssertionError, EOFError)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Labelled images of one split.

    Attributes:
        images: a uint8 tensor of shape (N, C, H, W), N files still to be decoded, or N texts.
        labels: indices into the classes, shape (N,).
    """

    images: Tensor | Sequence[ImageFile] | Sequence[str]
    labels: Labels

    @property
    def files(self) -> Sequence[ImageFile]:
        """The samples as files of images."""
        return cast(Sequence[ImageFile], self.images)

    @property
    def texts(self) -> Sequence[str]:
        """The samples as texts."""
        return cast(Sequence[str], self.images)

    def take(self, indices: npt.NDArray[np.int64]) -> "Samples":
        """Return the samples at some positions.

        Args:
            indices: positions, in the order wanted.

        Returns:
            These samples alone.
        """
        if isinstance(self.images, Tensor):
            return Samples(images=self.images[torch.from_numpy(indices)], labels=self.labels[indices])
        chosen = cast(Sequence[ImageFile], [self.images[i] for i in indices])
        return Samples(images=chosen, labels=self.labels[indices])


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset as its reader found it.

    Attributes:
        name: for the report.
        classes: names of the labels, in order.
        train: the training images.
        valid: a validation split the dataset brings, or None when one is to be held out.
        test: reads the test split when it is called, or None when one is to be held out.
        texts: whether the samples are texts, not images.
    """

    name: str
    classes: tuple[str, ...]
    train: Samples
    valid: Samples | None = None
    test: Callable[[], Samples] | None = None
    texts: bool = False

    @property
    def things(self) -> str:
        """What the samples are, for messages."""
        return "texts" if self.texts else "images"


def read_digits() -> Source:
    """Read scikit-learn's embedded digits: 1,797 grayscale images of 8 by 8 pixels, 10 classes.

    Returns:
        All images as one pool.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = digits.target.astype(np.int64)
    return Source(name="digits", classes=tuple("0123456789"), train=Samples(images=images, labels=labels))


_TORCHVISION: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mnist": ("MNIST", {"train": True}, {"train": False}),
    "fashion-mnist": ("FashionMNIST", {"train": True}, {"train": False}),
    "kmnist": ("KMNIST", {"train": True}, {"train": False}),
    "emnist": ("EMNIST", {"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
    "svhn": ("SVHN", {"split": "train"}, {"split": "test"}),
    "cifar10": ("CIFAR10", {"train": True}, {"train": False}),
    "cifar100": ("CIFAR100", {"train": True}, {"train": False}),
}


def read_torchvision(name: str, data_dir: Path) -> Source:
    """Read a dataset through torchvision, from its folder layout; it is downloaded only when absent.

    Args:
        name: a named dataset other than ``digits``.
        data_dir: torchvision's root folder.

    Returns:
        The official training split, and the official test split unread.

    Raises:
        OdnError: when the files are absent and cannot be downloaded.
    """
    train = _torchvision_split(name, data_dir, train=True)

    def test() -> Samples:
        return _samples(_torchvision_split(name, data_dir, train=False))

    return Source(name=name, classes=_class_names(name, train), train=_samples(train), test=test)


def _torchvision_split(name: str, data_dir: Path, *, train: bool) -> Any:
    import torchvision

    class_name, train_options, test_options = _TORCHVISION[name]
    make = getattr(torchvision.datasets, class_name)
    options = train_options if train else test_options
    # SVHN keeps one file per split in the root folder; the others have a folder of their own.
    root = data_dir / "SVHN" if name == "svhn" and (data_dir / "SVHN").is_dir() else data_dir
    try:
        return make(root=str(root), download=False, **options)
    except _BROKEN as error:
        if "not found" not in str(error):  # how torchvision says that files are absent
            raise OdnError(
                f"dataset '{name}' in {root} is damaged ({_first_line(error)}); restore its files, or remove them to "
                "download them again"
            ) from error
    new = next((path for path in [*reversed(root.parents), root] if not path.exists()), None)
    names = {class_name, *(getattr(make, key, None) for key in ("base_folder", "filename"))}
    own = {root / str(entry) for entry in names} | {root / f"{split}_32x32.mat" for split in ("train", "test")}
    before = {path for path in own if path.exists()}
    try:
        return make(root=str(root), download=True, **options)
    except (OSError, RuntimeError) as error:
        for path in [new] if new else own - before:
            remove(path)
        state = "does not exist" if new else "does not hold it"
        raise OdnError(
            f"dataset '{name}' is missing: {root} {state} in torchvision's layout and the download failed "
            f"({_first_line(error)}); put the files there or name their folder with --data-dir"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _samples(dataset: Any) -> Samples:
    data = torch.as_tensor(dataset.data)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    if data.ndim == 3:
        data = data[:, None]
    elif data.shape[-1] == 3:
        data = data.permute(0, 3, 1, 2)
    if type(dataset).__name__ == "EMNIST":
        data = data.transpose(2, 3)  # its files hold every character transposed
    return Samples(images=data.contiguous(), labels=np.asarray(labels, dtype=np.int64))


def _class_names(name: str, dataset: Any) -> tuple[str, ...]:
    if name == "svhn":
        return tuple("0123456789")
    if name == "mnist":
        return tuple("0123456789")  # torchvision's own names read '0 - zero'
    return tuple(dataset.classes)


_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test", "x", "y")


def read_npz(path: Path) -> Source:
    """Read a NumPy archive with ``x_train y_train`` and optionally ``x_test y_test``, or ``x y`` alone.

    Args:
        path: an ``.npz`` file. Images are uint8, or floats in [0, 1], of shape (N, H, W), (N, H, W, C) or
            (N, C, H, W) with 1 or 3 channels; labels are integers or strings of shape (N,).

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
    except (*_BROKEN, MemoryError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        reason = _first_line(error)
        raise OdnError(f"cannot read {path}: {reason}; it must be an .npz file without pickled objects") from error
    keys = ("x_train", "y_train") if "x_train" in arrays else ("x", "y")
    if not set(keys) <= arrays.keys():
        found = ", ".join(sorted([*arrays, *others])) or "nothing"
        raise OdnError(f"{path} holds {found}; allowed: x_train and y_train [x_test y_test], or x and y")
    images, names = _npz_images(path, keys[0], arrays), _npz_labels(path, keys, arrays)
    classes, labels = np.unique(names, return_inverse=True)
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
        test_names = _npz_labels(path, ("x_test", "y_test"), arrays)
        unknown = sorted(set(test_names.tolist()) - set(names.tolist()))
        if unknown:
            raise OdnError(f"{path}: y_test has the label {unknown[0]!r}, which {keys[1]} does not have; remove it")
        test_samples = Samples(images=test_images, labels=np.searchsorted(classes, test_names).astype(np.int64))
        test = lambda: test_samples  # noqa: E731
    return Source(
        name=path.stem,
        classes=tuple(str(name) for name in classes),
        train=Samples(images=images, labels=labels.astype(np.int64)),
        test=test,
    )


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


def _npz_labels(path: Path, keys: tuple[str, str], arrays: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    y = arrays[keys[1]]
    if y.ndim != 1 or y.dtype.kind not in "iuU" or len(y) != len(arrays[keys[0]]):
        raise OdnError(
            f"{path}: {keys[1]} is {y.dtype} of shape {y.shape}; allowed: one integer or string per image, "
            f"shape ({len(arrays[keys[0]])},)"
        )
    return y
