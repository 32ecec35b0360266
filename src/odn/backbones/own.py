"""Take a network of the user's own apart: nothing is known of it but the names of its blocks."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from odn.backbones.chain import find_chain, match_names
from odn.backbones.cut import Pooling, UpToFirstBlock, cut, drop_parameters, idle_parameters
from odn.backbones.parts import Inputs, Parts, names_alone
from odn.backbones.shapes import Shape, feature_shapes
from odn.errors import OdnError, UsageError


def take_own_apart(network: nn.Module, inputs: Inputs, blocks: Sequence[str]) -> tuple[Parts, list[Shape]]:
    """Take a copy of a network apart at the blocks that are named, and check that it does the same as before.

    Args:
        network: any module that turns one tensor into another; it is left as it is.
        inputs: what it is given.
        blocks: names or patterns of modules, in order.

    Returns:
        Its parts, with copies of its weights, and the shape of what each block gives, without the batch.

    Raises:
        UsageError: when the blocks are no chain, with the first one at which it breaks.
        OdnError: when the network cannot be taken apart for another reason.
    """
    if not isinstance(network, nn.Module):
        raise UsageError(f"a network is a name or a torch.nn.Module, not {type(network).__name__}")
    wrong = next(
        (
            (name, p.dtype)
            for name, p in network.named_parameters()
            if p.dtype != torch.float32 and p.is_floating_point()
        ),
        None,
    )
    if wrong:
        raise UsageError(f"'{wrong[0]}' is {wrong[1]}; allowed: torch.float32, as network.float() makes it")
    if isinstance(blocks, str) or not all(isinstance(name, str) for name in blocks):
        raise UsageError(f'blocks is {blocks!r}; allowed: a list of names or patterns, e.g. blocks=["layer#.#"]')
    if not blocks:
        raise UsageError(
            "a network of your own needs to be told where its blocks are; give their names or patterns, e.g. "
            'blocks=["layer#.#"]'
        )
    try:
        return _take_apart(network, inputs, blocks)
    except OdnError:
        raise
    except Exception as error:  # whatever code of others says when it is copied, or run in parts
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the network cannot be copied and run in parts ({type(error).__name__}: {reason}); build "
            "odn.PartitionedNetwork(stem, blocks, heads) by hand"
        ) from error


def _take_apart(network: nn.Module, inputs: Inputs, blocks: Sequence[str]) -> tuple[Parts, list[Shape]]:
    meta = copy.deepcopy(network).to("meta")
    chain = find_chain(meta, inputs.example(2), names_alone(match_names(network, blocks)))
    pooling = Pooling(tail=False)
    copied = copy.deepcopy(network)
    parts = cut(copied, chain, pooling)  # not the meta copy: moving to meta separates weights that are shared
    shadow = cut(meta, chain, pooling)
    if isinstance(parts.stem, UpToFirstBlock):
        idle = idle_parameters(shadow.stem, inputs.example(2))
        drop_parameters(parts.stem, idle)
        drop_parameters(shadow.stem, idle)
    _check(network, parts, inputs, chain.blocks[-1][-1])
    return parts, feature_shapes(shadow, inputs)


def _check(network: nn.Module, parts: Parts, inputs: Inputs, last: str) -> None:
    """Compare the parts with the network on numbers, twice: state of their own would show."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    seen: list[Tensor] = []
    whole = copy.deepcopy(network).eval()
    whole.get_submodule(last).register_forward_hook(lambda _module, _arguments, output: seen.append(output.clone()))
    # Each a copy of its own, or what they share besides their input would be shared still.
    chain = nn.Sequential(*(copy.deepcopy(part) for part in (parts.stem, *parts.blocks))).eval()
    for seed in (0, 1, 0):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, *inputs.shape, generator=generator)
        x = (x if inputs.dtype.is_floating_point else x > 0).to(device, inputs.dtype)
        with torch.no_grad():
            for _ in range(2):
                whole(x.clone())
            features = chain(x.clone())
        if not torch.equal(seen[-1], seen[-2]) and not torch.allclose(seen[-1], seen[-2], equal_nan=True):
            raise UsageError(
                f"in evaluation mode the network gives other numbers for the same input at '{last}': it draws random "
                "ones, or keeps state; one that can be cut does the same each time"
            )
        if not torch.allclose(features, seen[-1], rtol=1e-5, atol=1e-6, equal_nan=True):
            raise UsageError(
                f"the blocks up to '{last}' give other numbers on their own than within the network; they read or keep "
                "something besides their input, build odn.PartitionedNetwork(stem, blocks, heads) by hand"
            )
