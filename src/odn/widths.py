"""Networks narrower than their backbone: how many channels each layer gives, and how the shapes are rebuilt from it.

The table names the layers that give fewer channels than the backbone's; what a layer reads follows from what the
layers before it give, so that the table cannot contradict itself. Shapes alone: everything here is on the meta device.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from odn.errors import UsageError, did_you_mean

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def channels_of(network: nn.Module) -> dict[str, int]:
    """List how many channels every layer gives.

    Args:
        network: any network.

    Returns:
        Output channels by the name of the layer, convolutions and linear layers, in the network's order.
    """
    found: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, _CONVOLUTIONS):
            found[name] = module.out_channels
        elif isinstance(module, nn.Linear):
            found[name] = module.out_features
    return found


def narrow(network: nn.Module, channels: Mapping[str, int], input_shape: tuple[int, ...], classes: int) -> None:
    """Give layers of a network fewer output channels, and let every layer read what those before it give.

    Args:
        network: on the meta device; it is changed in place.
        channels: output channels by the name of the layer; layers that are not named keep theirs.
        input_shape: channels, height and width of an image.
        classes: logits that have to come out in the end.

    Raises:
        UsageError: when a layer does not exist or would be widened, or the layers no longer fit each other.
    """
    whole = channels_of(network)
    for name, count in channels.items():
        if name not in whole:
            raise UsageError(f"there is no layer '{name[:100]}' to narrow.{did_you_mean(name[:100], whole)}")
        if not 1 <= count <= whole[name]:
            raise UsageError(f"layer '{name}' has {count} channels; allowed: 1 to {whole[name]}")
    hooks = [
        module.register_forward_pre_hook(partial(_fit, name, channels.get(name)))
        for name, module in network.named_modules()
    ]
    training = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(torch.empty(1, *input_shape, device="meta"))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UsageError(f"the channels of these layers do not fit each other: {reason}") from error
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    if tuple(logits.shape[:2]) != (1, classes):
        raise UsageError(f"the narrowed network gives {logits.shape[1]} logits; allowed: {classes}, one per class")


def _fit(name: str, out: int | None, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Shape a layer for what it is about to read."""
    if isinstance(module, _CONVOLUTIONS):
        features = inputs[0].shape[1]
        if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
            module.groups = module.out_channels = features  # depthwise: every channel has its own filter
        elif features % module.groups or (out or module.out_channels) % module.groups:
            raise ValueError(f"layer '{name}' has {module.groups} groups, which do not divide {features} channels")
        else:
            module.out_channels = out or module.out_channels
        module.in_channels = features
        shape = (module.out_channels, features // module.groups, *module.kernel_size)
        _resize(module, weight=shape, bias=(module.out_channels,))
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = inputs[0].shape[-1], out or module.out_features
        _resize(module, weight=(module.out_features, module.in_features), bias=(module.out_features,))
    elif isinstance(module, _BatchNorm):
        module.num_features = inputs[0].shape[1]
        size = (module.num_features,)
        _resize(module, weight=size, bias=size, running_mean=size, running_var=size)


def _resize(module: nn.Module, **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        old = getattr(module, name)
        if old is None or old.shape == shape:
            continue
        assert old.is_meta
        new = torch.empty(shape, dtype=old.dtype, device="meta")
        setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
