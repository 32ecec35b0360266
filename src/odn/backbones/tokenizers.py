"""The tokenizer that belongs to the trained weights of a text encoder."""

from pathlib import Path

from odn.backbones.loading import fetch, read_weights
from odn.backbones.parts import Backbone
from odn.errors import UsageError
from odn.files import read_text
from odn.tokenizer import TokenizerSource

_EMBEDDINGS = ("word_embeddings.weight", "tok_embeddings.weight")


def find_tokenizer(backbone: Backbone, path: str | Path | None, pretrained: bool) -> TokenizerSource | None:
    """Find the tokenizer that the trained weights of a text encoder came with.

    Args:
        backbone: entry of the registry.
        path: a safetensors file with a ``tokenizer.json`` beside it, or None.
        pretrained: take that of the weights that its library publishes.

    Returns:
        The tokenizer; None for images and a random start.

    Raises:
        UsageError: when there is none.
        OdnError: when it cannot be had.
    """
    if backbone.reading is None or not (path or pretrained):
        return None
    reading = backbone.reading()
    if path is None:
        if backbone.tokenizer is None:
            raise UsageError(
                f"no pretrained weights exist for '{backbone.name}' of {backbone.library}; name the directory of an "
                "encoder with its tokenizer, or give a file with --weights"
            )
        return TokenizerSource(
            content=fetch(backbone, backbone.tokenizer, "tokenizer"),
            where=f"the tokenizer of {backbone.source}",
            padding=reading.padding,
            vocabulary=reading.vocabulary,
        )
    shapes = read_weights(path).shapes
    rows = next((shape[0] for name, shape in shapes.items() if name.endswith(_EMBEDDINGS)), 0)
    if not rows:
        raise UsageError(f"{path} holds no embeddings of tokens; give weights of a text encoder")
    file = Path(path).with_name("tokenizer.json")
    if not file.is_file():
        raise UsageError(
            f"there is no {file}, the tokenizer that trained embeddings belong to; put it beside the weights, or give "
            "those of an artifact, RUN/artifact/weights.safetensors"
        )
    return TokenizerSource(content=read_text(file), where=str(file), padding=reading.padding, vocabulary=rows)
