"""A network on disk: spec.json and weights.safetensors, sizes compared before memory is taken."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from odn.errors import OdnError, UsageError
from odn.files import new_directory, read_bytes, read_text, write_atomically
from odn.manifest import SPEC_FILE, WEIGHTS_FILE
from odn.network import Network, NetworkSpec, PartitionedNetwork, Prefix, build_prefix, rebuild
from odn.weights import copied, weights_of

# How weights can be stored; they are computed with in fp32.
WEIGHT_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


_Built = TypeVar("_Built", Prefix, PartitionedNetwork)


def save_network(network: Network, directory: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write a network's spec and weights.

    Args:
        network: a named backbone or a prefix of one.
        directory: one that stands there is replaced.
        weights: those of the network where they are at hand, as from ``weights_of``.
    """
    with new_directory(directory) as partial:
        write_network(network, partial, weights)


def write_network(
    network: Network, directory: Path, weights: dict[str, Tensor] | None = None, *, kind: str = "fp32"
) -> None:
    """Write spec and weights into a directory that is being filled.

    Args:
        network: a named backbone or a prefix of one.
        directory: where to write.
        weights: those of the network where they are at hand, as from ``weights_of``.
        kind: how to store them, a name of ``WEIGHT_TYPES``.

    Raises:
        OdnError: when the network was built by hand and has no spec, or the directory cannot be written.
    """
    if network.spec is None:
        raise OdnError(
            "a network built by hand has no spec to rebuild it from, because a spec holds no code; save its weights "
            "with safetensors.torch.save_model and keep the code, or start from odn.partition(NAME, ...)"
        )
    write_atomically(directory / SPEC_FILE, network.spec.to_json())
    whole = tensors_of(network, weights)
    stored = {name: t.to(WEIGHT_TYPES[kind]) if t.is_floating_point() else t for name, t in whole.items()}
    write_atomically(directory / WEIGHTS_FILE, save_tensors(stored))


def load_network(directory: Path) -> Prefix:
    """Rebuild the network of one depth from its spec and weights; their sizes are compared before memory is taken.

    Args:
        directory: as written by ``save_network``.

    Returns:
        The network, on the CPU.

    Raises:
        OdnError: when a file is missing or damaged, or the weights do not fit the spec.
    """
    return _load(directory, build_prefix)


def load_partitioned(directory: Path) -> PartitionedNetwork:
    """Rebuild a network of some depth with the heads of all depths up to it, as ``load_network`` does one depth.

    Args:
        directory: as written by ``save_network``.

    Returns:
        The network, on the CPU.

    Raises:
        OdnError: when a file is missing or damaged, or the weights do not fit the spec.
    """
    return _load(directory, lambda spec: rebuild(spec, "meta").trunk(spec.depth))


def _load(directory: Path, build: Callable[[NetworkSpec], _Built]) -> _Built:
    spec = NetworkSpec.from_json(read_text(directory / SPEC_FILE), str(directory / SPEC_FILE))
    try:
        network = build(spec)
    except UsageError as error:
        raise OdnError(f"{directory / SPEC_FILE} asks for something impossible: {error}") from error
    path = directory / WEIGHTS_FILE
    expected = {**network.state_dict(), **dict(network.named_buffers())}
    most_bytes = sum(t.numel() * t.element_size() for t in expected.values()) + 200 * (len(expected) + 1)
    try:
        size = path.stat().st_size if path.is_file() else 0
        if size > most_bytes:
            raise OdnError(f"{path} has {size:,} bytes, the spec accounts for {most_bytes:,}; export the network again")
        tensors = load_tensors(read_bytes(path))
    except safetensors.SafetensorError as error:
        raise OdnError(f"{path} is damaged ({error}); copy or export the network again") from error
    tensors = _as_fp32(tensors)
    for name in sorted(expected.keys() | tensors.keys()):
        wanted, found = expected.get(name), tensors.get(name)
        if wanted is None or found is None or (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
            raise OdnError(
                f"{path} does not fit spec.json at '{name}': expected {_describe(wanted)}, found {_describe(found)}"
                "; export the network again"
            )
    fill(network, tensors)
    return network


def _as_fp32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give weights that are all stored in one of the shorter types the type they are computed with."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) != 1 or not kinds <= set(WEIGHT_TYPES.values()):
        return tensors
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def fill(network: Network, tensors: Mapping[str, Tensor]) -> None:
    """Give a network without memory its tensors.

    Args:
        network: as built by ``build_prefix``; afterwards where the tensors are.
        tensors: by name, as of ``tensors_of``, of the shapes that the network has.
    """
    stored = network.state_dict().keys()
    network.load_state_dict({name: tensor for name, tensor in tensors.items() if name in stored}, assign=True)
    for name in tensors.keys() - stored:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, tensors[name])


def tensors_of(network: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return all that a network computes with, as contiguous CPU tensors that share no memory with it.

    Args:
        network: any module.
        weights: those of the network where they are at hand, as from ``weights_of``.

    Returns:
        Its weights, and the buffers that its state leaves out because its constructor computes them, such as tables
        of positions: a network built without memory does not have them.
    """
    weights = weights_of(network) if weights is None else weights
    tables = {name: buffer for name, buffer in network.named_buffers() if name not in weights}
    return {**weights, **copied(tables)}


def _describe(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
