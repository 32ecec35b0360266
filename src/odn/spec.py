"""What a network is given and gives, and the JSON recipe that rebuilds it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from odn.errors import OdnError, UsageError
from odn.tables import from_table, to_table
from odn.tasks import Task

SCHEMA = 2
_MAX_SIDE, _MAX_CLASSES, _MAX_VOCABULARY = 8192, 1_000_000, 10_000_000


class HasShape(Protocol):
    """Whatever says what goes in and out: a ``DataSpec`` or anything with these two."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch: of an image channels, height and width."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the labels."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """The JSON recipe that rebuilds a prefix without its weights.

    Attributes:
        backbone: name in the registry.
        width: factor on the backbone's channels.
        input_shape: channels, height and width of an image, or the number of tokens of a text.
        classes: number of logits.
        depth: blocks kept, from 1.
        vocabulary: number of different tokens; 0 for images, and for the backbone's own.
        config: numbers that shape a text encoder which came from a directory.
        channels: what layers give by their name, where that is less than in the backbone.
        task: what the heads are made for; only segmentation has others.
        schema: version of this format; 1 had neither ``channels`` nor anything about texts or tasks.
    """

    backbone: str
    input_shape: tuple[int, ...]
    classes: int
    depth: int
    width: float = 1.0
    vocabulary: int = 0
    config: dict[str, Any] | None = None
    channels: dict[str, int] = field(default_factory=dict)
    task: Task = "classification"
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise OdnError(
                f"the network's spec has schema {self.schema}; this odn reads {SCHEMA}; "
                + ("install a newer odn" if self.schema > SCHEMA else "export it again")
            )
        sides = self.input_shape[1:] if len(self.input_shape) == 3 else self.input_shape
        image = len(self.input_shape) == 3 and self.input_shape[0] in (1, 3)
        if not (image or len(self.input_shape) == 1) or not all(1 <= side <= _MAX_SIDE for side in sides):
            raise UsageError(
                f"input shape {'x'.join(map(str, self.input_shape))}; allowed: 1 or 3 channels, sides of 1 to "
                f"{_MAX_SIDE}; for texts 1 to {_MAX_SIDE} tokens"
            )
        if not 0 <= self.vocabulary <= _MAX_VOCABULARY:
            raise UsageError(f"vocabulary of {self.vocabulary} tokens; allowed: up to {_MAX_VOCABULARY}, or 0")
        if not 1 <= self.classes <= _MAX_CLASSES:
            raise UsageError(f"{self.classes} classes; allowed: 1 to {_MAX_CLASSES}")
        if not 0 < self.width <= 64:
            raise UsageError(f"width {self.width}; allowed: above 0 to 64")
        if self.depth < 1:
            raise UsageError(f"depth {self.depth}; allowed: 1 or more")

    @property
    def input_dtype(self) -> torch.dtype:
        """What a batch consists of: numbers, or the ids of tokens."""
        return torch.int64 if len(self.input_shape) == 1 else torch.float32

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
