"""Finding the samples that two splits have in common."""

import hashlib
from collections.abc import Iterator

import torch

from odn.data.splits import FileSplit, Split

_BATCH = 256


def shared_samples(some: Split, others: Split) -> int:
    """Count the samples of one split that are in another one too.

    Args:
        some: whose samples are counted.
        others: where they are looked for.

    Returns:
        Samples of ``some`` whose file, or without files whose content, is among ``others``.
    """
    if isinstance(some, FileSplit) and isinstance(others, FileSplit):
        names = {others.name(index) for index in range(len(others))}
        return sum(some.name(index) in names for index in range(len(some)))
    known = set(_digests(others))
    return sum(digest in known for digest in _digests(some))


def _digests(split: Split) -> Iterator[bytes]:
    for inputs, _ in split.batches(_BATCH, torch.arange(len(split)), torch.device("cpu")):
        for sample in inputs.cpu().numpy():
            yield hashlib.blake2b(sample.tobytes(), digest_size=16).digest()
