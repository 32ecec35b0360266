"""A network on disk: spec.json and weights.safetensors, sizes compared before memory is taken."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from odn.errors import OdnError, UsageError
from odn.files import new_directory, write_atomically
from odn.network import NetworkSpec, Prefix, build_prefix, copied

SPEC_FILE, WEIGHTS_FILE = "spec.json", "weights.safetensors"
_MAX_JSON_BYTES = 64 * 1024**2


def save_network(network: Prefix, directory: Path) -> None:
    """Write a network's spec and weights.

    Args:
        network: a prefix of a named backbone.
        directory: one that stands there is replaced.
    """
    with new_directory(directory) as partial:
        write_network(network, partial)


def write_network(network: Prefix, directory: Path) -> None:
    """Write spec and weights into a directory that is being filled.

    Args:
        network: a prefix of a named backbone.
        directory: where to write.

    Raises:
        OdnError: when the network was built by hand and has no spec, or the directory cannot be written.
    """
    if network.spec is None:
        raise OdnError(
            "a network built by hand has no spec to rebuild it from, because a spec holds no code; save its weights "
            "with safetensors.torch.save_model and keep the code, or start from odn.partition(NAME, ...)"
        )
    write_atomically(directory / SPEC_FILE, network.spec.to_json())
    write_atomically(directory / WEIGHTS_FILE, save_tensors(tensors_of(network)))


def load_network(directory: Path) -> Prefix:
    """Rebuild a network from its spec and weights; their sizes are compared before memory is taken.

    Args:
        directory: as written by ``save_network``.

    Returns:
        The network, on the CPU.

    Raises:
        OdnError: when a file is missing or damaged, or the weights do not fit the spec.
    """
    spec = NetworkSpec.from_json(read_text(directory / SPEC_FILE), str(directory / SPEC_FILE))
    try:
        network = build_prefix(spec)
    except UsageError as error:
        raise OdnError(f"{directory / SPEC_FILE} asks for something impossible: {error}") from error
    path = directory / WEIGHTS_FILE
    expected = _tensors(network)
    most_bytes = sum(t.numel() * t.element_size() for t in expected.values()) + 200 * (len(expected) + 1)
    try:
        size = path.stat().st_size if path.is_file() else 0
        if size > most_bytes:
            raise OdnError(f"{path} has {size:,} bytes, the spec accounts for {most_bytes:,}; export the network again")
        tensors = load_tensors(read_bytes(path))
    except safetensors.SafetensorError as error:
        raise OdnError(f"{path} is damaged ({error}); copy or export the network again") from error
    for name in sorted(expected.keys() | tensors.keys()):
        wanted, found = expected.get(name), tensors.get(name)
        if wanted is None or found is None or (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
            raise OdnError(
                f"{path} does not fit spec.json at '{name}': expected {_describe(wanted)}, found {_describe(found)}"
                "; export the network again"
            )
    fill(network, tensors)
    return network


def fill(prefix: Prefix, tensors: Mapping[str, Tensor]) -> None:
    """Give a prefix without memory its tensors.

    Args:
        prefix: as built by ``build_prefix``; afterwards where the tensors are.
        tensors: by name, as of ``tensors_of``, of the shapes that the prefix has.
    """
    stored = prefix.state_dict().keys()
    prefix.load_state_dict({name: tensor for name, tensor in tensors.items() if name in stored}, assign=True)
    for name in tensors.keys() - stored:
        parent, _, child = name.rpartition(".")
        setattr(prefix.get_submodule(parent), child, tensors[name])


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return all that a network computes with, as contiguous CPU tensors that share no memory with it.

    Args:
        network: any module.

    Returns:
        Its weights, and the buffers that its state leaves out because its constructor computes them, such as tables
        of positions: a network built without memory does not have them.
    """
    return copied(_tensors(network))


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**network.state_dict(), **dict(network.named_buffers())}


def _describe(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"


def read_bytes(path: Path) -> bytes:
    """Read a file of an artifact.

    Args:
        path: the file.

    Returns:
        Its bytes.

    Raises:
        OdnError: when it is missing or unreadable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise OdnError(f"{path} is missing; copy or export the artifact again") from error
    except OSError as error:
        raise OdnError(f"cannot read {path}: {error.strerror}") from error


def read_text(path: Path) -> str:
    """Read a small text file of an artifact.

    Args:
        path: the file.

    Returns:
        Its text.

    Raises:
        OdnError: when it is missing, unreadable, not UTF-8, or larger than any such file.
    """
    if path.is_file() and path.stat().st_size > _MAX_JSON_BYTES:
        raise OdnError(f"{path} has {path.stat().st_size:,} bytes; allowed: up to {_MAX_JSON_BYTES:,}")
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise OdnError(f"{path} is not UTF-8 text; copy or export the artifact again") from error
