"""Texts: a tokenizer of their own, and what turns a text into a network's input. No torch here.

Shapes: B batch, T tokens.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

from odn.errors import OdnError, UsageError, require_extra
from odn.images import Pixels, Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

Ids = npt.NDArray[np.int64]
Batch = Pixels | Ids  # what sessions of runtimes are given
PADDING, MASK = 0, 1
_SPECIAL = ("[PAD]", "[MASK]")
FEWEST = 256 + len(_SPECIAL)  # a token for every byte, so that no text is unknown
_CHUNK = 1024
_MAX_TOKENS, _MAX_VOCABULARY = 8192, 10_000_000


@dataclass(frozen=True, kw_only=True)
class TextPreprocessing:
    """What turns a text into a network's input, besides the tokenizer.

    Attributes:
        tokens: of every text: shorter ones are filled up with the id 0, longer ones are cut off.
        vocabulary: number of different tokens.
    """

    tokens: int
    vocabulary: int

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= _MAX_TOKENS:
            raise UsageError(f"texts of {self.tokens} tokens; allowed: 1 to {_MAX_TOKENS}")
        if not FEWEST <= self.vocabulary <= _MAX_VOCABULARY:
            raise UsageError(f"vocabulary of {self.vocabulary} tokens; allowed: {FEWEST} to {_MAX_VOCABULARY}")

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
        return np.random.default_rng(0).integers(MASK + 1, self.vocabulary, (count, self.tokens), dtype=np.int64)


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


def train_tokenizer(texts: Iterable[str], *, vocabulary: int, lowercase: bool) -> str:
    """Learn byte pairs from texts (Sennrich et al., arXiv 1508.07909).

    They are those of bytes, as in GPT-2, so that no text is unknown. The same texts give the same tokenizer, which that
    of word pieces in the same library does not.

    Args:
        texts: of the training split alone.
        vocabulary: most tokens that it may have.
        lowercase: whether capital letters are dropped.

    Returns:
        The tokenizer as JSON, in the format of the library ``tokenizers``.
    """
    library = require_extra("tokenizers", "text", "reading texts")
    tokenizer = _assemble(library, {}, [], lowercase)
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(_SPECIAL),
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    content: str = tokenizer.to_str()
    return content


def _assemble(library: Any, vocabulary: dict[str, int], merges: list[tuple[str, str]], lowercase: bool) -> Any:
    tokenizer = library.Tokenizer(library.models.BPE(vocabulary, merges))
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


@final
class Tokenizer:
    """Turns texts into the ids of their tokens.

    Of the JSON only the vocabulary, the merges and whether capitals count are believed: what it says of rules, which a
    stranger could make slow or wrong, has to be what ``train_tokenizer`` writes.

    Args:
        content: as from ``train_tokenizer``.
        where: name of the file, for messages.

    Raises:
        OdnError: when it is something else.
    """

    def __init__(self, content: str, where: str = "tokenizer.json") -> None:
        library = require_extra("tokenizers", "text", "reading texts")
        try:
            table = json.loads(content)
            model, lowercase = table["model"], table["normalizer"]["lowercase"]
            vocabulary, merges = model["vocab"], [(left, right) for left, right in model["merges"]]
            kinds = (model["type"], table["normalizer"]["type"], table["pre_tokenizer"]["type"])
            own = kinds == ("BPE", "BertNormalizer", "ByteLevel") and isinstance(lowercase, bool)
            own = own and {*map(type, vocabulary.values())} == {int} and len(vocabulary) >= FEWEST
            own = own and sorted(vocabulary.values()) == list(range(len(vocabulary)))
            own = own and all(vocabulary.get(name) == index for index, name in enumerate(_SPECIAL))
            if not own:
                raise OdnError(f"{where} is not a tokenizer that odn trained; export the network again")
            self._tokenizer = _assemble(library, vocabulary, merges, lowercase)
        except OdnError:
            raise
        except Exception as error:  # the library's own errors have no class
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise OdnError(f"{where} is damaged ({reason}); export the network again") from error
        self.vocabulary = len(vocabulary)

    def ragged(self, texts: Iterable[str]) -> Iterator[npt.NDArray[np.int32]]:
        """Turn texts into ids, a chunk of texts at a time.

        Args:
            texts: any number.

        Yields:
            The ids of each text, uncut.
        """
        source = iter(texts)
        while chunk := list(islice(source, _CHUNK)):
            for encoding in self._tokenizer.encode_batch(chunk, add_special_tokens=False):
                yield np.asarray(encoding.ids, dtype=np.int32)

    def encode(self, texts: Sequence[str], tokens: int) -> Ids:
        """Turn texts into a network's input.

        Args:
            texts: one or more.
            tokens: T; longer texts are cut off, shorter ones filled up.

        Returns:
            Ids of shape (B, T).
        """
        return pack(self.ragged(texts), len(texts), tokens).astype(np.int64)


def pack(ragged: Iterable[npt.NDArray[np.int32]], count: int, tokens: int) -> npt.NDArray[np.int32]:
    """Lay ids of texts beside each other.

    Args:
        ragged: the ids of each text.
        count: number of texts.
        tokens: T; longer texts are cut off, shorter ones filled up.

    Returns:
        Ids of shape (count, T).
    """
    ids = np.full((count, tokens), PADDING, np.int32)
    for row, text in zip(ids, ragged, strict=True):
        row[: len(text)] = text[:tokens]
    return ids


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
