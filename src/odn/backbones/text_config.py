"""Configurations of text encoders that came from a directory: what is taken from them, and what is believed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odn.errors import OdnError, UsageError

Config = dict[str, int | float | str | bool]

# What is taken from a configuration: numbers that shape the network. The rest (where to load code or kernels from, what
# to print, how to generate) has no place in it. With each, the largest value that is believed.
_KEYS: Mapping[str, float] = {
    "vocab_size": 10**7,
    "hidden_size": 2**16,
    "dim": 2**16,
    "embedding_size": 2**16,
    "num_hidden_layers": 1024,
    "n_layers": 1024,
    "num_attention_heads": 4096,
    "n_heads": 4096,
    "intermediate_size": 2**18,
    "hidden_dim": 2**18,
    "max_position_embeddings": 2**20,
    "type_vocab_size": 2**16,
    "pad_token_id": 10**7,
    "layer_norm_eps": 1,
    "norm_eps": 1,
    "norm_bias": True,
    "attention_bias": True,
    "mlp_bias": True,
    "hidden_dropout_prob": 1,
    "attention_probs_dropout_prob": 1,
    "attention_dropout": 1,
    "embedding_dropout": 1,
    "mlp_dropout": 1,
    "dropout": 1,
    "initializer_range": 10,
    "local_attention": 2**20,
    "global_attn_every_n_layers": 1024,
    "global_rope_theta": 10**9,
    "local_rope_theta": 10**9,
    "sinusoidal_pos_embds": True,
}
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation")


def read_config(path: Path) -> tuple[object, dict[str, object]]:
    """Read the configuration of an encoder, as transformers saves it.

    Args:
        path: holds ``config.json``; nothing else of it is read.

    Returns:
        The family, and the numbers that shape the network.

    Raises:
        OdnError: when the file is damaged, or asks for more than an encoder.
    """
    file = path / "config.json"
    try:
        if file.stat().st_size > 2**20:
            raise OdnError(f"{file} is larger than any configuration; allowed: up to 1,048,576 bytes")
        table = json.loads(file.read_text(encoding="utf-8"))
        family = table["model_type"]
        numbers = {**table, **_rotary_numbers(table)}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise OdnError(f"{file} is no configuration of an encoder ({type(error).__name__}: {error})") from error
    for key, usual in (("is_decoder", False), ("add_cross_attention", False), ("position_embedding_type", "absolute")):
        if table.get(key, usual) != usual:
            raise OdnError(f"{file} sets '{key}' to {table[key]!r}; allowed: {usual!r}, an encoder alone")
    known = {*_KEYS, *_ACTIVATIONS}
    return family, {key: value for key, value in numbers.items() if key in known and value is not None}


def _rotary_numbers(table: dict[str, Any]) -> Config:
    """Say in the words of ``_KEYS`` what newer configurations of ModernBERT say in lists and tables."""
    numbers: Config = {}
    for key, kind in (("global_rope_theta", "full_attention"), ("local_rope_theta", "sliding_attention")):
        rope = (table.get("rope_parameters") or {}).get(kind)
        if rope is not None:
            if rope.get("rope_type", "default") != "default" or "rope_theta" not in rope:
                raise ValueError(f"rope_parameters of {kind} are {rope}; allowed: type default with a rope_theta")
            numbers[key] = rope["rope_theta"]
    kinds = table.get("layer_types")
    if kinds is not None:
        globals_ = [index for index, kind in enumerate(kinds) if kind == "full_attention"]
        every = globals_[1] if len(globals_) > 1 else len(kinds)
        if globals_ != list(range(0, len(kinds), every)):
            raise ValueError("layer_types follow no period; allowed: every n-th layer global, the first one among them")
        numbers["global_attn_every_n_layers"] = every
    return numbers


def checked_config(config: Mapping[str, object]) -> Config:
    """Check the numbers that shape an encoder.

    Args:
        config: from a file.

    Returns:
        The same.

    Raises:
        UsageError: on a key that does not shape an encoder, or a value beyond belief.
    """
    checked: Config = {}
    for key, value in config.items():
        activation = key in _ACTIVATIONS and isinstance(value, str) and len(value) < 40
        number = key in _KEYS and isinstance(value, int | float) and 0 <= value <= _KEYS[key]
        if activation or number:
            assert isinstance(value, str | int | float)
            checked[key] = value
        else:
            limit = f"0 to {_KEYS[key]:g}" if key in _KEYS else "numbers that shape an encoder"
            raise UsageError(f"'{key}' is {value!r} in the configuration of the encoder; allowed: {limit}")
    return checked
