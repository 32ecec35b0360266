"""What a backbone family provides."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A backbone taken apart.

    Attributes:
        stem: from the image to the first feature map.
        blocks: the residual blocks in order; residual branches start at zero, so that a new block whose input
            and output shapes agree does not change the function.
    """

    stem: nn.Module
    blocks: tuple[nn.Module, ...]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """An entry of the registry.

    Attributes:
        name: by which users call it.
        library: where its layers come from.
        build: makes the parts for a number of image channels and a factor on the width.
        scales: whether a width other than 1 is possible.
    """

    name: str
    library: str
    build: Callable[[int, float], Parts]
    scales: bool = False
    task: str = "image-classification"
