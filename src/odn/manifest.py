"""What an artifact says of itself: manifest.json, checked file by file. No torch here."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odn.errors import OdnError, UsageError
from odn.files import read_bytes, read_text, write_atomically
from odn.predictions import Labels, Prediction, predictions
from odn.runtimes import RUNTIMES, Logits
from odn.tables import from_table, to_table
from odn.tasks import Metric, Task
from odn.texts import AnyPreprocessing, TextPreprocessing
from odn.tokenizer import Tokenizer

SCHEMA = 2
MANIFEST_FILE, SPEC_FILE, WEIGHTS_FILE = "manifest.json", "spec.json", "weights.safetensors"
TOKENIZER_FILE = "tokenizer.json"
_TORCH_FILES = (SPEC_FILE, WEIGHTS_FILE)


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """Where a network's weights come from.

    Attributes:
        name: of the dataset.
        train: images trained on.
        valid: images that decisions rested on.
        seed: of their split.
    """

    name: str
    train: int
    valid: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Exported:
    """How the file for one runtime compared with PyTorch, on validation images and in a process of its own.

    Attributes:
        runtime: its name.
        kept: whether the file is in the artifact.
        reason: why it is not, or an empty string.
        weight_bytes: of the constants in the file, where that can be told apart from what holds them.
        max_difference: largest absolute difference of a logit.
        agreement: share of the images, of masks of the pixels, with the same label; None where answers are numbers.
        valid_score: in the metric of the data.
        valid_score_drop: that of the network in PyTorch, less this.
    """

    runtime: str
    kept: bool
    reason: str = ""
    weight_bytes: int | None = None
    max_difference: float | None = None
    agreement: float | None = None
    valid_score: float | None = None
    valid_score_drop: float | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a user of the network must know besides its weights.

    Attributes:
        labels: names of the classes, in the order of the logits.
        preprocessing: from image or text to input.
        dataset: where the weights come from.
        versions: of odn, Python and the libraries that wrote the files.
        files: SHA-256 of each other file of the artifact.
        exports: of each further runtime that was asked for.
        task: what the network says of an image.
        metric: what scores are values of.
        target_mean: for regression, of each number over the training split.
        target_std: likewise the standard deviation.
        schema: version of this format; 1 knew classes alone.
    """

    labels: tuple[str, ...]
    preprocessing: AnyPreprocessing
    dataset: TrainedOn
    versions: dict[str, str]
    files: dict[str, str]
    exports: tuple[Exported, ...] = ()
    task: Task = "classification"
    metric: Metric = "accuracy"
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    schema: int = SCHEMA

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Names of the runtimes that the artifact has files for, PyTorch first."""
        return ("torch", *(export.runtime for export in self.exports if export.kept))

    @property
    def scaling(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of the numbers of a regression, None for other tasks."""
        return (self.target_mean, self.target_std) if self.task == "regression" else None

    @property
    def texts(self) -> bool:
        """Whether the network reads texts."""
        return isinstance(self.preprocessing, TextPreprocessing)

    @property
    def shared_files(self) -> tuple[str, ...]:
        """Names of the files that every runtime needs."""
        return (TOKENIZER_FILE,) if self.texts else ()

    def predictions(self, outputs: Logits, depths: Labels | None = None) -> list[Prediction]:
        """Say in words what the network gave.

        Args:
            outputs: shape (B, K), for segmentation (B, K, H, W).
            depths: at which inputs left a routed network, shape (B,).

        Returns:
            One prediction per input.
        """
        said = predictions(self.task, self.labels, outputs)
        if depths is None:
            return said
        return [dataclasses.replace(one, depth=depth) for one, depth in zip(said, depths.tolist(), strict=True)]


def files_of(runtime: str) -> tuple[str, ...]:
    """Return the names of a runtime's files.

    Args:
        runtime: its name.

    Returns:
        Names within the artifact.
    """
    return _TORCH_FILES if runtime == "torch" else RUNTIMES[runtime].files


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write a manifest with its own checksum.

    Args:
        manifest: what to write.
        directory: the artifact.
    """
    table = to_table(manifest)
    write_atomically(directory / MANIFEST_FILE, json.dumps({**table, "sha256": _digest(table)}, indent=2) + "\n")


def read_manifest(directory: str | Path) -> Manifest:
    """Read a manifest; the files that it lists are not opened.

    Args:
        directory: the artifact.

    Returns:
        The manifest, checked.

    Raises:
        OdnError: when it is missing, changed, of a newer schema, or lists other files than it may.
    """
    directory = Path(directory)
    path = directory / MANIFEST_FILE
    if not directory.is_dir():
        raise OdnError(f"there is no artifact at {directory}; give the directory that odn run wrote, e.g. RUN/artifact")
    try:
        table = json.loads(read_text(path))
        schema = table["schema"]
        if not isinstance(schema, int) or schema > SCHEMA:
            raise OdnError(f"{path} has schema {schema}; this odn reads {SCHEMA}; install a newer odn")
        if table.pop("sha256", None) != _digest(table):
            raise OdnError(f"{path} was changed since it was exported; copy or export the artifact again")
        if schema == 1:
            table = _from_schema_1(table)
        manifest = from_table(Manifest, table)
    except (ValueError, RecursionError, KeyError, TypeError, UsageError) as error:
        raise OdnError(f"{path} is not a valid manifest ({error}); copy or export the artifact again") from error
    unknown = {export.runtime for export in manifest.exports} - set(RUNTIMES)
    if unknown:
        raise OdnError(f"{path} names the unknown runtime '{min(unknown)}'; export the network again")
    expected = [*(name for runtime in manifest.runtimes for name in files_of(runtime)), *manifest.shared_files]
    if sorted(manifest.files) != sorted(expected):
        raise OdnError(f"{path} must list {' and '.join(expected)}; export the network again")
    return manifest


def check_files(directory: Path, manifest: Manifest, runtime: str) -> None:
    """Compare the files of one runtime with their checksums.

    Args:
        directory: the artifact.
        manifest: its manifest.
        runtime: whose files are about to be used.

    Raises:
        OdnError: when one is missing or was changed.
    """
    again = "copy or export the artifact again"
    mend = "route the network again with: odn route RUN" if runtime == "routed" else again
    for name in (*files_of(runtime), *manifest.shared_files):
        if sha256(read_bytes(directory / name, mend)) != manifest.files[name]:
            raise OdnError(f"{directory / name} was changed since it was exported; {mend}")


def read_tokenizer(directory: Path, manifest: Manifest) -> Tokenizer:
    """Open the tokenizer of an artifact whose network reads texts.

    Args:
        directory: the artifact.
        manifest: its manifest.

    Returns:
        The tokenizer.

    Raises:
        OdnError: when the file was changed, is damaged, or has other tokens than the network.
    """
    path = directory / TOKENIZER_FILE
    assert isinstance(manifest.preprocessing, TextPreprocessing)
    content = read_text(path)
    if sha256(content.encode()) != manifest.files[TOKENIZER_FILE]:
        raise OdnError(f"{path} was changed since it was exported; copy or export the artifact again")
    tokenizer = Tokenizer(content, str(path), manifest.preprocessing.padding)
    said = manifest.preprocessing
    # Embeddings may have more rows than there are tokens, where they came trained.
    if tokenizer.vocabulary > said.vocabulary or tokenizer.padding != said.padding:
        raise OdnError(
            f"{path} has {tokenizer.vocabulary} tokens and pads with {tokenizer.padding}, the manifest says "
            f"{said.vocabulary} and {said.padding}; export the network again"
        )
    return tokenizer


def sha256(content: bytes) -> str:
    """Return the checksum of a file's content as hexadecimal digits.

    Args:
        content: of the file.

    Returns:
        64 digits.
    """
    return hashlib.sha256(content).hexdigest()


def _digest(table: dict[str, Any]) -> str:
    return sha256(json.dumps(table, sort_keys=True).encode())


def _from_schema_1(table: dict[str, Any]) -> dict[str, Any]:
    """Say in today's words what was written before there were tasks."""
    renamed = {"valid_accuracy": "valid_score", "valid_accuracy_drop": "valid_score_drop"}
    exports = [{renamed.get(key, key): value for key, value in row.items()} for row in table.get("exports", [])]
    return {**table, "exports": exports, "schema": SCHEMA}
