"""Networks that can be cut: the partitioned backbone, the prefix of one depth, and the recipe that rebuilds it.

Shapes: B batch, C channels, H height, W width, K classes.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

import torch
from torch import Tensor, nn

from odn.backbones import feature_shapes, find_backbone
from odn.errors import OdnError, UsageError
from odn.layers import Head
from odn.tables import from_table, to_table
from odn.widths import narrow

SCHEMA = 2
_MAX_SIDE, _MAX_CLASSES = 8192, 1_000_000


class HasShape(Protocol):
    """Whatever says what goes in and out: a ``DataSpec`` or anything with these two."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the labels."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """The JSON recipe that rebuilds a prefix without its weights.

    Attributes:
        backbone: name in the registry.
        width: factor on the backbone's channels.
        input_shape: channels, height and width of an image.
        classes: number of logits.
        depth: blocks kept, from 1.
        channels: what layers give by their name, where that is less than in the backbone.
        schema: version of this format; 1 had no ``channels``.
    """

    backbone: str
    input_shape: tuple[int, int, int]
    classes: int
    depth: int
    width: float = 1.0
    channels: dict[str, int] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise OdnError(
                f"the network's spec has schema {self.schema}; this odn reads {SCHEMA}; "
                + ("install a newer odn" if self.schema > SCHEMA else "export it again")
            )
        channels, height, width = self.input_shape
        if channels not in (1, 3) or not 1 <= height <= _MAX_SIDE or not 1 <= width <= _MAX_SIDE:
            raise UsageError(
                f"input shape {channels}x{height}x{width}; allowed: 1 or 3 channels, sides of 1 to {_MAX_SIDE}"
            )
        if not 1 <= self.classes <= _MAX_CLASSES:
            raise UsageError(f"{self.classes} classes; allowed: 1 to {_MAX_CLASSES}")
        if not 0 < self.width <= 64:
            raise UsageError(f"width {self.width}; allowed: above 0 to 64")
        if self.depth < 1:
            raise UsageError(f"depth {self.depth}; allowed: 1 or more")

    def to_json(self) -> str:
        """Return the recipe as JSON text."""
        return json.dumps(to_table(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "spec.json") -> "NetworkSpec":
        """Read a recipe.

        Args:
            text: JSON as written by ``to_json``.
            where: name of the file, for messages.

        Returns:
            The recipe, checked.

        Raises:
            OdnError: when it is damaged, of a newer schema, or asks for something impossible.
        """
        try:
            table = json.loads(text)
            if not isinstance(table, dict):
                raise OdnError(f"{where} does not hold a JSON object; export the network again")
            if isinstance(table.get("schema"), int) and table["schema"] > SCHEMA:
                raise OdnError(f"{where} has schema {table['schema']}; this odn reads {SCHEMA}; install a newer odn")
            if table.get("schema") == 1 and "channels" not in table:
                table["schema"] = SCHEMA
            return from_table(cls, table)
        except (ValueError, RecursionError, UsageError) as error:
            raise OdnError(f"{where} is not a valid network spec: {error}") from error


@final
class Prefix(nn.Module):
    """The network of one depth: stem, the first blocks, and that depth's head. It has no other parameters.

    Args:
        stem: from image to feature map.
        blocks: the blocks kept, in order.
        head: from feature map to logits.
        spec: recipe that rebuilds it, or None for networks built by hand.
    """

    def __init__(
        self, stem: nn.Module, blocks: Sequence[nn.Module], head: nn.Module, spec: NetworkSpec | None = None
    ) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.spec = spec

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits of shape (B, K) for normalised images of shape (B, C, H, W)."""
        features = self.stem(x_BCHW)
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.head(features)
        return logits


@final
class PartitionedNetwork(nn.Module):
    """A deep network partitioned into a stem, D blocks and a head per depth.

    Args:
        stem: from image to feature map.
        blocks: D modules, each reading what the one before gives.
        heads: D modules; head d-1 turns the features after d blocks into logits.
        spec: recipe of the full depth, or None for a network built by hand, which can be trained and extracted
            but not exported.

    Raises:
        UsageError: when there is not one head per block.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        spec: NetworkSpec | None = None,
    ) -> None:
        super().__init__()
        if not blocks or len(blocks) != len(heads):
            raise UsageError(f"{len(blocks)} blocks and {len(heads)} heads; allowed: one head per block, one or more")
        self.stem, self.blocks, self.heads = stem, nn.ModuleList(blocks), nn.ModuleList(heads)
        self.spec = spec

    @property
    def max_depth(self) -> int:
        """Number of blocks D."""
        return len(self.blocks)

    def prefix(self, depth: int) -> Prefix:
        """Return the network of one depth, sharing its weights with this one.

        Args:
            depth: blocks to keep, 1 to ``max_depth``.

        Returns:
            An ordinary module that holds exactly its own parameters.

        Raises:
            UsageError: when there is no such depth.
        """
        if not 1 <= depth <= self.max_depth:
            raise UsageError(f"depth {depth}; allowed: 1 to {self.max_depth}")
        spec = dataclasses.replace(self.spec, depth=depth) if self.spec else None
        return Prefix(self.stem, list(self.blocks)[:depth], self.heads[depth - 1], spec)

    def prefixes(self) -> Iterator[Prefix]:
        """Yield the networks of depth 1, 2, and so on up to the full depth."""
        return map(self.prefix, range(1, self.max_depth + 1))

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return the logits of every depth, D tensors of shape (B, K), from one pass over the blocks."""
        features = self.stem(x_BCHW)
        logits = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            features = block(features)
            logits.append(head(features))
        return logits


def partition(backbone: str, data: HasShape, *, width: float = 1.0, seed: int = 0) -> PartitionedNetwork:
    """Build a backbone for a dataset, partitioned at every block, with fresh weights.

    Args:
        backbone: a name from ``odn backbones``.
        data: says the shape of the images and the classes, e.g. ``load_data(...).spec``.
        width: factor on the backbone's channels, where its family scales.
        seed: of the initial weights; the caller's random state is left alone.

    Returns:
        The network, on the CPU.

    Raises:
        UsageError: when there is no such backbone, or the images are smaller than it can take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(backbone, data.input_shape, len(data.classes), width=width)


def build_network(
    backbone: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    width: float = 1.0,
    device: str = "cpu",
) -> PartitionedNetwork:
    """Build a partitioned backbone on a device.

    Args:
        backbone: a name from ``odn backbones``.
        input_shape: channels, height and width of an image.
        classes: number of logits.
        width: factor on the backbone's channels.
        device: ``meta`` builds the shapes alone, without memory for weights.

    Returns:
        The network at full depth.

    Raises:
        UsageError: when there is no such backbone, or the images are smaller than it can take.
    """
    spec = NetworkSpec(backbone=backbone, width=width, input_shape=input_shape, classes=classes, depth=1)
    entry = find_backbone(backbone, width)
    shapes = feature_shapes(entry, input_shape, width)
    with torch.device(device):
        parts = entry.build(input_shape[0], width)
        heads = [Head(channels, classes) for channels, _, _ in shapes]
    spec = dataclasses.replace(spec, depth=len(parts.blocks))
    return PartitionedNetwork(parts.stem, parts.blocks, heads, spec)


def build_prefix(spec: NetworkSpec) -> Prefix:
    """Build the shapes of a prefix from its recipe, without memory for weights.

    Args:
        spec: the recipe.

    Returns:
        A prefix on the meta device.

    Raises:
        OdnError: when the recipe cannot be followed.
    """
    network = build_network(spec.backbone, spec.input_shape, spec.classes, width=spec.width, device="meta")
    prefix = network.prefix(spec.depth)
    if spec.channels:
        narrow(prefix, spec.channels, spec.input_shape, spec.classes)
        prefix.spec = spec
    return prefix
