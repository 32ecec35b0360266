"""The partitioned backbone and the prefix of one depth.

Shapes: B batch, C channels, H height, W width, K classes.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import final

from torch import Tensor, nn

from odn.backbones import Origin
from odn.errors import UsageError
from odn.layers import scale_gradient
from odn.spec import NetworkSpec


@final
class Prefix(nn.Module):
    """The network of one depth: stem, the first blocks, and that depth's head. It has no other parameters.

    Args:
        stem: from the input to the first features.
        blocks: the blocks kept, in order.
        head: from features to logits.
        spec: recipe that rebuilds it, or None for networks built by hand.
        pretrained: so many blocks, from the first, and the stem started from trained weights: they are trained at a
            lower rate.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[nn.Module],
        head: nn.Module,
        spec: NetworkSpec | None = None,
        pretrained: int = 0,
    ) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.spec, self.pretrained = spec, pretrained

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (B, K) for a batch, of images normalised ones of shape (B, C, H, W)."""
        features = self.stem(x)
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.head(features)
        return logits


@final
class PartitionedNetwork(nn.Module):
    """A deep network partitioned into a stem, D blocks and a head per depth, or per depth from a lowest one on.

    Args:
        stem: from the input to the first features.
        blocks: D modules, each reading what the one before gives.
        heads: one per depth from ``lowest`` to D; that of depth d turns the features after d blocks into logits.
        spec: recipe of the full depth, or None for a network built by hand, which can be trained and extracted
            but not exported.
        origin: of trained weights, or None where all are fresh; the heads are new either way.
        lowest: the first depth that has a head, 1 to D.

    Raises:
        UsageError: when there is not one head per block, from the lowest depth on.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        spec: NetworkSpec | None = None,
        origin: Origin | None = None,
        lowest: int = 1,
    ) -> None:
        super().__init__()
        if not heads or len(blocks) != len(heads) + lowest - 1:
            raise UsageError(f"{len(blocks)} blocks and {len(heads)} heads; allowed: one head per block, one or more")
        self.stem, self.blocks, self.heads = stem, nn.ModuleList(blocks), nn.ModuleList(heads)
        self.spec, self.origin, self.lowest = spec, origin, lowest

    @property
    def max_depth(self) -> int:
        """Number of blocks D."""
        return len(self.blocks)

    @property
    def depth(self) -> int:
        """Number of blocks D, as a prefix has it: the depth that is trained when all are."""
        return len(self.blocks)

    @property
    def pretrained(self) -> int:
        """So many blocks, from the first, started from trained weights."""
        return min(self.origin.blocks, self.max_depth) if self.origin else 0

    def prefix(self, depth: int) -> Prefix:
        """Return the network of one depth, sharing its weights with this one.

        Args:
            depth: blocks to keep, ``lowest`` to ``max_depth``.

        Returns:
            An ordinary module that holds exactly its own parameters.

        Raises:
            UsageError: when there is no such depth.
        """
        if not self.lowest <= depth <= self.max_depth:
            raise UsageError(f"depth {depth}; allowed: {self.lowest} to {self.max_depth}")
        spec = dataclasses.replace(self.spec, depth=depth) if self.spec else None
        blocks = list(self.blocks)[:depth]
        return Prefix(self.stem, blocks, self.heads[depth - self.lowest], spec, min(depth, self.pretrained))

    def trunk(self, depth: int, lowest: int = 1) -> "PartitionedNetwork":
        """Return the first blocks with the heads of their depths, sharing their weights with this network.

        Args:
            depth: blocks to keep, 1 to ``max_depth``.
            lowest: the first depth whose head is kept, the network's own to ``depth``.

        Returns:
            A network that holds exactly its own parameters.
        """
        spec = dataclasses.replace(self.spec, depth=depth) if self.spec else None
        heads = list(self.heads)[lowest - self.lowest : depth - self.lowest + 1]
        return PartitionedNetwork(self.stem, list(self.blocks)[:depth], heads, spec, self.origin, lowest)

    def prefixes(self) -> Iterator[Prefix]:
        """Yield the networks of every depth that has a head, up to the full one."""
        return map(self.prefix, range(self.lowest, self.max_depth + 1))

    def forward(self, x: Tensor, shares: Mapping[int, float] | None = None) -> list[Tensor]:
        """Return logits of shape (B, K) of some depths, in ascending order, from one pass over the blocks.

        Args:
            x: a batch.
            shares: the depths whose heads are asked, each with the factor on the gradient that it sends back into the
                blocks; None asks all.

        Returns:
            A tensor per depth asked.
        """
        features = self.stem(x)
        logits = []
        for depth, block in enumerate(self.blocks, 1):
            features = block(features)
            if depth < self.lowest:
                continue
            head = self.heads[depth - self.lowest]
            if shares is None:
                logits.append(head(features))
            elif depth in shares:
                logits.append(head(scale_gradient(features, shares[depth])))
        return logits


Network = Prefix | PartitionedNetwork  # what can be trained: one depth, or all of them together
