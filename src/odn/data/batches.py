"""Batches for training and evaluation: their order, their augmentation, and each process's share of them.

Shapes: B batch, C channels, H height, W width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from odn.data.augment import augment, augment_with_masks, drop_tokens
from odn.data.splits import DataSpec, Split, derive_seed
from odn.images import Preprocessing


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


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of the data that one process of several takes.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    @property
    def parts(self) -> tuple[int, ...]:
        """What tells this process's randomness from that of the others; nothing for the first one."""
        return (self.rank,) if self.rank else ()


WHOLE = Share()


def training_batches(
    split: Split, batch_size: int, device: torch.device, *, seed: int, first: int = 0, share: Share = WHOLE
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of shuffled, augmented, normalised training batches.

    Args:
        split: the training split.
        batch_size: images per batch, of all processes together.
        device: where the batches are wanted.
        seed: fixes the order of this epoch, and with the number of the batch its augmentation.
        first: number of the batch to begin with, from 0; those before are not even loaded.
        share: which images of every batch this process takes.

    Yields:
        float32 images of shape (B, C, H, W), or int64 ids of shape (B, T), and their labels.
    """
    order = epoch_order(split, batch_size, seed=seed)[first * batch_size :]
    if not len(order):
        return  # the epoch was interrupted after its last batch
    mine = order.view(-1, min(batch_size, len(order)))[:, share.rank :: share.world]
    for number, (images, labels) in enumerate(split.batches(mine.shape[1], mine.flatten(), device), first):
        generator = torch.Generator().manual_seed(derive_seed(seed, "batch", number, *share.parts))
        yield _augmented(images, labels, split.spec, generator)


def _augmented(batch: Tensor, labels: Tensor, spec: DataSpec, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if not isinstance(spec.preprocessing, Preprocessing):
        ids = spec.preprocessing.prepare(batch)
        return drop_tokens(ids, spec.preprocessing, spec.augment, generator), labels
    x_BCHW = batch.float() / 255
    if spec.task == "segmentation":
        x_BCHW, labels = augment_with_masks(x_BCHW, labels, spec.augment, generator)
    else:
        x_BCHW = augment(x_BCHW, spec.augment, generator)
    return spec.preprocessing.normalise(x_BCHW), labels


def plain_batches(
    split: Split,
    batch_size: int,
    device: torch.device,
    *,
    count: int | None = None,
    seed: int = 0,
    share: Share = WHOLE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised batches without augmentation.

    Args:
        split: any split.
        batch_size: images per batch; the last one may be smaller.
        device: where the batches are wanted.
        count: a random subset of so many images; None yields all, in order.
        seed: fixes that subset.
        share: which images this process takes.

    Yields:
        float32 images of shape (B, C, H, W), or int64 ids of shape (B, T), and their labels.
    """
    indices = torch.arange(len(split))
    if count is not None:
        indices = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    for images, labels in split.batches(batch_size, indices[share.rank :: share.world], device):
        yield split.spec.preprocessing.prepare(images), labels
