"""The few layers of our own: stems for small images and the head that every depth carries."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from odn.errors import UsageError
from odn.texts import AnyPreprocessing

_VECTOR = 16  # numbers of 32 bits in the widest vectors of CPUs


@final
class Deployed(nn.Module):
    """A network with its preprocessing, as files for other runtimes hold it: images or ids in, logits or numbers out.

    Args:
        network: takes normalised images, or ids of tokens.
        preprocessing: from image or text to input.
        scaling: for regression, mean and standard deviation of each number that the network gives standardised.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: AnyPreprocessing,
        scaling: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.preprocessing, self.scaling = network, preprocessing, scaling

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs of shape (B, K), of masks (B, K, H, W), for uint8 images (B, C, H, W) or ids (B, T)."""
        outputs: Tensor = self.network(self.preprocessing.prepare(inputs))
        if self.scaling is not None:
            mean, std = map(outputs.new_tensor, self.scaling)
            outputs = outputs * std + mean
        return outputs


@final
class Head(nn.Module):
    """Pooling and one linear layer: the classifier of one depth. A family's norms and expansions stand around pooling.

    Args:
        channels: of the features it reads.
        classes: logits it gives.
        channel_dim: where the channels stand in the features: 1 as after convolutions, -1 as in tokens (B, N, C).
        norm_dim: where the layers in front of the pooling want them.
        first_tokens: read the mean of so many tokens at the front, such as the class token, instead of that over all
            positions; 0 reads the latter.
        skip: positions at the front of a row of tokens that the mean leaves out.
        before: layers in front of the pooling.
        after: layers behind it.
        after_map: whether those behind it want a map of one pixel, (B, C, 1, 1), and not a vector.
        width: channels that those layers give; 0 means ``channels``.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        channel_dim: Literal[1, -1] = 1,
        norm_dim: Literal[1, -1] | None = None,
        first_tokens: int = 0,
        skip: int = 0,
        before: Sequence[nn.Module] = (),
        after: Sequence[nn.Module] = (),
        after_map: bool = False,
        width: int = 0,
    ) -> None:
        super().__init__()
        self.channel_dim, self.norm_dim = channel_dim, norm_dim or channel_dim
        self.first_tokens, self.skip, self.after_map = first_tokens, skip, after_map
        self.before, self.after = nn.Sequential(*before), nn.Sequential(*after)
        self.linear = nn.Linear(width or channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of shape (B, classes) for the features of a batch."""
        if self.norm_dim != self.channel_dim:
            features = features.movedim(self.channel_dim, self.norm_dim)
        features = self.before(features)
        if self.first_tokens:
            pooled = features[:, : self.first_tokens].mean(1)
        else:
            positions = tuple(range(1, features.ndim - 1) if self.norm_dim == -1 else range(2, features.ndim))
            pooled = features[:, self.skip :] if self.skip else features
            pooled = pooled.mean(positions) if positions else pooled  # a vector has no positions
        if self.after_map:
            pooled = pooled[:, :, None, None]
        logits: Tensor = self.linear(self.after(pooled).flatten(1))
        return logits


@final
class MaskHead(nn.Module):
    """A label for every pixel: one linear layer at every position of a map, brought to the size of the image.

    The lightest of the heads of fully convolutional networks (Long et al., arXiv 1411.4038), one per depth.

    Args:
        channels: of the features it reads.
        classes: logits it gives for every pixel.
        size: height and width of the image.
        channel_dim: where the channels stand in the features: 1 or -1.
    """

    def __init__(self, channels: int, classes: int, size: tuple[int, int], *, channel_dim: Literal[1, -1] = 1) -> None:
        super().__init__()
        self.size, self.channel_dim = size, channel_dim
        self.linear = nn.Conv2d(channels, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of shape (B, classes, H, W) for the features of a batch."""
        logits = self.linear(features.movedim(self.channel_dim, 1))
        return nn.functional.interpolate(logits, self.size, mode="bilinear", align_corners=False)


def mask_head(
    name: str, input_shape: tuple[int, ...], channels_last: bool, shape: tuple[int, ...], classes: int
) -> MaskHead:
    """Make the head that labels every pixel.

    Args:
        name: of the network, for messages.
        input_shape: channels, height and width of the image.
        channels_last: whether features are (B, H, W, C).
        shape: of the features it reads, without the batch.
        classes: logits it gives for every pixel.

    Returns:
        The head, with fresh weights.

    Raises:
        UsageError: when the features have no height and width.
    """
    if len(shape) != 3 or len(input_shape) != 3:
        raise UsageError(
            f"segmentation needs features with a height and a width; those of {name} are of shape {shape}: choose a "
            "convolutional backbone, e.g. resnet18"
        )
    size = (input_shape[1], input_shape[2])
    return MaskHead(shape[-1 if channels_last else 0], classes, size, channel_dim=-1 if channels_last else 1)


def resized(layer: nn.Module, channels: int) -> tuple[nn.Module, int]:
    """Make a fresh layer of the kind of another one, for another number of channels.

    Args:
        layer: a norm, a 1x1 convolution, or an activation.
        channels: that the new one reads.

    Returns:
        The layer, and how many channels it gives: a convolution expands as many times as the other one does.

    Raises:
        UsageError: when it is a layer of another kind.
    """
    plain = {name for name, _ in layer.named_parameters()} <= {"weight", "bias"}  # NFNets' have a gain as well
    if plain and isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
        width = max(1, round(channels * layer.out_channels / layer.in_channels))
        convolution = nn.Conv2d(channels, width, 1, bias=layer.bias is not None)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
        return convolution, width
    fresh = copy.deepcopy(layer)
    parameters = dict(fresh.named_parameters(recurse=False))
    if not parameters:
        return fresh, channels
    reset = getattr(fresh, "reset_parameters", None)
    if "Norm" not in type(layer).__name__ or reset is None or any(p.ndim != 1 for p in parameters.values()):
        raise UsageError(
            f"behind its last block stands the layer {type(layer).__name__}; a head can end in norms, 1x1 convolutions "
            "and activations"
        )
    for name, parameter in parameters.items():
        setattr(fresh, name, nn.Parameter(parameter.new_empty(channels)))
    for name, buffer in fresh.named_buffers(recurse=False):
        if buffer.ndim == 1:
            setattr(fresh, name, buffer.new_empty(channels))
    for name, value in (("num_features", channels), ("num_channels", channels), ("normalized_shape", (channels,))):
        if hasattr(fresh, name):
            setattr(fresh, name, value)
    reset()
    return fresh, channels


def scale_gradient(x: Any, factor: float) -> Any:
    """Weaken or strengthen what flows back through a place, and leave what flows forward as it is.

    Args:
        x: features: a tensor, or a tuple that begins with it.
        factor: on its gradient.

    Returns:
        The same numbers.
    """
    if factor == 1:
        return x
    if isinstance(x, tuple):
        return (scale_gradient(x[0], factor), *x[1:])
    return _ScaledGradient.apply(x, factor)


class _ScaledGradient(torch.autograd.Function):
    """The identity, exact in every precision, with a factor on its gradient."""

    @staticmethod
    def forward(context: Any, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.factor, None


def lay_out(x: Tensor, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """Lay out a batch of images so that convolutions are fast; other batches stay as they are.

    Args:
        x: inputs of a network.
        layout: as ``training_layout`` says, or without gradients channels last.

    Returns:
        The same numbers.
    """
    return x.contiguous(memory_format=layout) if x.ndim == 4 else x


def training_layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Say how images and weights are laid out while a network is trained; feature maps follow them.

    Convolutions of small images are up to twice as fast with channels last, on CPUs as on GPUs. But oneDNN writes past
    its memory there when it computes the gradient of a 1x1 convolution with a stride and fewer input channels than its
    vectors hold: wrong gradients, or a crash (uxlfoundation/oneDNN issue 6035; fp32 on AVX2 with less than 8 channels).

    Args:
        network: with all its layers.
        device: it is trained on.

    Returns:
        Channels first for networks with such a layer on a CPU, otherwise channels last.
    """
    narrow = any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels // layer.groups < _VECTOR
        for layer in network.modules()
    )
    return torch.contiguous_format if narrow and device.type == "cpu" else torch.channels_last


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
