"""A deployed network in PyTorch. Reading an artifact needs no training code."""

from pathlib import Path
from typing import final

import torch
from torch import Tensor

from odn.errors import OdnError, UsageError
from odn.layers import Deployed
from odn.manifest import Manifest, Prediction, check_files, read_manifest
from odn.network import Prefix
from odn.storage import load_network


@final
class Artifact:
    """A loaded artifact.

    Args:
        network: in evaluation mode.
        manifest: labels and preprocessing.
    """

    def __init__(self, network: Prefix, manifest: Manifest) -> None:
        self.network, self.manifest = network, manifest
        self.deployed = Deployed(network, manifest.preprocessing, manifest.scaling).eval()

    def predict(self, images: Tensor) -> list[Prediction]:
        """Say what is asked of images.

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
            logits = self.deployed(images)
        return self.manifest.predictions(logits.cpu().numpy())


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
    expected_shape = (manifest.preprocessing.input_shape, len(manifest.labels))
    if (network.spec.input_shape, network.spec.classes) != expected_shape:
        raise OdnError(f"{directory}: manifest and spec disagree on the input or the classes; export the network again")
    return Artifact(network.eval(), manifest)
