"""What training makes small: one loss per task, and its counterpart for learning from another network.

Shapes: B batch, K outputs; segmentation has a height and a width behind K.
"""

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odn.metrics import IGNORED
from odn.tasks import Task


def task_loss(task: Task, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Compare outputs with targets.

    Args:
        task: of the data.
        outputs: of the network, shape (B, K) or (B, K, H, W).
        targets: labels of shape (B,) or (B, H, W), else numbers of shape (B, K).
        label_smoothing: share of a label that is spread over all classes, or for several labels drawn to one half.

    Returns:
        The mean loss: cross-entropy, of each label on its own where a sample may have several, or the squared
        difference.
    """
    if task == "regression":
        return F.mse_loss(outputs.float(), targets.float())
    if task == "multilabel":
        targets = targets * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(outputs.float(), targets)
    if task == "segmentation" and bool((targets == IGNORED).all()):
        return outputs.sum() * 0.0  # a mean over no pixel would be NaN
    return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing, ignore_index=IGNORED)


class Loss(Protocol):
    """What a network is trained to make small."""

    def __call__(self, model: nn.Module, x: Tensor, targets: Tensor, /) -> Tensor:
        """Run a network on a batch of inputs, and return its mean loss."""


@final
@dataclass(frozen=True, kw_only=True)
class LabelLoss:
    """Learning from the labels alone.

    Attributes:
        task: of the data.
        label_smoothing: in [0, 1).
    """

    task: Task
    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, x: Tensor, targets: Tensor, /) -> Tensor:
        """Run a network on a batch of inputs, and return its mean loss."""
        return task_loss(self.task, model(x), targets, label_smoothing=self.label_smoothing)


def soft_loss(task: Task, outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Compare the outputs of two networks.

    Args:
        task: of the data.
        outputs: of the one that learns.
        wanted: of the one it learns from, same shape.
        temperature: by which logits are divided, above 0; numbers are compared as they are.

    Returns:
        The mean distance: Kullback-Leibler divergence of the softened probabilities, times the squared temperature, so
        that its gradient keeps its size (Hinton et al., arXiv 1503.02531, section 2), or the squared difference.
    """
    if task == "regression":
        return F.mse_loss(outputs.float(), wanted.float())
    outputs, wanted = outputs.float() / temperature, wanted.float() / temperature
    if task == "multilabel":  # each label is a class and its opposite
        outputs, wanted = (torch.stack([x, torch.zeros_like(x)], 1) for x in (outputs, wanted))
    student, teacher = F.log_softmax(outputs, 1), F.log_softmax(wanted, 1)
    divergence = F.kl_div(student, teacher, log_target=True, reduction="none").sum(1)
    return divergence.mean() * temperature**2
