"""Masks in files of their own: which labels they hold, and the label of every pixel at the network's size."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import psutil

from odn.data.sources import Labels, Samples
from odn.data.targets import MOST_CLASSES, UNLABELLED
from odn.errors import OdnError
from odn.images import BadImage, decode_mask, image_facts, image_warnings
from odn.metrics import IGNORED


def mask_classes(images: Sequence[Path], masks: Sequence[Path]) -> tuple[str, ...]:
    """Find out which labels masks hold, by reading all of them.

    Args:
        images: N files.
        masks: the mask of each.

    Returns:
        Names of the labels, ``0`` to the largest.

    Raises:
        OdnError: when a mask is not of its image's size, has no label at all, or is a picture rather than a mask.
    """
    with image_warnings(), ThreadPoolExecutor() as pool:
        largest = [*pool.map(_largest, images, masks)]
    return tuple(map(str, range(max(largest) + 1)))


def _largest(image: Path, file: Path) -> int:
    mask = decode_mask(file)
    try:
        height, width, _ = image_facts(image)
    except BadImage:
        height, width = mask.shape  # what is wrong with an image is said where images are read
    if mask.shape != (height, width):
        theirs = "x".join(map(str, mask.shape))
        raise OdnError(f"the mask {file} has {theirs} pixels, its image {image} has {height}x{width}; they must agree")
    largest = int(mask[mask != UNLABELLED].max(initial=-1))
    if not 0 <= largest < MOST_CLASSES:
        found = "no label but 255, which marks pixels that do not count" if largest < 0 else f"the label {largest}"
        raise OdnError(f"the mask {file} has {found}; allowed: 0 to {MOST_CLASSES - 1}, a foreground is written as 1")
    return largest


def with_masks(samples: Samples, size: tuple[int, int], classes: int) -> Samples:
    """Read the masks of samples whose labels are files.

    Args:
        samples: of a segmentation; labels that are pixels already stay as they are.
        size: height and width of the network's input; masks of another size are resized to the nearest pixel.
        classes: number of labels that training masks have.

    Returns:
        The same samples with int16 labels of shape (N, H, W).

    Raises:
        OdnError: when a mask has a label that the training masks do not have, or all need more memory than is free.
    """
    if samples.labels.dtype != object:
        return samples
    files = cast(Sequence[Path], samples.labels.tolist())
    needed, free = 2 * len(files) * size[0] * size[1], psutil.virtual_memory().available
    if needed > free:
        raise OdnError(
            f"{len(files):,} masks of {size[0]}x{size[1]} take {needed:,} bytes, but {free:,} bytes of memory are "
            "free; lower --image-size"
        )
    labels: Labels = np.empty((len(files), *size), np.int16)

    def read(index: int, file: Path) -> None:
        mask = decode_mask(file, size)
        known = (mask < classes) | (mask == UNLABELLED)
        if not known.all():
            raise OdnError(f"the mask {file} has the label {mask[~known].max()}, which the training masks do not have")
        labels[index] = np.where(mask == UNLABELLED, IGNORED, mask)

    with image_warnings(), ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda item: read(*item), enumerate(files)):
            pass
    return Samples(images=samples.images, labels=labels)
