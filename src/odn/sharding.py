"""Networks of which every process holds a part: FSDP2, ``torch.distributed.fsdp.fully_shard``.

Zhao et al., arXiv 2304.11277. Only the weights of the block that is being computed are whole.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from odn.network import Network


def shard(network: Network, processes: int) -> None:
    """Leave of every weight only this process's part, in place.

    Args:
        network: the same in every process, on the training device, its weights contiguous.
        processes: that share it.
    """
    mesh = init_device_mesh(next(network.parameters()).device.type, (processes,))
    for module in (*network.blocks, network):
        # Also the last weights are parted again, so that averaging finds them as parts.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load whole weights into a network, sharded or not.

    Args:
        module: of the same shapes.
        weights: parameters and buffers by name.

    Raises:
        RuntimeError: when names or shapes differ.
    """
    own = module.state_dict()
    module.load_state_dict(
        {name: part_like(own[name], tensor) if name in own else tensor for name, tensor in weights.items()}
    )


def part_like(model: Tensor, tensor: Tensor) -> Tensor:
    """Take of a whole tensor the part that a process holds of another of the same shape.

    Args:
        model: sharded or not.
        tensor: whole.

    Returns:
        The same part, laid out in memory in the same way; the tensor itself where the shapes differ, for the receiver
        to complain.
    """
    if tensor.shape != model.shape:
        return tensor
    if isinstance(model, DTensor):
        tensor = tensor.to(model.device)
        return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)
    return torch.empty_like(model).copy_(tensor)
