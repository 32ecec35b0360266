"""Text encoders of transformers: BERT, DistilBERT, RoBERTa, ELECTRA and ModernBERT, by name or by a local directory."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odn.backbones.parts import Backbone, Inputs, Parts, Reading
from odn.backbones.text_config import Config, checked_config, read_config
from odn.backbones.text_parts import RotaryBlock, RotaryContext, TextBlock, TextHead, TextStem
from odn.errors import OdnError, UsageError, require_extra

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


def _make(inputs: Inputs, width: float, *, family: str, config: Config) -> nn.Module:
    assert width == 1, "text encoders do not scale"
    given = {"vocab_size": inputs.vocabulary or None, "pad_token_id": inputs.padding}
    given = {key: value for key, value in given.items() if value is not None}  # else the encoder's own
    try:
        with _library(family) as (_, model_class):
            settings = model_class.config_class(**{**config, **given}, attn_implementation="sdpa")
            network: nn.Module = model_class(settings, **_poolerless(family))
    except Exception as error:  # whatever a library says of a configuration that it cannot follow
        raise UsageError(
            f"transformers cannot follow the configuration: {' '.join(str(error).split())[:200]}"
        ) from error
    longest = _positions(settings, family)
    if inputs.shape[0] > longest:
        raise UsageError(f"texts of {inputs.shape[0]} tokens; allowed: up to {longest}, the positions of this {family}")
    return network


def _poolerless(family: str) -> dict[str, bool]:
    return {} if family in ("distilbert", "electra", "modernbert") else {"add_pooling_layer": False}


@contextlib.contextmanager
def _library(family: str) -> Iterator[tuple[Any, Any]]:
    """Give the library and the class of a family's networks.

    What the library says meanwhile of ids that odn does not use, and of weights that are checked here, is kept back.

    Yields:
        Both.
    """
    transformers = require_extra("transformers", "text", f"a {family} backbone")
    logs = transformers.logging
    verbosity, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield transformers, getattr(transformers, _FAMILIES[family][0])
    finally:
        logs.set_verbosity(verbosity)
        if bars:
            logs.enable_progress_bar()


def _positions(settings: Any, family: str) -> int:
    longest: int = settings.max_position_embeddings
    if family == "roberta":  # its positions are counted from behind the padding's id
        longest -= settings.pad_token_id + 1
    return longest


def _reading(family: str, config: Config) -> Reading:
    with _library(family) as (_, model_class):
        settings = model_class.config_class(**config)
    return Reading(
        positions=_positions(settings, family), vocabulary=settings.vocab_size, padding=settings.pad_token_id
    )


def _tokenizer(*, family: str, source: str) -> str:
    _require(source, "tokenizer.json", "tokenizer.json", "vocab.*")
    with _library(family) as (transformers, _):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False)
    content: str = tokenizer.backend_tokenizer.to_str()
    return content


def _require(source: str, wanted: str, *patterns: str) -> None:
    """Refuse a directory that lacks a file; what is no directory is asked for at the hub."""
    path = Path(source)
    if path.is_dir() and not any(found for pattern in patterns for found in path.glob(pattern)):
        raise UsageError(f"{source} has no {wanted}; save_pretrained of the encoder or of its tokenizer writes it")


def _pretrained(_inputs: Inputs, *, family: str, source: str) -> Mapping[str, Tensor]:
    _require(source, "model.safetensors", "model*.safetensors")
    with _library(family) as (_, model_class):
        network, info = model_class.from_pretrained(
            source,
            output_loading_info=True,
            use_safetensors=True,
            dtype=torch.float32,
            trust_remote_code=False,
            **_poolerless(family),
        )
    # What transformers does not find it would leave random.
    missing = sorted(info["missing_keys"])
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
        reading=partial(_reading, family, config),
        **_published(family, source),
    )


def _published(family: str, source: str | None) -> dict[str, Any]:
    """Return the fields of an entry for whose encoder trained weights and their tokenizer can be had."""
    if source is None:
        return {}
    return {
        "pretrained": partial(_pretrained, family=family, source=source),
        "tokenizer": partial(_tokenizer, family=family, source=source),
    }


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
    return dataclasses.replace(entry, directory=str(path), **_published(family, str(path)))


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
