"""Building networks that can be cut: by name, from one of your own, or from the recipe that rebuilds one.

Shapes: B batch, C channels, H height, W width, K classes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from odn.backbones import (
    Backbone,
    Inputs,
    Origin,
    find_backbone,
    find_tokenizer,
    find_weights,
    refuse_namesake,
    take_apart,
    take_own_apart,
)
from odn.errors import OdnError, UsageError
from odn.layers import Head, mask_head
from odn.partitioned import Network as Network
from odn.partitioned import PartitionedNetwork as PartitionedNetwork
from odn.partitioned import Prefix as Prefix
from odn.spec import HasShape as HasShape
from odn.spec import NetworkSpec as NetworkSpec
from odn.tasks import Task
from odn.tokenizer import Tokenizer, TokenizerSource
from odn.widths import narrow


def partition(
    backbone: str | nn.Module,
    data: HasShape,
    *,
    blocks: Sequence[str] = (),
    channel_dim: Literal[1, -1] = 1,
    head: Callable[[tuple[int, ...], int], nn.Module] | None = None,
    input_dtype: torch.dtype = torch.float32,
    width: float = 1.0,
    vocabulary: int = 0,
    weights: str | Path | None = None,
    pretrained: bool = False,
    seed: int = 0,
) -> PartitionedNetwork:
    """Partition a backbone, by name with fresh or trained weights, or a network of your own with those that it has.

    Args:
        backbone: a name from ``odn backbones``, or a network, which is left as it is.
        data: says the shape of the inputs and the classes, e.g. ``load_data(...).spec``.
        blocks: of a network of your own, the modules after which it may be cut: names as of ``named_modules``, or
            patterns in which ``*`` stands for what is between two dots and ``#`` for a number, e.g. ``layer#.#``.
        channel_dim: of a network of your own, where the channels stand in what its blocks give: 1 as after
            convolutions, -1 as in tokens; the heads average over the rest.
        head: of a network of your own, makes other heads from the shape of a block's features, without the batch, and
            the number of classes.
        input_dtype: of what a network of your own reads.
        width: factor on the backbone's channels, where its family scales.
        vocabulary: of a text encoder, the number of different tokens; 0 takes that of the data, or the encoder's own.
        weights: safetensors file to start from: of the library's own network, or as odn wrote it for this backbone at
            any depth. Heads are new.
        pretrained: start from the weights that the library publishes; of a network of your own, say that its weights
            are trained, so that expansion probes it first.
        seed: of the fresh weights; the caller's random state is left alone.

    Returns:
        The network, on the CPU; one of your own where it was. It can be trained and extracted; exported only when its
        backbone has a name, because a spec cannot hold code.

    Raises:
        UsageError: when there is no such backbone, the inputs or the weights do not fit, or the blocks are no chain.
    """
    classes = len(data.classes)
    task: Task = getattr(data, "task", "classification")  # what only has a shape and classes says nothing else

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(backbone, str):
            if blocks or head is not None:
                raise UsageError(f"blocks and head are for networks of your own; leave them out for '{backbone}'")
            refuse_namesake(backbone)
            _refuse_other_tokens(backbone, data, weights, pretrained)
            return build_network(
                backbone,
                data.input_shape,
                classes,
                width=width,
                vocabulary=vocabulary or getattr(data, "vocabulary", 0),
                padding=getattr(data, "padding", None),
                task=task,
                weights=weights,
                pretrained=pretrained,
            )
        if width != 1 or vocabulary or weights is not None:
            raise UsageError("width, vocabulary and weights are for backbones with a name; leave them out")
        if channel_dim not in (1, -1):
            raise UsageError(f"channel_dim is {channel_dim}; allowed: 1 as after convolutions, -1 as in tokens")
        inputs = Inputs(shape=tuple(data.input_shape), dtype=input_dtype)
        parts, shapes = take_own_apart(backbone, inputs, blocks)
        make = head or _head_maker(inputs, task, channel_dim)
        heads = [make(shape, classes) for shape in shapes]
        origin = Origin(blocks=len(heads), source="the network as it came", sha256="") if pretrained else None
        return PartitionedNetwork(parts.stem, parts.blocks, heads, origin=origin)


def tokenizer_of(
    backbone: str, *, weights: str | Path | None = None, pretrained: bool = True
) -> TokenizerSource | None:
    """Find the tokenizer whose tokens the trained embeddings of a text encoder belong to, for ``load_data``.

    Args:
        backbone: a name from ``odn backbones``, or a directory that transformers saved.
        weights: safetensors file with the tokenizer's ``tokenizer.json`` beside it; instead of ``pretrained``.
        pretrained: take that of the weights that the library publishes, or that lie in the directory.

    Returns:
        The tokenizer; None for a backbone that reads images.

    Raises:
        UsageError: when there is no such backbone, or no tokenizer.
        OdnError: when it cannot be had.
    """
    return find_tokenizer(find_backbone(backbone), weights, pretrained)


def _refuse_other_tokens(backbone: str, data: HasShape, weights: str | Path | None, pretrained: bool) -> None:
    """Trained embeddings would be looked up by ids that mean other tokens."""
    ours: str = getattr(data, "tokenizer", "")  # empty for images, and where somebody else made the ids
    given = tokenizer_of(backbone, weights=weights, pretrained=pretrained) if ours else None
    if given and Tokenizer(given.content, given.where, given.padding).content != ours:
        raise UsageError(
            f"the texts were read with another tokenizer than {given.where}, to which the trained embeddings belong; "
            "load them with load_data(..., tokenizer=odn.tokenizer_of(...))"
        )


def _head_maker(inputs: Inputs, task: Task, channel_dim: Literal[1, -1]) -> Callable[[tuple[int, ...], int], nn.Module]:
    if task == "segmentation":
        return partial(mask_head, "this network", inputs.shape, channel_dim < 0)
    return lambda shape, classes: Head(shape[min(channel_dim, 0)], classes, channel_dim=channel_dim)


def build_network(
    backbone: str,
    input_shape: tuple[int, ...],
    classes: int,
    *,
    width: float = 1.0,
    vocabulary: int = 0,
    padding: int | None = None,
    config: Mapping[str, Any] | None = None,
    task: Task = "classification",
    weights: str | Path | None = None,
    pretrained: bool = False,
    device: str = "cpu",
) -> PartitionedNetwork:
    """Build a partitioned backbone on a device.

    Args:
        backbone: a name from ``odn backbones``.
        input_shape: channels, height and width of an image, or the number of tokens of a text.
        classes: number of logits.
        width: factor on the backbone's channels.
        vocabulary: of a text encoder, the number of different tokens; 0 takes the encoder's own.
        padding: of a text encoder, the id of the token that fills up a text; None takes the encoder's own.
        config: of a text encoder that came from a directory.
        task: what the heads are made for.
        weights: file of trained ones to start from.
        pretrained: start from those that the library publishes.
        device: ``meta`` builds the shapes alone, without memory for weights.

    Returns:
        The network at full depth.

    Raises:
        UsageError: when there is no such backbone, or the inputs do not fit.
    """
    entry = find_backbone(backbone, width, config)
    spec = NetworkSpec(
        backbone=entry.name,
        input_shape=tuple(input_shape),
        classes=classes,
        depth=1,
        width=width,
        vocabulary=vocabulary,
        config=_padded(entry, padding),
        task=task,
    )
    text = entry.task == "text-classification"
    if (len(spec.input_shape) == 1) != text:
        wanted = "the number of tokens, e.g. 128" if text else "channels x height x width, e.g. 3x32x32"
        raise UsageError(f"input shape {'x'.join(map(str, input_shape))} for '{entry.name}'; allowed: {wanted}")
    inputs = Inputs(shape=spec.input_shape, vocabulary=vocabulary, padding=padding, dtype=spec.input_dtype)
    parts, shapes = take_apart(entry, inputs, width, device, find_weights(entry, inputs, weights, pretrained))
    with torch.device(device):
        make = (
            partial(mask_head, entry.name, spec.input_shape, parts.channels_last)
            if task == "segmentation"
            else parts.head
        )
        heads = [make(shape, classes) for shape in shapes]
    spec = dataclasses.replace(spec, depth=len(heads))
    return PartitionedNetwork(parts.stem, parts.blocks, heads, spec, parts.origin)


def _padded(entry: Backbone, padding: int | None) -> dict[str, Any] | None:
    """Return the configuration that a spec holds, with the padding of the texts that the network is for."""
    if padding is None or entry.reading is None or padding == entry.reading().padding:
        return entry.config
    if entry.config is None:
        raise UsageError(
            f"texts are padded with the id {padding}, '{entry.name}' knows {entry.reading().padding}; name a directory "
            "with the encoder's config.json instead"
        )
    return {**entry.config, "pad_token_id": padding}


def rebuild(spec: NetworkSpec, device: str = "cpu") -> PartitionedNetwork:
    """Build the backbone of a recipe at full depth, with fresh weights.

    Args:
        spec: the recipe.
        device: ``meta`` builds the shapes alone.

    Returns:
        The network, whatever the depth of the recipe.

    Raises:
        OdnError: when the recipe cannot be followed.
    """
    if spec.config is None and find_backbone(spec.backbone).config is not None:
        raise OdnError(f"the spec names the directory {spec.backbone}; it has to hold the configuration itself")
    names = ("backbone", "input_shape", "classes", "width", "vocabulary", "config", "task")
    return build_network(**{name: getattr(spec, name) for name in names}, device=device)


def build_prefix(spec: NetworkSpec) -> Prefix:
    """Build the shapes of a prefix from its recipe, without memory for weights.

    Args:
        spec: the recipe.

    Returns:
        A prefix on the meta device.

    Raises:
        OdnError: when the recipe cannot be followed.
    """
    prefix = rebuild(spec, "meta").prefix(spec.depth)
    if spec.channels:
        narrow(prefix, spec.channels, spec.input_shape, spec.classes)
        prefix.spec = spec
    return prefix
