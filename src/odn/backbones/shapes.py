"""What a backbone's blocks give for an image: discovered by running it without memory, never tabulated."""

import torch
from torch import Tensor

from odn.backbones.parts import Backbone
from odn.errors import UsageError


def feature_shapes(backbone: Backbone, input_shape: tuple[int, int, int], width: float) -> list[tuple[int, int, int]]:
    """Discover what every block gives, by running the backbone on the meta device.

    Args:
        backbone: entry of the registry.
        input_shape: channels, height and width of an image.
        width: factor on the backbone's channels.

    Returns:
        Channels, height and width after each block.

    Raises:
        UsageError: when the image is so small that the first block would see a single pixel.
    """
    with torch.device("meta"):
        parts = backbone.build(input_shape[0], width)

    def stem_shape(height: int, width: int) -> Tensor:
        images = torch.empty(1, input_shape[0], height, width, device="meta")
        features: Tensor = parts.stem.eval()(images)
        return features

    features = stem_shape(*input_shape[1:])
    if min(features.shape[2:]) < 2:
        smallest = next(side for side in range(1, 1024) if min(stem_shape(side, side).shape[2:]) >= 2)
        raise UsageError(
            f"images of {input_shape[1]}x{input_shape[2]} are too small for '{backbone.name}': the smallest it can "
            f"take is {smallest}x{smallest}; resize them (--image-size for image files) or choose a backbone with a "
            "finer stem, e.g. cifar_resnet20"
        )
    shapes: list[tuple[int, int, int]] = []
    for block in parts.blocks:
        features = block.eval()(features)
        shapes.append(tuple(features.shape[1:]))
    return shapes
