"""The few layers of our own: stems for small images and the head that every depth carries."""

from collections import OrderedDict
from typing import final

from torch import Tensor, nn

from odn.images import Preprocessing


@final
class Deployed(nn.Module):
    """A network with its preprocessing, as files for other runtimes hold it: images in, logits out.

    Args:
        network: takes normalised images.
        preprocessing: from image to input.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.preprocessing = network, preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, K) for decoded images, uint8 of shape (B, C, H, W)."""
        logits: Tensor = self.network(self.preprocessing.normalise(images.float() / 255))
        return logits


@final
class Head(nn.Module):
    """Global average pooling and one linear layer: the classifier of one depth.

    Args:
        channels: of the feature map it reads.
        classes: logits it gives.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits of shape (B, classes) for a feature map of shape (B, C, H, W)."""
        logits: Tensor = self.linear(self.pool(x_BCHW).flatten(1))
        return logits


def small_image_stem(in_channels: int, channels: int) -> nn.Sequential:
    """Return a stem that keeps the resolution: 3x3 convolution of stride 1, BatchNorm, ReLU.

    Args:
        in_channels: of the image.
        channels: of the feature map it gives.

    Returns:
        The stem, with He initialisation.
    """
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    layers = OrderedDict(conv=conv, norm=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True))
    return nn.Sequential(layers)
