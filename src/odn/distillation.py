"""Learning from a network that is already good: its opinion of every training image enters the loss.

Shapes: B batch, C channels, H height, W width, K classes.
"""

import copy
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odn.errors import UsageError


@final
class Teacher:
    """A frozen network whose softened logits another one learns to give (Hinton et al., arXiv 1503.02531).

    It sees the very images that the student sees, augmentation included (Beyer et al., arXiv 2106.05237).

    Args:
        network: gives logits of shape (B, K); a copy of it is kept, in evaluation mode.
        temperature: by which the logits of both are divided, above 0.
        share: of the soft targets in the loss, in [0, 1]; the labels have the rest.

    Raises:
        UsageError: when temperature or share are out of their range.
    """

    def __init__(self, network: nn.Module, *, temperature: float, share: float) -> None:
        if not temperature > 0 or not 0 <= share <= 1:
            raise UsageError(f"temperature {temperature}, share {share}; allowed: above 0, and 0 to 1")
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.temperature, self.share = temperature, share

    def loss(self, x_BCHW: Tensor, logits_BK: Tensor, labels_loss: Tensor) -> Tensor:
        """Mix the loss on the labels with the distance from the teacher's opinion.

        Args:
            x_BCHW: normalised images.
            logits_BK: the student's for them.
            labels_loss: the student's mean cross-entropy on the labels.

        Returns:
            The mean loss. The soft part is scaled by the squared temperature, so that its gradient keeps its size
            (section 2 of the paper).
        """
        with torch.no_grad():
            wanted_BK = self.network(x_BCHW)
        student, teacher = (F.log_softmax(logits.float() / self.temperature, 1) for logits in (logits_BK, wanted_BK))
        soft = F.kl_div(student, teacher, log_target=True, reduction="batchmean") * self.temperature**2
        return self.share * soft + (1 - self.share) * labels_loss
