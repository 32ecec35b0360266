"""Stem, blocks and head of text encoders.

A layer of an encoder reads more than what the layer before gave: the mask of the padding, and in ModernBERT the rotary
positions. Their features are therefore a tuple: the hidden states, the mask, and what else the layers need, computed
once by the stem.

Shapes: B batch, T tokens, D width of the hidden states.
"""

from typing import final

import torch
from torch import Tensor, nn

States = tuple[Tensor, ...]


@final
class TextStem(nn.Module):
    """Token and position embeddings.

    Args:
        embeddings: from token ids to hidden states.
        project: from the width of the embeddings to that of the layers, or None.
        context: what the layers read besides hidden states and mask, as a function of both, or None.
        padding: id of the token that fills up a text.
    """

    def __init__(
        self, embeddings: nn.Module, project: nn.Module | None, context: nn.Module | None, padding: int
    ) -> None:
        super().__init__()
        self.embeddings, self.project, self.context, self.padding = embeddings, project, context, padding

    def forward(self, ids_BT: Tensor) -> States:
        """Return hidden states (B, T, D), the mask (B, T) that is true for tokens, and the context of the layers."""
        hidden = self.embeddings(input_ids=ids_BT)
        if self.project is not None:
            hidden = self.project(hidden)
        # The first token is always seen: a text of padding alone would be divided by zero.
        first = torch.arange(ids_BT.shape[1], device=ids_BT.device) == 0
        mask_BT = (ids_BT != self.padding) | first
        return (hidden, mask_BT, *(self.context(hidden, mask_BT) if self.context is not None else ()))


@final
class TextBlock(nn.Module):
    """A layer of an encoder whose layers read hidden states and mask."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: States) -> States:
        """Return the states with the hidden ones replaced."""
        return (self.layer(states[0], states[1][:, None, None, :]), *states[1:])


@final
class RotaryContext(nn.Module):
    """ModernBERT's context: the mask of its local layers, and cosines and sines of both kinds of layers.

    Args:
        rotary: the network's rotary embedding.
        window: how far a token of a local layer sees either way.
    """

    def __init__(self, rotary: nn.Module, window: int) -> None:
        super().__init__()
        self.rotary, self.window = rotary, window

    def forward(self, hidden: Tensor, mask_BT: Tensor) -> States:
        """Return local mask (B, T, T), then cosine and sine of global and of local layers."""
        positions = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        near = (positions[:, None] - positions[None, :]).abs() <= self.window
        angles = [self.rotary(hidden, positions[None], kind) for kind in ("full_attention", "sliding_attention")]
        return (mask_BT[:, None, :] & near, *angles[0], *angles[1])


@final
class RotaryBlock(nn.Module):
    """A layer of ModernBERT, global or local."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.local = layer, layer.attention_type == "sliding_attention"

    def forward(self, states: States) -> States:
        """Return the states with the hidden ones replaced."""
        hidden, mask_BT, near_BTT, *angles = states
        mask = near_BTT[:, None] if self.local else mask_BT[:, None, None, :]
        positions = tuple(angles[2:] if self.local else angles[:2])
        return (self.layer(hidden, attention_mask=mask, position_embeddings=positions), *states[1:])


@final
class TextHead(nn.Module):
    """The mean over the tokens of a text, and one linear layer.

    No depth has trained a class token yet when a network grows from scratch, so that all tokens are read.

    Args:
        width: of the hidden states.
        classes: logits it gives.
        norm: in front, where the family ends in one.
    """

    def __init__(self, width: int, classes: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.linear = norm, nn.Linear(width, classes)

    def forward(self, states: States) -> Tensor:
        """Return logits of shape (B, classes)."""
        hidden, mask_BT1 = states[0], states[1][:, :, None]
        if self.norm is not None:
            hidden = self.norm(hidden)
        logits: Tensor = self.linear((hidden * mask_BT1).sum(1) / mask_BT1.sum(1))
        return logits
