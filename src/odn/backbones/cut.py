"""Cut a network along its chain into a stem, blocks, and what makes heads for them."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from odn.backbones.chain import Chain, TailLayer
from odn.backbones.parts import Parts
from odn.errors import UsageError
from odn.layers import Head, resized


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How a network reduces the features of its last block to a vector.

    Attributes:
        first_tokens: takes the mean of so many tokens at the front: one is the class token, a second one that of
            distillation; 0 takes the mean over all others.
        skip: tokens at the front that the mean leaves out.
        channels_last: whether feature maps are (B, H, W, C); tokens are (B, N, C) anyway.
        tail: whether the norms and convolutions behind the last block belong to the features, and not to a classifier
            of several layers.
    """

    first_tokens: int = 0
    skip: int = 0
    channels_last: bool = False
    tail: bool = True


class _Reached(Exception):
    """Carries the first block's input out of the network."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


@final
class _Exit(nn.Module):
    def __call__(self, features: Tensor, *_nothing: None, **_none: None) -> Tensor:
        # Some networks name the block's further arguments though they have nothing to give.
        raise _Reached(features)


def _leavable(module: nn.Module) -> None:
    """Let exceptions pass through a module: calling it is running its ``forward``, and nothing around that.

    Exporters keep count of the modules that they have entered, in ``nn.Module.__call__``, and would lose it. The class
    of the instance is replaced by one made from it, as torch's own parametrizations do.
    """
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"__call__": kind.forward})


@final
class UpToFirstBlock(nn.Module):
    """A network cut off before its first block: the stem of networks whose stem is code, not a row of modules.

    The network's own ``forward`` runs, and is left by an exception where the first block stood. Nothing has to be known
    of that code, nothing of it is written again, and nothing behind it is computed; a symbolic trace of it would
    freeze what depends on the mode or the batch. ``torch.export`` follows it like any other code.

    Args:
        network: is cut in place: what does not run before the first block is taken out of it.
        chain: of that network.
    """

    def __init__(self, network: nn.Module, chain: Chain) -> None:
        super().__init__()
        first = chain.blocks[0][0]
        keep = {""}
        for name in (*chain.early, first):
            while name not in keep:
                keep.add(name)
                name = _parent(name)
        above = keep - {first}  # the first block itself is left whole: it lives on as a block
        for name in [name for name, _ in network.named_modules() if name not in keep and _parent(name) in above]:
            # Code of the parent may look at it, or count its children, before the first block.
            _replace(network, name, nn.Identity())
        _replace(network, first, _Exit())
        while first:
            first = _parent(first)
            _leavable(network.get_submodule(first))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return what the first block of the network is given."""
        try:
            self.network(x)
        except _Reached as reached:
            return reached.features
        raise AssertionError("the network did not reach its first block")


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _replace(network: nn.Module, name: str, value: nn.Module | None) -> None:
    setattr(network.get_submodule(_parent(name)), name.rpartition(".")[2], value)


def idle_parameters(stem: nn.Module, example: Tensor) -> list[str]:
    """Name the parameters on which what a stem gives does not depend.

    A network holds them beside its modules for what comes behind the blocks.

    Args:
        stem: on the meta device.
        example: a batch of inputs on the meta device.

    Returns:
        Names, as of ``stem.named_parameters()``.
    """
    stem = copy.deepcopy(stem).requires_grad_()  # frozen ones count as well
    parameters = dict(stem.named_parameters())
    if not parameters:
        return []
    with torch.device("meta"), torch.enable_grad():
        features = stem(example)
    gradients = torch.autograd.grad(features.sum(), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def cut(network: nn.Module, chain: Chain, pooling: Pooling) -> Parts:
    """Take a network apart along its chain.

    Args:
        network: is used up: its modules become those of the parts.
        chain: of that network.
        pooling: how it reduces features to a vector.

    Returns:
        Its parts; their heads end in a norm or an expansion as the network does, with fresh weights.

    Raises:
        UsageError: when two parts share weights, or what follows the last block is not understood.
    """
    blocks = tuple(_row(network, names) for names in chain.blocks)
    if pooling.tail and chain.tail is None:
        raise UsageError("what follows its last block is no row of layers; a head cannot end in the same way")
    tail = tuple((network.get_submodule(layer.name), layer) for layer in chain.tail or () if pooling.tail)
    # The stem comes last: it may be the network without the rest.
    stem = UpToFirstBlock(network, chain) if chain.stem is None else _row(network, chain.stem)
    _refuse_sharing(stem, blocks, chain)
    return Parts(stem=stem, blocks=blocks, head=partial(_head, tail, pooling), channels_last=pooling.channels_last)


def drop_parameters(module: nn.Module, names: Sequence[str]) -> None:
    """Take parameters out of a module.

    Args:
        module: changed in place.
        names: as of ``module.named_parameters()``.
    """
    for name in names:
        _replace(module, name, None)


def _row(network: nn.Module, names: Sequence[str]) -> nn.Module:
    if len(names) == 1:
        return network.get_submodule(names[0])
    return nn.Sequential(OrderedDict((name.replace(".", "_"), network.get_submodule(name)) for name in names))


def _refuse_sharing(stem: nn.Module, blocks: Sequence[nn.Module], chain: Chain) -> None:
    owners: dict[int, str] = {}
    titles = ["the stem", *(f"block {number}, '{names[-1]}'," for number, names in enumerate(chain.blocks, 1))]
    for title, part in zip(titles, (stem, *blocks), strict=True):
        tensors = [*part.named_parameters(), *part.named_buffers()]
        for name, tensor in tensors:
            if id(tensor) in owners:
                raise UsageError(
                    f"{title} shares '{name}' with {owners[id(tensor)].rstrip(',')}; a network can be cut only where "
                    "every part has weights and state of its own"
                )
        owners |= {id(tensor): title for _, tensor in tensors}


def _head(
    tail: Sequence[tuple[nn.Module, TailLayer]], pooling: Pooling, shape: tuple[int, ...], classes: int
) -> nn.Module:
    map_first = len(shape) == 3 and not pooling.channels_last
    channels = width = shape[0] if map_first else shape[-1]
    before: list[nn.Module] = []
    after: list[nn.Module] = []
    for layer, place in tail:
        fresh, width = resized(layer, width)
        (after if place.pooled else before).append(fresh)
    # Some families turn feature maps into tokens on the way, and their norm works on tokens.
    norm_last = any(place.dimensions == 3 or pooling.channels_last for _, place in tail if not place.pooled)
    return Head(
        channels,
        classes,
        width=width,
        channel_dim=1 if map_first else -1,
        norm_dim=-1 if norm_last or not map_first else 1,
        first_tokens=pooling.first_tokens if len(shape) == 2 else 0,
        skip=pooling.skip if len(shape) == 2 else 0,
        before=before,
        after=after,
        after_map=any(place.dimensions == 4 for _, place in tail if place.pooled),
    )
