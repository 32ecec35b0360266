"""Tokenizers: of byte pairs learnt from a dataset, or the one that trained embeddings came with. No torch here.

Shapes: B batch, T tokens.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import final

import numpy as np
import numpy.typing as npt

from odn.errors import OdnError, require_extra
from odn.texts import PADDING, SPECIAL, Ids
from odn.tokenizer_rules import ALLOWED, find_tokens, rebuild

_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """The tokenizer that trained embeddings came with.

    Attributes:
        content: JSON in the format of the library ``tokenizers``.
        where: name of the file or of the encoder, for messages.
        padding: id of the token that fills up a text, where the JSON does not say it.
        vocabulary: rows of the embeddings.
    """

    content: str
    where: str
    padding: int
    vocabulary: int


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
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    content: str = tokenizer.to_str()
    return content


@final
class Tokenizer:
    """Turns texts into the ids of their tokens.

    Of the JSON only vocabulary, merges, and rules of known kinds are believed; it is rebuilt from them, so that what a
    stranger wrote cannot make it slow. Special tokens are set around a text and never read in it: a text that says
    ``[SEP]`` says five characters.

    Args:
        content: as from ``train_tokenizer``, or of an encoder that was trained elsewhere.
        where: name of the file, for messages.
        padding: id of the token that fills up a text, where the JSON does not say it.

    Attributes:
        content: JSON from which the same tokenizer is rebuilt.
        vocabulary: the largest id of a token, and one.
        padding: id of the token that fills up a text.
        mask: id of the token that hides others; None where there is none.
        prefix: ids in front of every text.
        suffix: ids behind it.

    Raises:
        OdnError: when it is damaged or of a kind that is not read.
    """

    def __init__(self, content: str, where: str = "tokenizer.json", padding: int = PADDING) -> None:
        library = require_extra("tokenizers", "text", "reading texts")
        try:
            table = json.loads(content)
            tokens = find_tokens(table, padding)
            self.content = json.dumps(
                rebuild(table, tokens, library.pre_tokenizers.ByteLevel.alphabet()), ensure_ascii=False
            )
            self._tokenizer = library.Tokenizer.from_str(self.content)
            if any(self._tokenizer.token_to_id(token) != number for token, number in tokens.ids.items()):
                raise ValueError("the ids of its added tokens are not those behind the vocabulary")
        except OdnError as error:
            raise OdnError(f"{where}: {error}") from error
        except Exception as error:  # the library's own errors have no class
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise OdnError(f"{where} is damaged ({reason}); copy it again, or export the network again") from error
        self.vocabulary = max(tokens.ids.values()) + 1
        self.padding, self.mask = tokens.ids[tokens.padding], tokens.ids[tokens.mask] if tokens.mask else None
        self.prefix, self.suffix = tokens.number(*tokens.front), tokens.number(*tokens.back)
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    def ragged(self, texts: Iterable[str]) -> Iterator[npt.NDArray[np.int32]]:
        """Turn texts into ids, a chunk of texts at a time.

        Args:
            texts: any number.

        Yields:
            The ids of each text with those around it, uncut.
        """
        source = iter(texts)
        while chunk := list(islice(source, _CHUNK)):
            for encoding in self._tokenizer.encode_batch(chunk, add_special_tokens=False):
                yield np.asarray([*self.prefix, *encoding.ids, *self.suffix], dtype=np.int32)

    def pack(self, ragged: Iterable[npt.NDArray[np.int32]], count: int, tokens: int) -> npt.NDArray[np.int32]:
        """Lay ids of texts beside each other.

        Args:
            ragged: the ids of each text, as from ``ragged``.
            count: number of texts.
            tokens: T; longer texts are cut off in front of what ends every text, shorter ones filled up.

        Returns:
            Ids of shape (count, T).
        """
        ids = np.full((count, tokens), self.padding, np.int32)
        for row, text in zip(ids, ragged, strict=True):
            row[: len(text)] = text[:tokens]
            if len(text) > tokens and self.suffix:
                row[-len(self.suffix) :] = self.suffix
        return ids

    def encode(self, texts: Sequence[str], tokens: int) -> Ids:
        """Turn texts into a network's input.

        Args:
            texts: one or more.
            tokens: T, as in ``pack``.

        Returns:
            Ids of shape (B, T).
        """
        return self.pack(self.ragged(texts), len(texts), tokens).astype(np.int64)


def check_same(tokenizer: Tokenizer, source: TokenizerSource, texts: Sequence[str]) -> None:
    """Make sure that a tokenizer which was rebuilt from another reads texts as that one does.

    Args:
        tokenizer: rebuilt.
        source: from which.
        texts: to try both on.

    Raises:
        OdnError: when a text has other tokens, with its beginning.
    """
    theirs = require_extra("tokenizers", "text", "reading texts").Tokenizer.from_str(source.content)
    theirs.no_padding()
    theirs.no_truncation()
    theirs.encode_special_tokens = True
    for text, ours in zip(texts, tokenizer.ragged(texts), strict=True):
        if theirs.encode(text).ids != ours.tolist():
            raise OdnError(
                f"{source.where}: odn cannot follow all rules of its tokenizer, texts such as {text[:40]!r} would get "
                f"other tokens; allowed: {ALLOWED}"
            )
