"""Splits: labelled images or texts that hand out batches, from memory or streamed from files.

Shapes: B batch, C channels, H height, W width, T tokens.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from odn.config import AugmentConfig
from odn.images import BadImage, ImageFile, Preprocessing, decode, image_warnings
from odn.launch import local_world_size
from odn.metrics import trivial_score
from odn.tasks import Metric, Task
from odn.texts import AnyPreprocessing, TextPreprocessing


def derive_seed(seed: int, *parts: str | int) -> int:
    """Derive an independent seed for one use, so that no random state has to be carried from use to use.

    Args:
        seed: the run's seed.
        *parts: what the randomness is for, e.g. a name, a depth and an epoch.

    Returns:
        A seed in [0, 2^63).
    """
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a network and its users must know of a dataset.

    Attributes:
        name: of the dataset.
        classes: names of the labels, in the order of the logits; for regression of the numbers.
        preprocessing: from image to input, with statistics of the training split; or from text.
        train_count: samples in the training split.
        valid_count: samples in the validation split.
        seed: of the split.
        augment: changes made to training images.
        task: what is asked of an image.
        metric: what a score is a value of.
        target_mean: for regression, mean of each number over the training split; the network gives them standardised.
        target_std: likewise their standard deviation.
        tokenizer: of texts, as JSON; empty for images.
        train_support: training samples of each class or label; empty where there are neither. What is told of a dataset
            besides, like this and the rest, does not make it another one.
        valid_support: likewise of the validation split.
        train_truncated: training texts that are longer than the network reads.
        valid_truncated: likewise of the validation split.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: AnyPreprocessing
    train_count: int
    valid_count: int
    seed: int
    augment: AugmentConfig
    task: Task = "classification"
    metric: Metric = "accuracy"
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    tokenizer: str = ""
    train_support: tuple[int, ...] = field(default=(), compare=False)
    valid_support: tuple[int, ...] = field(default=(), compare=False)
    train_truncated: int = field(default=0, compare=False)
    valid_truncated: int = field(default=0, compare=False)

    @property
    def scaling(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of the numbers of a regression, None for other tasks."""
        return (self.target_mean, self.target_std) if self.task == "regression" else None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height and width of every image, or the number of tokens of every text."""
        return self.preprocessing.input_shape

    @property
    def texts(self) -> bool:
        """Whether it holds texts."""
        return isinstance(self.preprocessing, TextPreprocessing)

    @property
    def vocabulary(self) -> int:
        """Number of different tokens; 0 for images."""
        return self.preprocessing.vocabulary if isinstance(self.preprocessing, TextPreprocessing) else 0

    @property
    def trivial_score(self) -> float | None:
        """What the best answer scores on the validation split that is the same for every sample; None if unknown."""
        return trivial_score(self.metric, self.valid_support, self.valid_count)

    @property
    def padding(self) -> int | None:
        """Id of the token that fills up texts; None for images."""
        return self.preprocessing.padding if isinstance(self.preprocessing, TextPreprocessing) else None


class Split(Protocol):
    """Labelled images or texts, in a fixed order."""

    spec: DataSpec

    def __len__(self) -> int:
        """Return the number of images."""

    def batches(self, batch_size: int, indices: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the samples at ``indices``, in order: uint8 images BCHW or int32 ids BT, and their labels."""

    def name(self, index: int) -> str:
        """Say which image stands at a position."""


@final
class TensorSplit:
    """A split whose decoded images lie in memory and move to the training device once.

    Args:
        images: uint8, shape (N, C, H, W); or ids of tokens, int32, shape (N, T).
        labels: of all N samples: int64 indices into the classes of ``spec``, shape (N,), for segmentation
            (N, H, W); else float32 numbers of shape (N, K).
        spec: of the dataset.
    """

    def __init__(self, images: Tensor, labels: Tensor, spec: DataSpec) -> None:
        assert images.dtype == (torch.int32 if spec.texts else torch.uint8)
        assert len(images) == len(labels)
        self.images, self.labels, self.spec = images, labels, spec
        self._resident = (images, labels)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def batches(self, batch_size: int, indices: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches straight from memory.

        Args:
            batch_size: images per batch; the last one may be smaller.
            indices: positions to visit, in order.
            device: where the batches are wanted; the whole split moves there at the first call.

        Yields:
            uint8 images of shape (B, C, H, W), or int32 ids of shape (B, T), and their labels.
        """
        if self._resident[0].device != device:
            self._resident = (self.images.to(device), self.labels.to(device))
        images, labels = self._resident
        for chunk in indices.to(device).split(batch_size):
            yield images[chunk], _computable(labels[chunk])

    def name(self, index: int) -> str:
        """Return the sample's position: those in memory have no other name."""
        return f"{'text' if self.spec.texts else 'image'} {index}"


@final
class _Files(Dataset[tuple[Tensor | BadImage, Tensor]]):
    def __init__(self, paths: Sequence[ImageFile], labels: Tensor, shape: tuple[int, int, int]) -> None:
        self.paths, self.labels, self.shape = paths, labels, shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor | BadImage, Tensor]:
        with image_warnings():
            try:
                return torch.from_numpy(decode(self.paths[index], self.shape)), self.labels[index]
            except BadImage as error:  # an error that a worker raises arrives as a traceback in a text
                return error, self.labels[index]


def _collate(samples: list[tuple[Tensor | BadImage, Tensor]]) -> tuple[Tensor, Tensor] | BadImage:
    images = []
    for image, _ in samples:
        if isinstance(image, BadImage):
            return image
        images.append(image)
    return torch.stack(images), _computable(torch.stack([label for _, label in samples]))


def _computable(labels: Tensor) -> Tensor:
    """Give labels the type that losses take: masks are held in fewer bytes."""
    return labels if labels.is_floating_point() else labels.long()


@final
class FileSplit:
    """A split whose images stay in their files and are decoded by worker processes while training runs.

    Args:
        paths: image files.
        labels: of all N samples, as those of ``TensorSplit``.
        spec: of the dataset.
        workers: processes that decode; 0 means one per CPU core that this process has to itself, at most 8.
    """

    def __init__(self, paths: Sequence[ImageFile], labels: Tensor, spec: DataSpec, workers: int = 0) -> None:
        self.paths, self.labels, self.spec = list(paths), labels, spec
        self.workers = workers or max(1, min(8, (os.cpu_count() or 1) // local_world_size()))
        assert isinstance(spec.preprocessing, Preprocessing)
        self._files = _Files(self.paths, labels, spec.preprocessing.input_shape)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def batches(self, batch_size: int, indices: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches decoded by the workers.

        Args:
            batch_size: images per batch; the last one may be smaller.
            indices: positions to visit, in order.
            device: where the batches are wanted.

        Yields:
            uint8 images of shape (B, C, H, W) and their labels.

        Raises:
            BadImage: when a file has become unreadable since it was checked.
        """
        loader = DataLoader(
            self._files,
            batch_size=batch_size,
            sampler=indices.tolist(),
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
        )
        for batch in loader:
            if isinstance(batch, BadImage):
                raise batch
            images, labels = batch
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def name(self, index: int) -> str:
        """Return the image's file."""
        return str(self.paths[index])
