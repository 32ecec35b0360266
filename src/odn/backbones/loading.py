"""Trained weights for a backbone: read by name from a file or from the library, and put where they belong.

Names are the library's own, or ``stem.*``, ``blocks.N.*`` and ``head.*`` as odn writes them. Heads are always new.
"""

import contextlib
import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from torch import Tensor, nn

from odn.backbones.parts import Backbone, Inputs, Origin, Parts
from odn.errors import OdnError, UsageError

_log = logging.getLogger("odn")
_OWN = re.compile(r"stem\.|blocks\.(\d+)\.|head\.")
# Where libraries keep what turns features into logits; a network made without it does not know these names.
_CLASSIFIERS = {"fc", "classifier", "head", "heads", "head_dist", "pooler"}
_Shape = tuple[int, ...]
_Fetched = TypeVar("_Fetched")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Trained weights that are not in a network yet.

    Attributes:
        source: what to call them in messages.
        sha256: of the file, or of names and numbers.
        shapes: of every tensor.
        read: returns a tensor by its name.
        strict: whether tensors that the network does not know are refused; weights that the library itself brings along
            fit by what they are.
    """

    source: str
    sha256: str
    shapes: Mapping[str, _Shape]
    read: Callable[[str], Tensor]
    strict: bool = True

    @property
    def own_blocks(self) -> int | None:
        """Number of blocks in a file that odn wrote; None for a library's."""
        found = [_OWN.match(name) for name in self.shapes]
        if "head.linear.weight" not in self.shapes or not all(found):
            return None
        return 1 + max((int(match[1]) for match in found if match and match[1]), default=-1)


def find_weights(backbone: Backbone, inputs: Inputs, path: str | Path | None, pretrained: bool) -> Weights | None:
    """Find the trained weights that a backbone shall start from.

    Args:
        backbone: entry of the registry.
        inputs: what it will be given.
        path: a safetensors file, or None.
        pretrained: take those that its library publishes.

    Returns:
        The weights, or None for a random start.

    Raises:
        UsageError: when both are asked for.
    """
    if path is not None and pretrained:
        raise UsageError("weights and pretrained exclude each other; give one of them")
    if pretrained:
        return library_weights(backbone, inputs)
    return None if path is None else read_weights(path)


def read_weights(path: str | Path) -> Weights:
    """Open a file of weights; nothing is unpickled, and no tensor is read before its shape is known to fit.

    Args:
        path: a safetensors file.

    Returns:
        What it holds.

    Raises:
        UsageError: when there is no such file.
        OdnError: when it is damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        inside = path / "weights.safetensors"
        hint = (
            f"give {inside}" if inside.is_file() else "give a .safetensors file, e.g. RUN/artifact/weights.safetensors"
        )
        raise UsageError(f"there is no file of weights at {path}; {hint}")
    try:
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        file: Any = safetensors.safe_open(path, "pt")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise OdnError(
            f"{path} is no sound safetensors file ({error}); copy it again, or write a state dict with "
            "safetensors.torch.save_file"
        ) from error
    return Weights(source=str(path), sha256=digest, shapes=shapes, read=file.get_tensor)


def library_weights(backbone: Backbone, inputs: Inputs) -> Weights:
    """Fetch the weights that a backbone's library publishes for it, from the library's cache where they are there.

    Args:
        backbone: entry of the registry.
        inputs: what it will be given.

    Returns:
        The weights, by the library's names.

    Raises:
        UsageError: when there are none.
        OdnError: when they cannot be had.
    """
    if backbone.pretrained is None:
        raise UsageError(
            f"no pretrained weights exist for '{backbone.name}' of {backbone.library}; choose a backbone of "
            "torchvision or timm that has some, e.g. resnet18, or give a file with --weights"
        )
    tensors = dict(fetch(backbone, partial(backbone.pretrained, inputs), "weights"))
    return Weights(
        source=backbone.source,
        sha256=digest_of(tensors),
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        read=tensors.__getitem__,
        strict=False,
    )


def fetch(backbone: Backbone, how: Callable[[], _Fetched], what: str) -> _Fetched:
    """Have a library bring something along that it publishes, from its cache where it is there.

    Args:
        backbone: entry of the registry.
        how: asks for it.
        what: it is, for messages.

    Returns:
        What the library gave.

    Raises:
        OdnError: when it cannot be had.
    """
    hub = logging.getLogger("huggingface_hub")  # warns twice of every attempt without a network
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where downloads are announced
            return how()
    except OdnError:
        raise
    except Exception as error:  # whatever a library or its downloads say
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OdnError(
            f"{backbone.library} cannot bring the {what} of '{backbone.name}' along ({reason}); connect to the "
            "network, put them into its cache, or give them with --weights FILE.safetensors"
        ) from error
    finally:
        hub.setLevel(level)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of tensors, whatever file they came from.

    Args:
        tensors: by name.

    Returns:
        64 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def names_by_tensor(network: nn.Module) -> dict[int, str]:
    """Remember what the library calls the weights of a network, before it is cut.

    Args:
        network: whole.

    Returns:
        Names by the identity of the tensor; a cut leaves tensors what they are.
    """
    return {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}


def fill_parts(parts: Parts, names: Mapping[int, str], weights: Weights, backbone: str) -> Origin:
    """Put trained weights into stem and blocks.

    A stem for one channel is given the sum of the filters for red, green and blue, as timm does: on a gray image it
    computes what they compute.

    Args:
        parts: with fresh weights.
        names: of the whole network, as from ``names_by_tensor``.
        weights: of the same backbone, at any depth where odn wrote them.
        backbone: its name, for messages.

    Returns:
        Where they come from, and how many blocks were given trained weights; that others stay fresh is logged.

    Raises:
        UsageError: when they are of another architecture, with the first path that differs and both shapes.
    """
    total = len(parts.blocks)
    held = weights.own_blocks
    blocks = total if held is None else min(held, total)
    wanted = dict(_state(parts, blocks))
    if held is None:
        wanted = {names[id(tensor)]: tensor for tensor in wanted.values()}
    summed: list[str] = []
    for name, tensor in wanted.items():
        shape, found = tuple(tensor.shape), weights.shapes.get(name)
        if found is None and name.endswith("num_batches_tracked"):
            continue  # old files have none; it only counts
        if found is not None and _only_colours(shape, found) and not summed:
            summed.append(name)
        elif found != shape:
            raise UsageError(_misfit(weights, backbone, name, shape))
    if weights.strict:
        known = {*wanted, *(names.values() if held is None else _tables(parts))}
        heads = {"head"} if held is not None else _CLASSIFIERS
        stray = next((n for n in weights.shapes if n not in known and n.partition(".")[0] not in heads), None)
        if stray is not None:
            raise UsageError(_misfit(weights, backbone, stray, None))
    if not blocks:
        raise UsageError(f"{weights.source} holds no blocks of '{backbone}'; give weights of one block or more")
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name in weights.shapes:
                tensor.copy_(_sound(weights, name, tensor, summed))
    if summed:
        _log.warning("the filters of '%s' for red, green and blue are summed: the images have one channel", summed[0])
    if blocks < total:
        _log.warning(
            "%s holds %d of the %d blocks of '%s'; the other %d are fresh",
            weights.source, blocks, total, backbone, total - blocks,
        )  # fmt: skip
    return Origin(blocks=blocks, source=weights.source, sha256=weights.sha256)


def _state(parts: Parts, blocks: int) -> Iterator[tuple[str, Tensor]]:
    for title, part in (("stem", parts.stem), *((f"blocks.{n}", b) for n, b in enumerate(parts.blocks[:blocks]))):
        for name, tensor in part.state_dict(keep_vars=True).items():
            yield f"{title}.{name}", tensor


def _tables(parts: Parts) -> Iterator[str]:
    """Name the buffers that constructors compute: odn stores them, and they are as good here."""
    for title, part in (("stem", parts.stem), *((f"blocks.{n}", b) for n, b in enumerate(parts.blocks))):
        stored = part.state_dict().keys()
        yield from (f"{title}.{name}" for name, _ in part.named_buffers() if name not in stored)


def _only_colours(wanted: _Shape, found: _Shape) -> bool:
    return len(wanted) == 4 and wanted[1] == 1 and found == (wanted[0], 3, *wanted[2:])


def _sound(weights: Weights, name: str, like: Tensor, summed: list[str]) -> Tensor:
    tensor = weights.read(name)
    if tensor.is_floating_point() != like.is_floating_point():
        raise UsageError(f"{weights.source} has '{name}' as {tensor.dtype}; allowed: {like.dtype}, or shorter floats")
    tensor = tensor.to(like.dtype)
    if not bool(torch.isfinite(tensor).all()):
        raise OdnError(f"{weights.source} has infinite or NaN numbers in '{name}'; give weights of a sound training")
    return tensor.sum(1, keepdim=True) if name in summed else tensor


def _misfit(weights: Weights, backbone: str, name: str, wanted: _Shape | None) -> str:
    def say(shape: _Shape | None) -> str:
        return "nothing" if shape is None else "x".join(map(str, shape)) or "one number"

    return (
        f"{weights.source} does not fit '{backbone}' at '{name}': it has {say(weights.shapes.get(name))}, the network "
        f"{say(wanted)}; give weights of the same backbone, made for the same inputs"
    )
