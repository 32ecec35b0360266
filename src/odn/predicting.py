"""Classifying image files or texts, many at once: a few threads decode while the network runs."""

import collections
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from odn.errors import OdnError, UsageError
from odn.files import files_below
from odn.images import BadImage, Pixels, Preprocessing, decode, image_warnings
from odn.manifest import Manifest, read_manifest, read_tokenizer
from odn.predictions import Prediction
from odn.runtimes import Session
from odn.sessions import Answer, choose_runtime, open_answer, open_session
from odn.tokenizer import Tokenizer

_BATCH = 64
# Files that are decoded faster than this are mostly Python's work, for which threads would only wait for each other.
_SMALL_SECONDS = 2e-4
_MAX_LINE_BYTES = 16 * 1024**2
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

    Raises:
        UsageError: when the network reads texts.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if manifest.texts:
        raise UsageError(f"{directory} reads texts, not images; use predict_texts")
    answer = open_answer(directory, manifest, choose_runtime(manifest, runtime), threads or cpu_count())
    return _predict(answer, manifest, paths)


def _predict(answer: Answer, manifest: Manifest, paths: Iterable[Path]) -> Iterator[tuple[Path, Prediction | BadImage]]:
    workers = min(4, cpu_count())
    source = iter(paths)
    waiting: collections.deque[Future[_Decoded]] = collections.deque()
    assert isinstance(manifest.preprocessing, Preprocessing)
    shape = manifest.preprocessing.input_shape
    small, seconds = True, float("inf")
    with image_warnings(), ThreadPoolExecutor(workers) as pool:
        while chunk := list(itertools.islice(source, _BATCH)):
            if small:
                start = time.perf_counter()
                decoded = _decode_all(chunk, shape)
                # The first files load the decoders too, so that the faster of two chunks counts.
                before, seconds = seconds, (time.perf_counter() - start) / len(chunk)
                small = min(before, seconds) < _SMALL_SECONDS or before == float("inf")
                yield from _classify(answer, manifest, *decoded)
                continue
            waiting.append(pool.submit(_decode_all, chunk, shape))
            if len(waiting) > 2 * workers:
                yield from _classify(answer, manifest, *waiting.popleft().result())
        while waiting:
            yield from _classify(answer, manifest, *waiting.popleft().result())


def _decode_all(paths: Sequence[Path], shape: tuple[int, int, int]) -> _Decoded:
    decoded: list[Pixels | BadImage] = []
    for path in paths:
        try:
            decoded.append(decode(path, shape))
        except BadImage as error:
            decoded.append(error)
    return paths, decoded


def _classify(
    answer: Answer, manifest: Manifest, paths: Sequence[Path], decoded: list[Pixels | BadImage]
) -> Iterator[tuple[Path, Prediction | BadImage]]:
    images = [image for image in decoded if not isinstance(image, BadImage)]
    predictions = iter(manifest.predictions(*answer(np.stack(images))) if images else [])
    for path, image in zip(paths, decoded, strict=True):
        yield path, image if isinstance(image, BadImage) else next(predictions)


def predict_texts(
    directory: str | Path,
    texts: Iterable["Text | BadText"],
    *,
    runtime: str | None = None,
    threads: int | None = None,
) -> Iterator["tuple[Text, Prediction] | BadText"]:
    """Classify texts.

    Args:
        directory: the artifact.
        texts: they are read as they come.
        runtime: ``onnx`` or ``torch``; None takes the first that the artifact has a file for.
        threads: to compute with; None takes one per processor.

    Returns:
        Each text, in order, with its prediction; what was no text as it came. The artifact has been checked when this
        returns.

    Raises:
        UsageError: when the network reads images.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if not manifest.texts:
        raise UsageError(f"{directory} reads images, not texts; give image files")
    session = open_session(directory, manifest, choose_runtime(manifest, runtime), threads or cpu_count())
    return _predict_texts(session, manifest, read_tokenizer(directory, manifest), iter(texts))


def _predict_texts(
    session: Session, manifest: Manifest, tokenizer: Tokenizer, source: Iterator["Text | BadText"]
) -> Iterator["tuple[Text, Prediction] | BadText"]:
    tokens = manifest.preprocessing.input_shape[0]
    while chunk := list(itertools.islice(source, _BATCH)):
        good = [text for text in chunk if isinstance(text, Text)]
        ragged = [*tokenizer.ragged(text.content for text in good)]
        ids = tokenizer.pack(ragged, len(good), tokens).astype(np.int64)
        said = manifest.predictions(session(ids)) if good else []
        predictions = iter([replace(one, truncated=len(ids) > tokens) for one, ids in zip(said, ragged, strict=True)])
        for text in chunk:
            yield text if isinstance(text, BadText) else (text, next(predictions))


class Text(NamedTuple):
    """A text, and where it stands.

    Attributes:
        where: file and line.
        content: the text.
    """

    where: str
    content: str


class BadText(OdnError):
    """A line that holds no text; the message says which."""


def find_texts(names: Iterable[str], standard: IO[bytes]) -> Iterator[Text | BadText]:
    """Read texts, one a line.

    Args:
        names: files, or ``-`` for ``standard``.
        standard: further lines.

    Yields:
        The texts in order, and what is wrong with lines that hold none.

    Raises:
        OdnError: when a file cannot be read.
    """
    for name in names:
        try:
            if name == "-":
                yield from _lines("stdin", standard)
            else:
                with Path(name).open("rb") as file:
                    yield from _lines(name, file)
        except OSError as error:
            raise OdnError(f"cannot read {name}: {error.strerror}; give a file with one text a line") from error


def _lines(name: str, file: IO[bytes]) -> Iterator[Text | BadText]:
    number = 0
    while line := file.readline(_MAX_LINE_BYTES + 1):
        number += 1
        where = f"{name}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            text, where = "", f"{where} is not UTF-8; save the file as UTF-8"
        else:
            where += "" if text else " is an empty text; fill it in or remove the line"
        if len(line) > _MAX_LINE_BYTES:
            raise OdnError(f"{name}:{number} is longer than {_MAX_LINE_BYTES:,} bytes; give one text a line")
        yield Text(where, text) if text else BadText(where)


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
            files = files_below(folder)
            if (first := next(files, None)) is None:
                raise OdnError(f"the folder {folder} holds no file; name one with images")
            yield first
            yield from files
        else:
            yield Path(name)
