"""A deployed network in PyTorch. Reading an artifact needs no training code."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from odn.errors import OdnError, UsageError
from odn.layers import Deployed
from odn.manifest import Manifest, check_files, read_manifest, read_tokenizer
from odn.network import Prefix
from odn.predictions import Prediction
from odn.storage import load_network
from odn.texts import TextPreprocessing
from odn.tokenizer import Tokenizer


@final
class Artifact:
    """A loaded artifact.

    Args:
        network: in evaluation mode.
        manifest: labels and preprocessing.
        tokenizer: of a network that reads texts.
    """

    def __init__(self, network: Prefix, manifest: Manifest, tokenizer: Tokenizer | None = None) -> None:
        self.network, self.manifest, self.tokenizer = network, manifest, tokenizer
        self.deployed = Deployed(network, manifest.preprocessing, manifest.scaling).eval()

    def predict(self, inputs: Tensor | Sequence[str]) -> list[Prediction]:
        """Say what is asked of images or texts, whichever the network reads.

        Args:
            inputs: images, uint8 of shape (B, C, H, W) with the channels and size that the manifest names; or texts.

        Returns:
            One prediction per image or text.

        Raises:
            UsageError: when type or shape are others.
        """
        images = self._encoded(inputs) if self.tokenizer else self._checked(inputs)
        images = images.to(next(self.network.parameters()).device)
        with torch.inference_mode():
            logits = self.deployed(images)
        return self.manifest.predictions(logits.cpu().numpy())

    def _encoded(self, texts: Tensor | Sequence[str]) -> Tensor:
        assert self.tokenizer is not None
        if isinstance(texts, str | Tensor) or not texts or not all(isinstance(text, str) for text in texts):
            raise UsageError('this network reads texts; give a list of them, e.g. ["a text"]')
        return torch.from_numpy(self.tokenizer.encode(texts, self.manifest.preprocessing.input_shape[0]))

    def _checked(self, images: Tensor | Sequence[str]) -> Tensor:
        shape = self.manifest.preprocessing.input_shape
        if not isinstance(images, Tensor):
            raise UsageError(
                f"this network reads images; give a uint8 tensor of shape (B, {', '.join(map(str, shape))})"
            )
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != shape:
            raise UsageError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; allowed: uint8 of shape (B, "
                f"{', '.join(map(str, shape))})"
            )
        return images


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
    manifest = read_manifest(directory)
    check_files(directory, manifest, "torch")
    network = load_network(directory)
    assert network.spec is not None
    preprocessing = manifest.preprocessing
    vocabulary = preprocessing.vocabulary if isinstance(preprocessing, TextPreprocessing) else 0
    expected = (preprocessing.input_shape, vocabulary, len(manifest.labels))
    if (network.spec.input_shape, network.spec.vocabulary, network.spec.classes) != expected:
        raise OdnError(f"{directory}: manifest and spec disagree on the input or the classes; export the network again")
    return Artifact(network.eval(), manifest, read_tokenizer(directory, manifest) if manifest.texts else None)
