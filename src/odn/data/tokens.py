"""Texts become splits: a tokenizer is trained on the training split or taken over, and texts become ids of tokens."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import psutil
import torch

from odn.config import AugmentConfig, DataConfig
from odn.data.sources import Samples, Source
from odn.data.splits import DataSpec, Split, TensorSplit
from odn.data.targets import as_targets, target_facts
from odn.errors import OdnError, UsageError
from odn.texts import TextPreprocessing, fitting_length, fitting_vocabulary
from odn.tokenizer import Tokenizer, TokenizerSource, check_same, train_tokenizer

Ragged = npt.NDArray[np.int32]
_TRIED = 1000  # texts on which a tokenizer that was taken over is held against the original
_log = logging.getLogger(__name__)


def token_splits(
    source: Source,
    parts: tuple[Samples, Samples, Callable[[], Samples]],
    config: DataConfig,
    augment: AugmentConfig,
    seed: int,
    positions: int,
    given: TokenizerSource | None,
) -> tuple[Split, Split, DataSpec, Callable[[], Split]]:
    """Turn the texts of a dataset into ids.

    Args:
        source: the dataset.
        parts: its training and validation samples, and what reads those for the test.
        config: vocabulary, length, letters.
        augment: changes made to training texts.
        seed: of the split.
        positions: tokens that the encoder can read at the most.
        given: the tokenizer that trained embeddings came with; None trains one.

    Returns:
        Training and validation split, what is known of them, and what reads the test split.

    Raises:
        UsageError: when a setting is for images or another tokenizer, or asks for more tokens than there are positions.
    """
    train, valid, read_test = parts
    if config.image_size:
        raise UsageError(
            f"--image-size {config.image_size} is for image files, {source.name} holds texts; leave it out"
        )
    if config.max_tokens > positions:
        raise UsageError(
            f"--max-tokens is {config.max_tokens}, more than the encoder's positions; allowed: up to {positions}"
        )
    tokenizer, preprocessing = _adopt(given, train.texts, config, augment) if given else _learn(train.texts, config)
    ragged = list(tokenizer.ragged(train.texts))
    held_out = list(tokenizer.ragged(valid.texts))
    tokens = config.max_tokens or fitting_length([len(ids) for ids in ragged], positions)
    framed = len(tokenizer.prefix) + len(tokenizer.suffix)
    if tokens <= framed:
        raise UsageError(f"--max-tokens is {tokens}; allowed: above {framed}, the tokens that stand around every text")
    spec = DataSpec(
        name=source.name,
        preprocessing=replace(preprocessing, tokens=tokens),
        train_count=len(train.labels),
        valid_count=len(valid.labels),
        seed=seed,
        augment=augment,
        tokenizer=tokenizer.content,
        train_truncated=_tell_truncated("training", ragged, tokens),
        valid_truncated=_tell_truncated("validation", held_out, tokens),
        **target_facts(source.task, config.metric, source.classes, train.labels, valid.labels),
    )

    def split(samples: Samples, ragged: Sequence[Ragged]) -> Split:
        count = len(ragged)
        needed, free = count * tokens * 4, psutil.virtual_memory().available
        if needed > free:
            raise OdnError(
                f"{source.name}: {count:,} texts of {tokens} tokens take {needed:,} bytes, but {free:,} bytes of "
                "memory are free; lower --max-tokens or give fewer texts"
            )
        return TensorSplit(
            torch.from_numpy(tokenizer.pack(ragged, count, tokens)), as_targets(samples.labels, spec), spec
        )

    def test() -> Split:
        samples = read_test()
        ragged = list(tokenizer.ragged(samples.texts))
        _tell_truncated("test", ragged, tokens)
        return split(samples, ragged)

    return split(train, ragged), split(valid, held_out), spec, test


def _learn(texts: Sequence[str], config: DataConfig) -> tuple[Tokenizer, TextPreprocessing]:
    """Train a tokenizer."""
    vocabulary = config.vocabulary or fitting_vocabulary(texts)
    tokenizer = Tokenizer(train_tokenizer(texts, vocabulary=vocabulary, lowercase=config.lowercase))
    return tokenizer, TextPreprocessing(tokens=1, vocabulary=tokenizer.vocabulary)


def _adopt(
    given: TokenizerSource, texts: Sequence[str], config: DataConfig, augment: AugmentConfig
) -> tuple[Tokenizer, TextPreprocessing]:
    """Rebuild the tokenizer that came with trained weights, and make sure that it reads these texts as it did."""
    if config.vocabulary or not config.lowercase:
        setting = f"vocabulary is {config.vocabulary}" if config.vocabulary else "lowercase is false"
        raise UsageError(
            f"data.{setting}, which is for a tokenizer of the run's own; leave it out, trained weights bring theirs"
        )
    tokenizer = Tokenizer(given.content, given.where, given.padding)
    if tokenizer.vocabulary > given.vocabulary:
        raise OdnError(
            f"{given.where} knows {tokenizer.vocabulary} tokens, the trained embeddings {given.vocabulary}; give the "
            "tokenizer that the weights were trained with"
        )
    check_same(tokenizer, given, texts[:_TRIED])
    if tokenizer.mask is None and augment.token_dropout:
        raise UsageError(
            f"{given.where} has no token [MASK] or <mask> to hide others while training; set augment.token_dropout "
            "to 0 in a recipe"
        )
    mask = tokenizer.padding if tokenizer.mask is None else tokenizer.mask
    return tokenizer, TextPreprocessing(tokens=1, vocabulary=given.vocabulary, padding=tokenizer.padding, mask=mask)


def _tell_truncated(split: str, ragged: Sequence[Ragged], tokens: int) -> int:
    """Count the texts that are cut off, and say so: what is missing in them is not read, in training and later."""
    count = sum(len(ids) > tokens for ids in ragged)
    if count:
        message = "%d of %d %s texts are longer than the %d tokens that are read (--max-tokens), the longest has %d"
        _log.warning(message, count, len(ragged), split, tokens, max(map(len, ragged)))
    return count
