"""Take a network of the user's own apart: nothing is known of it but the names of its blocks."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from odn.backbones.chain import find_chain, match_names
from odn.backbones.cut import Pooling, UpToFirstBlock, cut, drop_parameters, idle_parameters
from odn.backbones.parts import Inputs, Parts, names_alone
from odn.backbones.shapes import Shape, feature_shapes
from odn.errors import UsageError


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
    if not blocks:
        raise UsageError(
            "a network of your own needs to be told where its blocks are; give their names or patterns, e.g. "
            'blocks=["layer#.#"]'
        )
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
    chain = copy.deepcopy(nn.Sequential(parts.stem, *parts.blocks)).eval()
    for seed in (0, 1, 0):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, *inputs.shape, generator=generator)
        x = (x if inputs.dtype.is_floating_point else x > 0).to(device, inputs.dtype)
        with torch.no_grad():
            whole(x.clone())
            features = chain(x.clone())
        if not torch.allclose(features, seen[-1], rtol=1e-5, atol=1e-6, equal_nan=True):
            raise UsageError(
                f"the blocks up to '{last}' give other numbers on their own than within the network; they read or keep "
                "something besides their input, build odn.PartitionedNetwork(stem, blocks, heads) by hand"
            )
