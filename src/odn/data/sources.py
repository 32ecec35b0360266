"""Where images come from: one reader per kind of dataset, each handing over labelled images before any split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from odn.errors import OdnError
from odn.files import remove
from odn.images import ImageFile
from odn.tasks import Task

Labels = npt.NDArray[Any]
# What readers of files raise when these are cut short or hold something else.
BROKEN = (OSError, ValueError, RuntimeError, AssertionError, EOFError)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Labelled images of one split.

    Attributes:
        images: a uint8 tensor of shape (N, C, H, W), N files still to be decoded, or N texts.
        labels: indices into the classes, shape (N,), for segmentation (N, H, W); numbers of shape (N, K) for
            regression, float64; 0 or 1 for each of several labels.
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
        task: what the labels ask for.
        texts: whether the samples are texts, not images.
    """

    name: str
    classes: tuple[str, ...]
    train: Samples
    valid: Samples | None = None
    test: Callable[[], Samples] | None = None
    task: Task = "classification"
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
    except BROKEN as error:
        if "not found" not in str(error):  # how torchvision says that files are absent
            raise OdnError(
                f"dataset '{name}' in {root} is damaged ({first_line(error)}); restore its files, or remove them to "
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
            f"({first_line(error)}); put the files there or name their folder with --data-dir"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its name.

    Args:
        error: any.

    Returns:
        One line.
    """
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
