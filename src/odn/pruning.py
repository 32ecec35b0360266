"""Cutting channels out of a network: what depends on what is torch-pruning's work, how many stay is decided above.

Structural pruning over the dependency graph (Fang et al., arXiv 2301.12900): channels that a residual sum ties
together are ranked and removed together.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from odn.config import CompressConfig
from odn.errors import OdnError, UsageError, require_extra
from odn.measure import Cost, measure_cost
from odn.narrowing import narrowed_sizes, require_width
from odn.network import Prefix, build_prefix
from odn.widths import channels_of, narrow

_GRID = 1000  # widths that are searched for are multiples of a thousandth
_SMALLEST = 0.0  # a width at which every layer keeps as little as it may


def require_pruning() -> Any:
    """Import torch-pruning.

    Returns:
        The module.
    """
    return require_extra("torch_pruning", "prune", "narrowing a network")


def sizes_of(network: Prefix) -> dict[str, int]:
    """List the layers that can lose channels.

    Args:
        network: its last layer gives the logits.

    Returns:
        Channels by layer, without that one.
    """
    sizes = channels_of(network)
    sizes.popitem()
    return sizes


def cost_at(network: Prefix, width: float, config: CompressConfig, input_shape: tuple[int, ...]) -> Cost:
    """Count what a network would cost at a width, without cutting anything.

    Args:
        network: it is left as it is.
        width: share of the channels to keep.
        config: of which multiple their number is.
        input_shape: channels, height and width of an image.

    Returns:
        The costs.

    Raises:
        OdnError: when the layers do not fit each other at that width.
    """
    shape = copy.deepcopy(network).to("meta")
    channels, classes = narrowed_sizes(sizes_of(network), width, config.channel_multiple), channels_of(network)
    try:
        narrow(shape, channels, input_shape, [*classes.values()][-1])
    except UsageError as error:
        raise OdnError(f"this network cannot be narrowed: {error}") from error
    return measure_cost(shape, input_shape)


def find_width(network: Prefix, config: CompressConfig, input_shape: tuple[int, ...]) -> float:
    """Find the width that was asked for, directly or by a bound on the costs.

    Args:
        network: it is left as it is.
        config: a width, or the most parameters or multiply-accumulates.
        input_shape: channels, height and width of an image.

    Returns:
        The share of the channels to keep: the largest one, in thousandths, within the bound.

    Raises:
        UsageError: when the bound is below the smallest possible network, which is named.
    """
    if config.width:
        require_width(sizes_of(network).values(), config)
        return config.width
    figure, bound = ("parameters", config.max_parameters) if config.max_parameters else ("macs", config.max_macs)

    def cost(width: float) -> int:
        return int(getattr(cost_at(network, width, config, input_shape), figure))

    if (smallest := cost(_SMALLEST)) > bound:
        raise UsageError(
            f"max_{figure} is {bound:,}, but this network has {smallest:,} at the least (depth {network.depth}, layers "
            f"of {config.channel_multiple} channels); allowed: {smallest:,} or more, or a smaller channel_multiple"
        )
    low, high = 0, _GRID
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle / _GRID) <= bound else (low, middle - 1)
    return max(low, 1) / _GRID


def check_request(network: Prefix, config: CompressConfig, input_shape: tuple[int, ...]) -> None:
    """Refuse what cannot be done before time is spent on it, by doing it with the weights as they are.

    Args:
        network: what is to be narrowed, or the shallowest that it may be.
        config: how narrow.
        input_shape: channels, height and width of an image.

    Raises:
        UsageError: when the network reads texts.
    """
    require_pruning()
    if len(input_shape) == 1:
        raise UsageError("encoders of texts cannot be narrowed yet; leave --compress out")
    width = config.step if config.auto else find_width(network, config, input_shape)
    prune(network, narrowed_sizes(sizes_of(network), width, config.channel_multiple), input_shape)


def prune(network: Prefix, channels: Mapping[str, int], input_shape: tuple[int, ...]) -> Prefix:
    """Cut the least important channels out of a copy of a network.

    A channel's importance is the mean square of the weights that give and read it, over all layers that share it.

    Args:
        network: it is left as it is.
        channels: how many to keep, by layer; all layers but the last.
        input_shape: channels, height and width of an image.

    Returns:
        The narrower network, on the CPU, with a spec that rebuilds it.

    Raises:
        OdnError: when the backbone has layers that cannot be narrowed.
    """
    tp = require_pruning()
    small = copy.deepcopy(network).cpu().eval()
    small.pretrained = 0  # what is left is trained at the whole rate
    try:
        _cut(small, channels, input_shape, tp)
        small.train(network.training)
        if network.spec is not None:
            small.spec = _spec_of(small)
    except (RuntimeError, ValueError, IndexError, KeyError, AttributeError, AssertionError, UsageError) as error:
        # What torch-pruning raises where it does not understand a layer has no common class.
        name = network.spec.backbone if network.spec is not None else "this network"
        reason = " ".join(str(error).split())[:200]
        raise OdnError(f"{name} cannot be narrowed ({reason}); leave --compress out, or choose another") from error
    return small


def _cut(small: Prefix, channels: Mapping[str, int], input_shape: tuple[int, ...], tp: Any) -> None:
    modules = dict(small.named_modules())
    names = {module: name for name, module in modules.items()}
    graph = tp.DependencyGraph().build_dependency(small, torch.zeros(1, *input_shape), verbose=False)
    groups = graph.get_all_groups(
        ignored_layers=[modules[[*channels_of(small)][-1]]], root_module_types=[nn.Conv2d, nn.Linear]
    )
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    cuts = []
    for group in groups:
        root = group[0].dep
        scores = importance(group)
        drop = scores.argsort(stable=True)[: len(scores) - channels[names[root.target.module]]]
        cuts.append((root.target.module, root.handler, drop.tolist()))
    for module, function, indices in cuts:
        if indices:
            graph.get_pruning_group(module, function, indices).prune()


def _spec_of(small: Prefix) -> Any:
    assert small.spec is not None
    whole = channels_of(build_prefix(dataclasses.replace(small.spec, channels={})))
    channels = {name: count for name, count in channels_of(small).items() if count != whole[name]}
    spec = dataclasses.replace(small.spec, channels=channels)
    rebuilt = {name: tensor.shape for name, tensor in build_prefix(spec).state_dict().items()}
    for name, tensor in small.state_dict().items():
        if tensor.shape != rebuilt[name]:
            raise ValueError(f"at '{name}' {tuple(tensor.shape)} was left where the spec gives {tuple(rebuilt[name])}")
    return spec
