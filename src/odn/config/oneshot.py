"""Settings of training all depths at once. No torch here."""

import math
from dataclasses import dataclass

from odn.config.checks import require


@dataclass(frozen=True, kw_only=True)
class OneShotConfig:
    """How one training serves every depth.

    Attributes:
        epochs: length of the annealed training; 0 means 30, or as many as 2,500 steps take where that is more, at most
            120.
        depths_per_step: heads that learn from each batch: all with 0, otherwise the shallowest, the deepest, and others
            drawn anew.
        deep_share: factor on the gradient that the deepest head sends back into the blocks, above 0; every head itself
            learns at the full rate.
        other_share: likewise of every other head of a step.
        soft_share: of the deepest head's opinion in the loss of the others, in [0, 1], times the share by which its
            own loss on a batch is below theirs; the labels have the rest.
        temperature: by which logits are divided where they are compared with the deepest head's, above 0.
    """

    epochs: int = 0
    depths_per_step: int = 0
    deep_share: float = 1.0
    other_share: float = 1.0
    soft_share: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        require(self.epochs >= 0, f"oneshot.epochs is {self.epochs}; allowed: 0 or more")
        require(
            self.depths_per_step == 0 or self.depths_per_step >= 2,
            f"oneshot.depths_per_step is {self.depths_per_step}; allowed: 0, or 2 or more",
        )
        require(self.deep_share > 0, f"oneshot.deep_share is {self.deep_share}; allowed: above 0")
        require(self.other_share >= 0, f"oneshot.other_share is {self.other_share}; allowed: 0 or more")
        require(0 <= self.soft_share <= 1, f"oneshot.soft_share is {self.soft_share}; allowed: 0 to 1")
        require(self.temperature > 0, f"oneshot.temperature is {self.temperature}; allowed: above 0")

    def epochs_for(self, steps_per_epoch: int) -> int:
        """Return the epochs of the training.

        Args:
            steps_per_epoch: of the optimizer; small datasets need more epochs for as many steps.

        Returns:
            Their number.
        """
        return self.epochs or min(max(30, math.ceil(2500 / steps_per_epoch)), 120)
