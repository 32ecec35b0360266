"""Text encoders of transformers: BERT, DistilBERT, RoBERTa, ELECTRA and ModernBERT, by name or by a local directory.

A layer of an encoder reads more than what the layer before gave: the mask of the padding, and in ModernBERT the rotary
positions. Their features are therefore a tuple: the hidden states, the mask, and what else the layers need, computed
once by the stem.

Shapes: B batch, T tokens, D width of the hidden states.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from odn.backbones.parts import Backbone, Inputs, Parts
from odn.backbones.text_config import Config, checked_config, read_config
from odn.errors import OdnError, UsageError, require_extra
from odn.texts import PADDING

States = tuple[Tensor, ...]

# Model class, then the names that its configuration has for: layers, width, heads, width of the feed-forward layers.
_FAMILIES = {
    "bert": ("BertModel", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"),
    "distilbert": ("DistilBertModel", "n_layers", "dim", "n_heads", "hidden_dim"),
    "roberta": ("RobertaModel", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"),
    "electra": ("ElectraModel", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"),
    "modernbert": ("ModernBertModel", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"),
}
# Published encoders of the same shape as ours of that name.
_HUB = {
    "bert_base": "google-bert/bert-base-uncased",
    "distilbert_base": "distilbert/distilbert-base-uncased",
    "electra_base": "google/electra-base-discriminator",
}
# Sizes for training from scratch: layers, width, heads, feed-forward width; base is what each family's paper calls so.
_SIZES = {"tiny": (4, 128, 2, 512), "small": (8, 256, 4, 1024)}
_BASE_LAYERS = {"distilbert": 6, "modernbert": 22}


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


def _make(inputs: Inputs, width: float, *, family: str, config: Config) -> nn.Module:
    assert width == 1, "text encoders do not scale"
    transformers = require_extra("transformers", "text", f"a {family} backbone")
    model_class = getattr(transformers, _FAMILIES[family][0])
    vocabulary = {"vocab_size": inputs.vocabulary} if inputs.vocabulary else {}
    try:
        settings = model_class.config_class(**{**config, **vocabulary}, attn_implementation="sdpa")
        pooling = {} if family in ("distilbert", "electra", "modernbert") else {"add_pooling_layer": False}
        network: nn.Module = model_class(settings, **pooling)
    except Exception as error:  # whatever a library says of a configuration that it cannot follow
        raise UsageError(
            f"transformers cannot follow the configuration: {' '.join(str(error).split())[:200]}"
        ) from error
    longest = _positions(settings, family)
    if inputs.shape[0] > longest:
        raise UsageError(f"texts of {inputs.shape[0]} tokens; allowed: up to {longest}, the positions of this {family}")
    return network


def _positions(settings: Any, family: str) -> int:
    longest: int = settings.max_position_embeddings
    if family == "roberta":  # its positions are counted from behind the padding's id
        longest -= settings.pad_token_id + 1
    return longest


def _readable(name: str, family: str, config: Config) -> int:
    """Count the tokens that an encoder can read of the texts that odn prepares."""
    transformers = require_extra("transformers", "text", f"a {family} backbone")
    settings = getattr(transformers, _FAMILIES[family][0]).config_class(**config)
    if settings.pad_token_id != PADDING:
        raise UsageError(
            f"{name} pads texts with the id {settings.pad_token_id}, odn with {PADDING}; set pad_token_id "
            f"to {PADDING} in a copy of its config.json, without its weights, which were trained with the other id"
        )
    return _positions(settings, family)


def _pretrained(_inputs: Inputs, *, family: str, source: str) -> Mapping[str, Tensor]:
    if Path(source).is_dir() and not any(Path(source).glob("model*.safetensors")):
        raise UsageError(f"{source} has no model.safetensors; save the encoder there with save_pretrained")
    transformers = require_extra("transformers", "text", f"a {family} backbone")
    model_class = getattr(transformers, _FAMILIES[family][0])
    network, info = model_class.from_pretrained(
        source, output_loading_info=True, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
    )
    # What transformers does not find it would leave random.
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise OdnError(f"{source} holds no '{missing[0]}'; give the weights of a whole {family} encoder")
    weights: Mapping[str, Tensor] = network.state_dict()
    return weights


def _cut(network: Any, _chain: None, *, family: str) -> Parts:
    settings = network.config
    layers = {"distilbert": "transformer.layer", "modernbert": "layers"}.get(family, "encoder.layer")
    modern = family == "modernbert"
    context = RotaryContext(network.rotary_emb, settings.sliding_window) if modern else None
    block: Callable[[nn.Module], nn.Module] = RotaryBlock if modern else TextBlock
    return Parts(
        stem=TextStem(network.embeddings, getattr(network, "embeddings_project", None), context, settings.pad_token_id),
        blocks=tuple(map(block, network.get_submodule(layers))),
        head=partial(_head, settings.norm_eps if modern else None, getattr(settings, "norm_bias", True)),
    )


def _head(norm_eps: float | None, norm_bias: bool, shape: tuple[int, ...], classes: int) -> nn.Module:
    norm = None if norm_eps is None else nn.LayerNorm(shape[-1], eps=norm_eps, bias=norm_bias)
    return TextHead(shape[-1], classes, norm)


def _entry(name: str, family: str, config: Config, *, keep: bool = False, source: str | None = None) -> Backbone:
    return Backbone(
        name=name,
        library="transformers",
        make=partial(_make, family=family, config=config),
        find=lambda _network, _example: None,
        cut=partial(_cut, family=family),
        task="text-classification",
        config=config if keep else None,
        positions=partial(_readable, name, family, config),
        pretrained=partial(_pretrained, family=family, source=source) if source else None,
    )


def _sized(family: str, size: str) -> Config:
    layers, width, heads, inner = _SIZES.get(size, (_BASE_LAYERS.get(family, 12), 768, 12, 3072))
    names = _FAMILIES[family][1:]
    # One id for the padding, and as many positions as BERT has, whatever the family; ModernBERT knows more.
    config: Config = {"pad_token_id": 0, **dict(zip(names, (layers, width, heads, inner), strict=True))}
    if family == "modernbert":
        config["intermediate_size"] = width * 3 // 2  # gated, so three matrices of it instead of two
    if family == "electra":
        config["embedding_size"] = width if size == "base" else 128
    return config


BACKBONES = tuple(
    _entry(f"{family}_{size}", family, _sized(family, size), source=_HUB.get(f"{family}_{size}"))
    for family in _FAMILIES
    for size in (*_SIZES, "base")
)


def find_directory(path: Path) -> Backbone:
    """Return the entry of an encoder whose configuration lies in a directory, as transformers saves it.

    Args:
        path: holds ``config.json``; its ``model.safetensors`` is read where pretrained weights are asked for.

    Returns:
        Its entry.
    """
    entry = find_config(*read_config(path))
    family = entry.name.removeprefix("transformers/")
    return dataclasses.replace(entry, pretrained=partial(_pretrained, family=family, source=str(path)))


def find_config(family: object, config: Mapping[str, object]) -> Backbone:
    """Return the entry of an encoder by its configuration.

    Args:
        family: as transformers' ``model_type``.
        config: numbers that shape the network.

    Returns:
        Its entry.

    Raises:
        UsageError: when the family is not known here, or a number is none.
    """
    if family not in _FAMILIES or not isinstance(family, str):
        raise UsageError(f"text encoder '{family}'; allowed: {', '.join(_FAMILIES)}")
    return _entry(f"transformers/{family}", family, checked_config(config), keep=True)
