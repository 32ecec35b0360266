"""What a backbone provides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from odn.backbones.chain import Chain

Task = Literal["image-classification", "text-classification"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a network is given.

    Attributes:
        shape: of one input, without the batch: channels, height and width of an image, or the number of tokens of a
            text.
        vocabulary: number of different tokens; 0 for images, and for the backbone's own.
        padding: id of the token that fills up a text; None for images, and for the backbone's own.
        dtype: of images float32, of tokens int64.
    """

    shape: tuple[int, ...]
    vocabulary: int = 0
    padding: int | None = None
    dtype: torch.dtype = torch.float32

    def example(self, batch: int) -> Tensor:
        """Return a batch on the meta device."""
        return torch.zeros(batch, *self.shape, dtype=self.dtype, device="meta")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the weights of a network come from that were not made at random.

    Attributes:
        blocks: so many blocks, from the first, came with trained weights.
        source: the file, or the library and the name.
        sha256: of the file, or of the library's weights; empty for a network of the user's own.
    """

    blocks: int
    source: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A backbone taken apart.

    Attributes:
        stem: from the input to the first features: patch, position and token embeddings, dropout.
        blocks: in order, down-sampling layers with the block that needs them; their residual branches start as the
            family starts them, at zero where it does.
        head: makes the head for features of a shape (without the batch) and a number of classes.
        channels_last: whether feature maps are (B, H, W, C).
        origin: of trained weights; None where all are fresh.
    """

    stem: nn.Module
    blocks: tuple[nn.Module, ...]
    head: Callable[[tuple[int, ...], int], nn.Module]
    channels_last: bool = False
    origin: Origin | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a text encoder can read.

    Attributes:
        positions: tokens at the most.
        vocabulary: different tokens that its trained weights know.
        padding: id of the token that fills up the texts of those.
    """

    positions: int
    vocabulary: int
    padding: int


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """An entry of the registry.

    Attributes:
        name: by which users call it.
        library: where its layers come from.
        make: makes the library's network for an input and a factor on the width, on the current device. Weights of
            that network belong between ``make`` and ``cut``: names and shapes are still the library's.
        find: finds, in that network made on the meta device, where it can be cut; given an example, too.
        cut: takes the network apart there.
        task: what it reads.
        scales: whether a width other than 1 is possible.
        sides: the side of the images that the library makes it for, and of what number sides have to be multiples.
        config: of an encoder that came from a directory.
        directory: that one, where it is known.
        reading: says what a text encoder can read; None for images.
        tokenizer: fetches the tokenizer of the weights that the library publishes, as JSON; None where there is none.
        pretrained: fetches the weights that the library publishes, by the names of the network that ``make`` makes;
            None where there are none.
    """

    name: str
    library: str
    make: Callable[[Inputs, float], nn.Module]
    find: Callable[[nn.Module, Tensor], Chain | None]
    cut: Callable[[nn.Module, Chain | None], Parts]
    task: Task = "image-classification"
    scales: bool = False
    sides: Callable[[], tuple[int, int]] = lambda: (224, 1)
    config: dict[str, int | float | str | bool] | None = None
    directory: str = ""
    reading: Callable[[], Reading] | None = None
    tokenizer: Callable[[], str] | None = None
    pretrained: Callable[[Inputs], Mapping[str, Tensor]] | None = None

    @property
    def source(self) -> str:
        """What to call trained weights that come with it."""
        return self.directory or f"{self.library}'s {self.name}"


def names_alone(names: Sequence[str]) -> list[list[str]]:
    """Make each module a block of its own.

    Args:
        names: of modules.

    Returns:
        One list per block.
    """
    return [[name] for name in names]
