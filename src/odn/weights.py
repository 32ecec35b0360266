"""Weights as plain tensors, wherever a module holds them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's weights as contiguous CPU tensors that share no memory with it.

    Args:
        module: any module; where several processes hold a part each, all have to call this.

    Returns:
        Parameters and buffers by name, those of its state, whole.
    """
    return copied(module.state_dict())


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU copies of tensors.

    Args:
        tensors: by name; where several processes hold a part each, all have to call this.

    Returns:
        Whole tensors that share no memory with those.
    """
    return {
        name: whole(tensor).detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def whole(tensor: Tensor) -> Tensor:
    """Put a tensor together of which several processes hold a part each.

    Args:
        tensor: any tensor; an ordinary one is returned as it is.

    Returns:
        All of it, in every process.
    """
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered
