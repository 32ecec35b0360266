"""The deployable directory: spec.json, weights.safetensors and manifest.json. Reading it needs no training code."""

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from odn.data import DataSpec, Preprocessing
from odn.data.images import decode, image_warnings
from odn.errors import OdnError, UsageError
from odn.files import new_directory, write_atomically
from odn.network import Prefix
from odn.storage import SPEC_FILE, WEIGHTS_FILE, load_network, read_bytes, read_text, write_network
from odn.tables import from_table, to_table

SCHEMA = 1
_MANIFEST = "manifest.json"
_PREDICT_BATCH = 64


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
class Manifest:
    """What a user of the network must know besides its weights.

    Attributes:
        labels: names of the classes, in the order of the logits.
        preprocessing: from image to input.
        dataset: where the weights come from.
        versions: of odn, torch and Python when it was written.
        files: SHA-256 of each other file of the artifact.
        schema: version of this format.
    """

    labels: tuple[str, ...]
    preprocessing: Preprocessing
    dataset: TrainedOn
    versions: dict[str, str]
    files: dict[str, str]
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable label of one image.

    Attributes:
        label: name of the class.
        probability: softmax probability, in [0, 1].
    """

    label: str
    probability: float


@final
class Artifact:
    """A loaded artifact.

    Args:
        network: in evaluation mode.
        manifest: labels and preprocessing.
    """

    def __init__(self, network: Prefix, manifest: Manifest) -> None:
        self.network, self.manifest = network, manifest

    def predict(self, images: Tensor) -> list[Prediction]:
        """Classify images.

        Args:
            images: uint8, shape (B, C, H, W) with the channels and size that the manifest names.

        Returns:
            One prediction per image.

        Raises:
            UsageError: when type or shape are others.
        """
        shape = self.manifest.preprocessing.input_shape
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != shape:
            raise UsageError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; allowed: uint8 of shape (B, "
                f"{', '.join(map(str, shape))})"
            )
        images = images.to(next(self.network.parameters()).device)
        with torch.inference_mode():
            logits = self.network(self.manifest.preprocessing.normalise(images.float() / 255))
            probabilities, indices = logits.softmax(1).max(1)
        return [
            Prediction(label=self.manifest.labels[index], probability=probability)
            for index, probability in zip(indices.tolist(), probabilities.tolist(), strict=True)
        ]

    def predict_files(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Prediction]]:
        """Classify image files, resizing them to the network's input.

        Args:
            paths: the files.

        Yields:
            Each path with its prediction, in order.
        """
        for start in range(0, len(paths), _PREDICT_BATCH):
            chunk = paths[start : start + _PREDICT_BATCH]
            with image_warnings():
                images = torch.stack([decode(path, self.manifest.preprocessing.input_shape) for path in chunk])
            yield from zip(chunk, self.predict(images), strict=True)


def export(network: Prefix, directory: str | Path, data: DataSpec) -> Path:
    """Write a network as an artifact.

    Args:
        network: as extracted from a named backbone.
        directory: the artifact; one that stands there is replaced.
        data: what the network was trained on: labels and preprocessing.

    Returns:
        The directory.

    Raises:
        OdnError: when the directory holds something else, or cannot be written.
    """
    directory = Path(directory)
    if directory.exists():
        empty = directory.is_dir() and not any(directory.iterdir())
        if not empty and not (directory / _MANIFEST).is_file():
            raise OdnError(f"{directory} exists and is not an artifact; choose another place")
    with new_directory(directory) as partial:
        write_network(network, partial)
        manifest = Manifest(
            labels=data.classes,
            preprocessing=data.preprocessing,
            dataset=TrainedOn(name=data.name, train=data.train_count, valid=data.valid_count, seed=data.seed),
            versions={
                "odn": version("optimally-deep"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            files={name: _sha256((partial / name).read_bytes()) for name in (SPEC_FILE, WEIGHTS_FILE)},
        )
        table = to_table(manifest)
        document = json.dumps({**table, "sha256": _digest(table)}, indent=2)
        write_atomically(partial / _MANIFEST, document + "\n")
    return directory


def load(directory: str | Path) -> Artifact:
    """Load an artifact: JSON and safetensors only, every file checked, nothing unpickled.

    Args:
        directory: as written by ``export``.

    Returns:
        The network, ready to predict, on the CPU.

    Raises:
        OdnError: when a file is missing, changed, or of a newer schema.
    """
    directory = Path(directory)
    manifest = _read_manifest(directory)
    for name, expected in manifest.files.items():
        if name not in (SPEC_FILE, WEIGHTS_FILE):
            raise OdnError(f"{directory / _MANIFEST} lists the unknown file '{name}'; export the network again")
        if _sha256(read_bytes(directory / name)) != expected:
            raise OdnError(f"{directory / name} was changed since it was exported; copy or export the artifact again")
    network = load_network(directory)
    assert network.spec is not None
    expected_shape = (manifest.preprocessing.input_shape, len(manifest.labels))
    if (network.spec.input_shape, network.spec.classes) != expected_shape:
        raise OdnError(f"{directory}: manifest and spec disagree on the input or the classes; export the network again")
    return Artifact(network.eval(), manifest)


def _read_manifest(directory: Path) -> Manifest:
    path = directory / _MANIFEST
    if not directory.is_dir():
        raise OdnError(f"there is no artifact at {directory}; give the directory that odn run wrote, e.g. RUN/artifact")
    try:
        table = json.loads(read_text(path))
        schema = table["schema"]
        if not isinstance(schema, int) or schema > SCHEMA:
            raise OdnError(f"{path} has schema {schema}; this odn reads {SCHEMA}; install a newer odn")
        if table.pop("sha256", None) != _digest(table):
            raise OdnError(f"{path} was changed since it was exported; copy or export the artifact again")
        manifest = from_table(Manifest, table)
    except (ValueError, RecursionError, KeyError, TypeError, UsageError) as error:
        raise OdnError(f"{path} is not a valid manifest ({error}); copy or export the artifact again") from error
    if set(manifest.files) != {SPEC_FILE, WEIGHTS_FILE}:
        raise OdnError(f"{path} must list {SPEC_FILE} and {WEIGHTS_FILE}; export the network again")
    return manifest


def _digest(table: dict[str, Any]) -> str:
    return _sha256(json.dumps(table, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
