"""From what a network gives to what is said of an input. No torch here.

Shapes: B batch, H height, W width, K outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from odn.errors import OdnError
from odn.runtimes import Logits
from odn.tasks import Task

Labels = npt.NDArray[Any]
Answered = tuple[Logits, Labels | None]  # with the depth at which each input left, where some may leave early


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a network says of one image or text.

    Attributes:
        label: name of the most probable class; of several labels those that are more probable than not, with commas
            between; the label that most pixels have; or the numbers as text.
        probability: of that class, in [0, 1]; None where there is not one.
        values: probability of each of several labels, share of the pixels of each label, or the numbers by name; empty
            for one class.
        mask: label of every pixel, uint8 or uint16 of shape (H, W), for segmentation.
        truncated: whether the input is a text of which only the beginning was read.
        depth: at which the input left a routed network; None for others.
    """

    label: str
    probability: float | None
    values: Mapping[str, float] = field(default_factory=dict)
    mask: Labels | None = None
    truncated: bool = False
    depth: int | None = None


def predictions(task: Task, labels: Sequence[str], outputs: Logits) -> list[Prediction]:
    """Say in words what a network gave.

    Args:
        task: what it was trained for.
        labels: names of the outputs.
        outputs: logits of shape (B, K), for segmentation (B, K, H, W); for regression numbers in their own units.

    Returns:
        One prediction per input.

    Raises:
        OdnError: when there is not one output per label.
    """
    if outputs.ndim != (4 if task == "segmentation" else 2) or outputs.shape[1] != len(labels):
        shape = " x ".join(map(str, outputs.shape))
        raise OdnError(f"logits of {shape} for {len(labels)} labels; export the network again")
    if task == "segmentation":
        return _masks(labels, outputs)
    if task == "classification":
        return _one_class(labels, outputs)
    rows = outputs.astype(np.float64)
    if task == "multilabel":
        rows = 1 / (1 + np.exp(-rows.clip(-700, 700)))
    values = [dict(zip(labels, row, strict=True)) for row in rows.tolist()]
    if task == "multilabel":
        texts = [",".join(name for name, value in row.items() if value > 0.5) for row in values]
    else:
        texts = [",".join(f"{value:.9g}" for value in row.values()) for row in values]
    return [Prediction(label=text, probability=None, values=row) for text, row in zip(texts, values, strict=True)]


def _one_class(labels: Sequence[str], logits: Logits) -> list[Prediction]:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials.max(1) / exponentials.sum(1)
    return [
        Prediction(label=labels[index], probability=probability)
        for index, probability in zip(logits.argmax(1).tolist(), probabilities.tolist(), strict=True)
    ]


def _masks(labels: Sequence[str], logits: Logits) -> list[Prediction]:
    masks = logits.argmax(1).astype(np.uint8 if len(labels) <= 256 else np.uint16)
    said = []
    for mask in masks:
        shares = np.bincount(mask.ravel(), minlength=len(labels)) / mask.size
        values = {name: share for name, share in zip(labels, shares.tolist(), strict=True) if share}
        said.append(Prediction(label=labels[int(shares.argmax())], probability=None, values=values, mask=mask))
    return said
