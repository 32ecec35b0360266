"""The command ``odn predict``. No torch here, and none is imported unless its runtime is."""

import csv
import itertools
import json as json_module
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from odn.command import DONE, FAILED, Switch, check_threads
from odn.errors import OdnError, UsageError, did_you_mean

if TYPE_CHECKING:
    from odn.predictions import Prediction

Item = TypeVar("Item")
_PROGRESS_SECONDS = 10.0


def predict_command(
    artifact: Path,
    files: Annotated[list[str] | None, Parameter(consume_multiple=True, allow_leading_hyphen=True)] = None,
    /,
    *,
    text: list[str] | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    masks: Path | None = None,
    json: Switch = False,
    csv: Switch = False,
) -> int:
    """Say what a network sees in image files or texts: path, label and probability, one line each.

    Files that cannot be read are named on stderr; the others are classified all the same, and the exit code is 1.

    Args:
        artifact: the directory that odn run or odn export wrote.
        files: images, folders of them, or - for a list on stdin; they are resized to the network's input. For a network
            that reads texts: files with one text a line, or - for stdin.
        text: a text to classify; may be repeated.
        runtime: onnx, int8, routed or torch [default: the first that the artifact has a file for].
        threads: to compute with [default: one per processor].
        masks: for segmentation, a folder that receives the label of every pixel as NAME.png, sub-folders as given.
        json: print one JSON object per line.
        csv: print CSV with a header.
    """
    for name in files or []:
        if name.startswith("-") and name != "-":  # the parser lets everything through for the sake of the one dash
            options = ("--text", "--runtime", "--threads", "--masks", "--json", "--csv")
            hint = did_you_mean(name, options)
            raise UsageError(f"unknown option '{name}'; allowed: {' '.join(options)}; a file is ./{name}.{hint}")
    if json and csv:
        raise UsageError("--json and --csv exclude each other; give one of them")
    check_threads(threads)
    from odn.manifest import read_manifest

    manifest = read_manifest(artifact)
    if masks is not None and manifest.task != "segmentation":
        raise UsageError(f"--masks is for segmentation; this network was trained for {manifest.task}")
    predict = _predict_texts if manifest.texts else _predict_images
    outcomes = predict(artifact, files or [], text or [], runtime, threads)
    write = _writer("json" if json else "csv" if csv else "text")
    code, truncated = DONE, 0
    for outcome in _with_progress(outcomes):
        if isinstance(outcome, OdnError):
            print(f"odn: {outcome}", file=sys.stderr)
            code = FAILED
        else:
            path, prediction = outcome
            write(path, prediction)
            truncated += prediction.truncated
            if masks is not None and prediction.mask is not None:
                _write_mask(masks / _mask_name(Path(path), files or []), prediction.mask)
    if truncated:
        tokens = manifest.preprocessing.input_shape[0]
        print(f"odn: {truncated} of the texts are longer than the {tokens} tokens that are read", file=sys.stderr)
    return code


def _predict_images(
    artifact: Path, files: list[str], texts: list[str], runtime: str | None, threads: int | None
) -> "Iterator[tuple[str, Prediction] | OdnError]":
    from odn.predicting import find_files, predict_files

    if texts or not files:
        raise UsageError(f"{artifact} reads images; give FILES" + (" in the place of --text" if texts else ""))
    outcomes = predict_files(artifact, find_files(files, sys.stdin), runtime=runtime, threads=threads)
    return (outcome if isinstance(outcome, OdnError) else (str(path), outcome) for path, outcome in outcomes)


def _predict_texts(
    artifact: Path, files: list[str], texts: list[str], runtime: str | None, threads: int | None
) -> "Iterator[tuple[str, Prediction] | OdnError]":
    from odn.predicting import Text, find_texts, predict_texts

    if not files and not texts:
        raise UsageError(f'{artifact} reads texts; give --text "..." or files with one text a line')
    if not all(map(str.strip, texts)):
        raise UsageError("--text is empty; give a text")
    given = (Text(f"text {number}", text) for number, text in enumerate(texts, 1))
    source = itertools.chain(given, find_texts(files, sys.stdin.buffer))
    outcomes = predict_texts(artifact, source, runtime=runtime, threads=threads)
    return (outcome if isinstance(outcome, OdnError) else (outcome[0].where, outcome[1]) for outcome in outcomes)


def _writer(style: Literal["text", "json", "csv"]) -> "Callable[[str, Prediction], object]":
    if style == "csv":
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(("path", "label", "probability"))
        return lambda path, said: table.writerow((path, said.label, _digits(said.probability, 6)))
    if style == "json":

        def write(path: str, said: "Prediction") -> None:
            row: dict[str, Any] = {"path": path, "label": said.label, "probability": said.probability}
            row |= {"values": dict(said.values)} if said.values else {}
            row |= {"depth": said.depth} if said.depth is not None else {}
            row |= {"truncated": True} if said.truncated else {}
            sys.stdout.write(json_module.dumps(row) + "\n")

        return write
    return lambda path, said: sys.stdout.write(
        "\t".join([path, said.label, *([_digits(said.probability, 4)] if said.probability is not None else [])]) + "\n"
    )


def _digits(probability: float | None, count: int) -> str:
    return "" if probability is None else f"{probability:.{count}f}"


def _mask_name(path: Path, given: list[str]) -> Path:
    """Name the mask of an image as the image is named, below the folder that was given."""
    folder = next((Path(name) for name in given if Path(name).is_dir() and path.is_relative_to(name)), path.parent)
    return path.relative_to(folder).with_suffix(".png")


def _write_mask(target: Path, mask: Any) -> None:
    """Write the label of every pixel as a grayscale image, at the network's size."""
    from PIL import Image

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise OdnError(f"{target} exists already; choose an empty folder with --masks")
        Image.fromarray(mask).save(target)
    except OSError as error:
        raise OdnError(f"cannot write {target}: {error.strerror or error}") from error


def _with_progress(items: Iterable[Item]) -> Iterator[Item]:
    """Tell on stderr how far it has come: often on a terminal, now and then elsewhere."""
    live = sys.stderr.isatty()
    begin = told = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        if count % 64 == 0 and (now := time.monotonic()) - told > (0.2 if live else _PROGRESS_SECONDS):
            told = now
            text = f"{count:,} classified, {count / (now - begin):,.0f} per second"
            print(f"\r{text}" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)
    if live and told != begin:
        print(file=sys.stderr)
