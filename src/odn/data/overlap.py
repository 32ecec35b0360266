"""Finding the samples that two splits have in common."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from odn.data.splits import FileSplit, Split
from odn.images import ImageFile

MOST_SHARED = 0.01  # of a split that is judged on: real data repeat themselves a little
_BATCH = 256
_log = logging.getLogger(__name__)


def shared_samples(some: Split, others: Split) -> int:
    """Count the samples of one split that are in another one too.

    Args:
        some: whose samples are counted.
        others: where they are looked for.

    Returns:
        Samples of ``some`` whose content, that of their file where they have one, is among ``others``.
    """
    if isinstance(some, FileSplit) and isinstance(others, FileSplit):
        return _shared_files(some.paths, others.paths)
    known = set(_digests(others))
    return sum(digest in known for digest in _digests(some))


def tell_shared(some: Split, train: Split, name: str) -> None:
    """Say when samples that something is judged on were trained on; those that stay in files are not read for it.

    Args:
        some: the split that is judged on.
        train: the training split.
        name: of the former.
    """
    if isinstance(some, FileSplit) or isinstance(train, FileSplit):
        return
    shared = shared_samples(some, train)
    if shared > MOST_SHARED * len(some):
        _log.warning("%d of %d %s samples are in the training split too, and will look easy", shared, len(some), name)


def _shared_files(some: Sequence[ImageFile], others: Sequence[ImageFile]) -> int:
    """Count files with the same content, under whatever name; only those of equal size are read to the end."""
    wanted = {_bytes_of(path) for path in some}
    known = {_digest(path) for path in others if _bytes_of(path) in wanted}
    return sum(_digest(path) in known for path in some) if known else 0


def _bytes_of(path: ImageFile) -> int:
    return path.stat().st_size if isinstance(path, Path) else len(path.read_bytes())


def _digest(path: ImageFile) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()


def _digests(split: Split) -> Iterator[bytes]:
    for inputs, _ in split.batches(_BATCH, torch.arange(len(split)), torch.device("cpu")):
        for sample in inputs.cpu().numpy():
            yield hashlib.blake2b(sample.tobytes(), digest_size=16).digest()
