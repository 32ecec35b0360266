"""Texts: what turns the ids of their tokens into a network's input, and how many there are. No torch here.

Shapes: B batch, T tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from odn.errors import UsageError
from odn.images import Pixels, Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

Ids = npt.NDArray[np.int64]
Batch = Pixels | Ids  # what sessions of runtimes are given
PADDING, MASK = 0, 1
SPECIAL = ("[PAD]", "[MASK]")
FEWEST = 256 + len(SPECIAL)  # a token for every byte, so that no text is unknown
_MAX_TOKENS, _MAX_VOCABULARY = 8192, 10_000_000


@dataclass(frozen=True, kw_only=True)
class TextPreprocessing:
    """What turns a text into a network's input, besides the tokenizer.

    Attributes:
        tokens: of every text: shorter ones are filled up, longer ones are cut off.
        vocabulary: number of different tokens, rows of the embeddings.
        padding: id of the token that fills up a text.
        mask: id of the token that hides others while training.
    """

    tokens: int
    vocabulary: int
    padding: int = PADDING
    mask: int = MASK

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= _MAX_TOKENS:
            raise UsageError(f"texts of {self.tokens} tokens; allowed: 1 to {_MAX_TOKENS}")
        if not 4 <= self.vocabulary <= _MAX_VOCABULARY:
            raise UsageError(f"vocabulary of {self.vocabulary} tokens; allowed: 4 to {_MAX_VOCABULARY}")
        if not (0 <= self.padding < self.vocabulary and 0 <= self.mask < self.vocabulary):
            raise UsageError(
                f"padding has the id {self.padding} and mask {self.mask}; allowed: below the {self.vocabulary} tokens"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Number of tokens of a text."""
        return (self.tokens,)

    def prepare(self, ids_BT: "Tensor") -> "Tensor":
        """Turn stored ids into a network's input.

        Args:
            ids_BT: of any integer type, shape (B, T).

        Returns:
            The same as int64.
        """
        return ids_BT.long()

    def noise(self, count: int) -> Ids:
        """Make inputs that cost what real ones cost.

        Args:
            count: how many.

        Returns:
            Random ids without padding, shape (count, T).
        """
        ids = np.random.default_rng(0).integers(0, self.vocabulary - 1, (count, self.tokens), dtype=np.int64)
        return ids + (ids >= self.padding)


AnyPreprocessing = Preprocessing | TextPreprocessing


def plain_preprocessing(input_shape: tuple[int, ...], vocabulary: int = 0) -> AnyPreprocessing:
    """Make the preprocessing of a network that no data were named for, to time it on noise.

    Args:
        input_shape: channels, height and width of an image, or the number of tokens of a text.
        vocabulary: different tokens; 0 takes as few as there can be.

    Returns:
        One of the right kind.
    """
    if len(input_shape) == 1:
        return TextPreprocessing(tokens=input_shape[0], vocabulary=vocabulary or FEWEST)
    channels, height, width = input_shape
    return Preprocessing(input_shape=(channels, height, width), mean=(0.5,) * channels, std=(0.25,) * channels)


def fitting_vocabulary(texts: Iterable[str]) -> int:
    """Choose how many tokens the texts of a dataset are made of: seldom tokens are learnt by heart, not understood.

    Args:
        texts: of the training split.

    Returns:
        One for every 24 words, rounded down to a power of two between 512 and 8,192.
    """
    words = sum(len(text.split()) for text in texts)
    return min(max(1 << (max(words // 24, 1).bit_length() - 1), 512), 8192)


def fitting_length(lengths: Sequence[int], positions: int) -> int:
    """Choose how many tokens the texts of a dataset get.

    Args:
        lengths: tokens of each training text.
        positions: that the encoder has at the most.

    Returns:
        What 99 of 100 texts need, rounded up to a multiple of 8, at most the positions.
    """
    needed = int(np.ceil(np.percentile(lengths, 99)))
    return min(max(-(-needed // 8) * 8, 8), positions)
