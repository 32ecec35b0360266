"""Take a backbone apart for an input: what its blocks give is found by running it without memory, never tabulated."""

import bisect
import dataclasses

import torch
from torch import Tensor, nn

from odn.backbones.chain import Chain
from odn.backbones.cut import UpToFirstBlock, drop_parameters, idle_parameters
from odn.backbones.loading import Weights, fill_parts, names_by_tensor
from odn.backbones.parts import Backbone, Inputs, Parts
from odn.errors import OdnError, UsageError

Shape = tuple[int, ...]


def take_apart(
    backbone: Backbone, inputs: Inputs, width: float, device: str, weights: Weights | None = None
) -> tuple[Parts, list[Shape]]:
    """Make a backbone for an input, and take it apart.

    Args:
        backbone: entry of the registry.
        inputs: what it is given.
        width: factor on the backbone's channels.
        device: ``meta`` makes the shapes alone, without memory for weights.
        weights: trained ones to start from; None leaves those that the library draws.

    Returns:
        Its parts on that device, and the shape of what each block gives, without the batch.

    Raises:
        UsageError: when the input does not fit, or the network cannot be cut.
    """
    try:
        _refuse_remainder(backbone, inputs)
        chain, parts, shapes = _on_meta(backbone, inputs, width)
    except OdnError as error:
        text = str(error) if backbone.task == "text-classification" else _reason(backbone, inputs, width, error)
        raise UsageError(text) from error
    idle = idle_parameters(parts.stem, inputs.example(2)) if isinstance(parts.stem, UpToFirstBlock) else []
    if device != "meta":
        with torch.device(device):
            network = backbone.make(inputs, width)
            names = names_by_tensor(network)
            parts = backbone.cut(network, chain)
    drop_parameters(parts.stem, idle)
    if device != "meta" and weights is not None:
        parts = dataclasses.replace(parts, origin=fill_parts(parts, names, weights, backbone.name))
    return parts, shapes


def _on_meta(backbone: Backbone, inputs: Inputs, width: float) -> tuple[Chain | None, Parts, list[Shape]]:
    with torch.device("meta"):
        try:
            network = backbone.make(inputs, width)
        except (RuntimeError, AssertionError, ValueError, ZeroDivisionError) as error:
            raise UsageError(f"'{backbone.name}' refuses the input: {' '.join(str(error).split())[:200]}") from error
        chain = backbone.find(network, inputs.example(2))
        parts = backbone.cut(network, chain)
        shapes = feature_shapes(parts, inputs)
        parts.head(shapes[-1], 1)  # which says when the network ends in a way that no head can
        return chain, parts, shapes


def _refuse_remainder(backbone: Backbone, inputs: Inputs) -> None:
    # Some libraries would leave out the pixels that fill no patch, and say nothing.
    if backbone.task == "image-classification" and any(side % backbone.sides()[1] for side in inputs.shape[1:]):
        raise UsageError("the last pixels fill no patch")


def feature_shapes(parts: Parts, inputs: Inputs) -> list[Shape]:
    """Discover what every block gives, by running them on the meta device.

    Args:
        parts: on the meta device.
        inputs: what the stem is given.

    Returns:
        The shape after each block, without the batch; of text the hidden states'.

    Raises:
        UsageError: when the image is so small that the first block would see a single pixel.
    """
    with torch.device("meta"), torch.no_grad():
        nn.ModuleList([parts.stem, *parts.blocks]).eval()
        features = parts.stem(inputs.example(1))
        if isinstance(features, Tensor) and features.ndim == 4:
            sides = features.shape[1:3] if parts.channels_last else features.shape[2:]
            if min(sides) < 2:
                raise UsageError("the first block would see a single pixel")
        shapes: list[Shape] = []
        for block in parts.blocks:
            features = block(features)
            shapes.append(tuple((features if isinstance(features, Tensor) else features[0]).shape[1:]))
    nn.ModuleList([parts.stem, *parts.blocks]).train()
    return shapes


def _reason(backbone: Backbone, inputs: Inputs, width: float, error: OdnError) -> str:
    """Find out whether the size of the image is to blame, and what would do."""
    channels, *sides = inputs.shape
    native, step = backbone.sides()
    given = "x".join(map(str, sides))

    def fits(side: int) -> bool:
        try:
            _on_meta(backbone, Inputs(shape=(channels, side, side)), width)
        except OdnError:
            return False
        return True

    if not fits(native):
        return f"'{backbone.name}' cannot be partitioned: {error}"
    if any(side % step for side in sides):
        near = step * max(1, round(max(sides) / step))
        return (
            f"images of {given} do not fit '{backbone.name}': its sides have to be multiples of {step}; resize them, "
            f"e.g. to {near}x{near} (--image-size {near} for image files)"
        )
    count = bisect.bisect_left(range(native // step), True, key=lambda number: fits((number + 1) * step))
    smallest = (count + 1) * step
    # Some attention needs sides that halve evenly, so that not all above the smallest fit.
    even = {number * (min(sides) // number + up) for number in (16, 32) for up in (0, 1)} - {0}
    for other in sorted(even, key=lambda other: abs(other - min(sides))):
        if other < smallest and fits(other):
            return f"images of {given} do not fit '{backbone.name}', {other}x{other} would; resize them"
    if min(sides) < smallest:
        return (
            f"images of {given} are too small for '{backbone.name}': the smallest it can take is "
            f"{smallest}x{smallest}; resize them (--image-size for image files) or choose a backbone with a finer "
            "stem, e.g. cifar_resnet20"
        )
    return f"images of {given} do not fit '{backbone.name}', though {native}x{native} would: {error}"
