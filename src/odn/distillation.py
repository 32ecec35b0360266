"""Learning from a network that is already good: its opinion of every training image enters the loss.

Shapes: B batch, C channels, H height, W width, K classes.
"""

import copy
from typing import final

import torch
from torch import Tensor, nn

from odn.errors import UsageError
from odn.losses import soft_loss, task_loss
from odn.processes import training_device
from odn.tasks import Task


@final
class Teacher:
    """A frozen network whose softened logits another one learns to give (Hinton et al., arXiv 1503.02531).

    It sees the very images that the student sees, augmentation included (Beyer et al., arXiv 2106.05237).

    Args:
        network: gives outputs of the shape of the student's; a copy of it is kept on the training device, in evaluation
            mode.
        task: of the data.
        temperature: by which the logits of both are divided, above 0.
        share: of the soft targets in the loss, in [0, 1]; the labels have the rest.
        label_smoothing: of the labels, in [0, 1).

    Raises:
        UsageError: when temperature or share are out of their range.
    """

    def __init__(
        self, network: nn.Module, task: Task, *, temperature: float, share: float, label_smoothing: float = 0.0
    ) -> None:
        if not temperature > 0 or not 0 <= share <= 1:
            raise UsageError(f"temperature {temperature}, share {share}; allowed: above 0, and 0 to 1")
        network = copy.deepcopy(network).eval().requires_grad_(False)
        self.network = network.to(training_device()).to(memory_format=torch.channels_last)
        self.task, self.temperature, self.share = task, temperature, share
        self.label_smoothing = label_smoothing

    def __call__(self, model: nn.Module, x_BCHW: Tensor, targets: Tensor, /) -> Tensor:
        """Run a student on a batch of inputs, and return its mean loss."""
        outputs = model(x_BCHW)
        labels_loss = task_loss(self.task, outputs, targets, label_smoothing=self.label_smoothing)
        return self.loss(x_BCHW, outputs, labels_loss)

    def loss(self, x_BCHW: Tensor, outputs: Tensor, labels_loss: Tensor) -> Tensor:
        """Mix the loss on the labels with the distance from the teacher's opinion.

        Args:
            x_BCHW: normalised images.
            outputs: the student's for them.
            labels_loss: the student's mean loss on the labels.

        Returns:
            The mean loss.
        """
        with torch.no_grad():
            wanted = self.network(x_BCHW)
        soft = soft_loss(self.task, outputs, wanted, self.temperature)
        return self.share * soft + (1 - self.share) * labels_loss
