"""Splits: labelled images that hand out uint8 batches, from memory or streamed from files.

Shapes: B batch, C channels, H height, W width.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from odn.config import AugmentConfig
from odn.data.augment import augment
from odn.data.images import BadImage, decode, image_warnings
from odn.errors import UsageError


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
class Preprocessing:
    """What turns an image into a network's input.

    Attributes:
        input_shape: channels (1 is grayscale, 3 is RGB), height and width; other sizes are resized bilinearly.
        mean: per channel, of the training split's pixels scaled to [0, 1].
        std: likewise the standard deviation.
    """

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        channels = self.input_shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise UsageError(
                f"{len(self.mean)} means and {len(self.std)} deviations; allowed: {channels}, one per channel"
            )
        if not all(map(math.isfinite, self.mean)) or not all(0 < std < math.inf for std in self.std):
            raise UsageError(f"mean {self.mean} and std {self.std}; allowed: finite numbers, deviations above 0")

    def normalise(self, x_BCHW: Tensor) -> Tensor:
        """Scale images by the training split's statistics.

        Args:
            x_BCHW: images in [0, 1], shape (B, C, H, W); anything else with channels second does as well.

        Returns:
            Images of about zero mean and unit variance, same shape.
        """
        per_channel = (-1, *[1] * (x_BCHW.ndim - 2))
        mean = torch.tensor(self.mean, dtype=x_BCHW.dtype, device=x_BCHW.device).view(per_channel)
        std = torch.tensor(self.std, dtype=x_BCHW.dtype, device=x_BCHW.device).view(per_channel)
        return (x_BCHW - mean) / std


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a network and its users must know of a dataset.

    Attributes:
        name: of the dataset.
        classes: names of the labels, in the order of the logits.
        preprocessing: from image to input, with statistics of the training split.
        train_count: images in the training split.
        valid_count: images in the validation split.
        seed: of the split.
        augment: changes made to training images.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    train_count: int
    valid_count: int
    seed: int
    augment: AugmentConfig

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.preprocessing.input_shape


class Split(Protocol):
    """Labelled images, in a fixed order."""

    spec: DataSpec

    def __len__(self) -> int:
        """Return the number of images."""

    def batches(self, batch_size: int, indices: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images at ``indices``, in that order, as (uint8 images BCHW, int64 labels B)."""

    def name(self, index: int) -> str:
        """Say which image stands at a position."""


@final
class TensorSplit:
    """A split whose decoded images lie in memory and move to the training device once.

    Args:
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,), indices into the classes of ``spec``.
        spec: of the dataset.
    """

    def __init__(self, images: Tensor, labels: Tensor, spec: DataSpec) -> None:
        assert images.dtype == torch.uint8
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
            uint8 images of shape (B, C, H, W) and int64 labels of shape (B,).
        """
        if self._resident[0].device != device:
            self._resident = (self.images.to(device), self.labels.to(device))
        images, labels = self._resident
        for chunk in indices.to(device).split(batch_size):
            yield images[chunk], labels[chunk]

    def name(self, index: int) -> str:
        """Return the image's position: images in memory have no other name."""
        return f"image {index}"


@final
class _Files(Dataset[tuple[Tensor | BadImage, int]]):
    def __init__(self, paths: Sequence[Path], labels: Sequence[int], shape: tuple[int, int, int]) -> None:
        self.paths, self.labels, self.shape = paths, labels, shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor | BadImage, int]:
        with image_warnings():
            try:
                return decode(self.paths[index], self.shape), self.labels[index]
            except BadImage as error:  # an error that a worker raises arrives as a traceback in a text
                return error, self.labels[index]


def _collate(samples: list[tuple[Tensor | BadImage, int]]) -> tuple[Tensor, Tensor] | BadImage:
    images = []
    for image, _ in samples:
        if isinstance(image, BadImage):
            return image
        images.append(image)
    return torch.stack(images), torch.tensor([label for _, label in samples])


@final
class FileSplit:
    """A split whose images stay in their files and are decoded by worker processes while training runs.

    Args:
        paths: image files.
        labels: int64, shape (N,), indices into the classes of ``spec``.
        spec: of the dataset.
        workers: processes that decode; 0 means one per CPU core, at most 8.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, spec: DataSpec, workers: int = 0) -> None:
        self.paths, self.labels, self.spec = list(paths), labels, spec
        self.workers = workers or min(8, os.cpu_count() or 1)
        self._files = _Files(self.paths, labels.tolist(), spec.input_shape)

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
            uint8 images of shape (B, C, H, W) and int64 labels of shape (B,).

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


def epoch_order(split: Split, batch_size: int, *, seed: int) -> Tensor:
    """Return the images of one training epoch in the order they are visited.

    A last batch smaller than the others is left out, because BatchNorm's statistics of few images are poor.

    Args:
        split: the training split.
        batch_size: images per batch.
        seed: of the epoch.

    Returns:
        Positions in the split, int64; a whole number of batches, or all images where they do not fill one.
    """
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return order[: max(len(order) // batch_size, 1) * batch_size]


def training_batches(
    split: Split, batch_size: int, device: torch.device, *, seed: int, first: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of shuffled, augmented, normalised training batches.

    Args:
        split: the training split.
        batch_size: images per batch.
        device: where the batches are wanted.
        seed: fixes the order of this epoch, and with the number of the batch its augmentation.
        first: number of the batch to begin with, from 0; those before are not even loaded.

    Yields:
        float32 images of shape (B, C, H, W) and int64 labels of shape (B,).
    """
    order = epoch_order(split, batch_size, seed=seed)[first * batch_size :]
    if not len(order):
        return  # the epoch was interrupted after its last batch
    for number, (images, labels) in enumerate(split.batches(batch_size, order, device), first):
        generator = torch.Generator().manual_seed(derive_seed(seed, "batch", number))
        x_BCHW = augment(images.float() / 255, split.spec.augment, generator)
        yield split.spec.preprocessing.normalise(x_BCHW), labels


def plain_batches(
    split: Split, batch_size: int, device: torch.device, *, count: int | None = None, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised batches without augmentation.

    Args:
        split: any split.
        batch_size: images per batch; the last one may be smaller.
        device: where the batches are wanted.
        count: a random subset of so many images; None yields all, in order.
        seed: fixes that subset.

    Yields:
        float32 images of shape (B, C, H, W) and int64 labels of shape (B,).
    """
    indices = torch.arange(len(split))
    if count is not None:
        indices = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    for images, labels in split.batches(batch_size, indices, device):
        yield split.spec.preprocessing.normalise(images.float() / 255), labels
