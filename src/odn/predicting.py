"""Classifying image files, many at once: a few threads decode while the network runs."""

import collections
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from odn.errors import OdnError
from odn.images import BadImage, Pixels, decode, image_warnings
from odn.manifest import Manifest, Prediction, read_manifest
from odn.runtimes import Session
from odn.sessions import choose_runtime, open_session

_BATCH = 64
_Decoded = tuple[Sequence[Path], list[Pixels | BadImage]]


def cpu_count() -> int:
    """Count the processors that this process may use.

    Returns:
        Their number, 1 or more.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def predict_files(
    directory: str | Path, paths: Iterable[Path], *, runtime: str | None = None, threads: int | None = None
) -> Iterator[tuple[Path, Prediction | BadImage]]:
    """Classify image files, resizing them to the network's input.

    Args:
        directory: the artifact.
        paths: the files; they are read as they come.
        runtime: ``onnx``, ``int8`` or ``torch``; None takes the first that the artifact has a file for.
        threads: to compute with; None takes one per processor.

    Returns:
        Each path, in order, with its prediction or with what is wrong with the file. The artifact has been checked when
        this returns, the files are decoded while the result is read.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    session = open_session(directory, manifest, choose_runtime(manifest, runtime), threads or cpu_count())
    return _predict(session, manifest, paths)


def _predict(
    session: Session, manifest: Manifest, paths: Iterable[Path]
) -> Iterator[tuple[Path, Prediction | BadImage]]:
    workers = min(4, cpu_count())
    source = iter(paths)
    waiting: collections.deque[Future[_Decoded]] = collections.deque()
    shape = manifest.preprocessing.input_shape
    with image_warnings(), ThreadPoolExecutor(workers) as pool:
        while chunk := list(itertools.islice(source, _BATCH)):
            waiting.append(pool.submit(_decode_all, chunk, shape))
            if len(waiting) > 2 * workers:
                yield from _classify(session, manifest, *waiting.popleft().result())
        while waiting:
            yield from _classify(session, manifest, *waiting.popleft().result())


def _decode_all(paths: Sequence[Path], shape: tuple[int, int, int]) -> _Decoded:
    decoded: list[Pixels | BadImage] = []
    for path in paths:
        try:
            decoded.append(decode(path, shape))
        except BadImage as error:
            decoded.append(error)
    return paths, decoded


def _classify(
    session: Session, manifest: Manifest, paths: Sequence[Path], decoded: list[Pixels | BadImage]
) -> Iterator[tuple[Path, Prediction | BadImage]]:
    images = [image for image in decoded if not isinstance(image, BadImage)]
    predictions = iter(manifest.predictions(session(np.stack(images))) if images else ())
    for path, image in zip(paths, decoded, strict=True):
        yield path, image if isinstance(image, BadImage) else next(predictions)


def find_files(names: Iterable[str], listed: Iterable[str]) -> Iterator[Path]:
    """Turn what a user named into files.

    Args:
        names: files, folders (searched to the bottom, hidden files left out), or ``-`` for ``listed``.
        listed: further names, a line each.

    Yields:
        The files, in order.

    Raises:
        OdnError: when a folder holds no file.
    """
    for name in names:
        if name == "-":
            yield from find_files((line.rstrip("\r\n") for line in listed if line.strip()), ())
        elif (folder := Path(name)).is_dir():
            files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
            if not files:
                raise OdnError(f"the folder {folder} holds no file; name one with images")
            yield from files
        else:
            yield Path(name)
