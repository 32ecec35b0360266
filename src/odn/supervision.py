"""The loss of a network with a head per depth: all of them learn from one pass over the blocks.

Deep supervision (Lee et al., arXiv 1409.5185) of all depths, or of those that the sandwich rule draws (Yu and Huang,
arXiv 1903.05134); the deepest teaches the others (Zhang et al., arXiv 1905.08094) as far as it knows more.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from odn.config import OneShotConfig
from odn.losses import soft_loss, task_loss
from odn.network import PartitionedNetwork
from odn.tasks import Task

_LEAST = 1e-8  # of a loss that another is divided by
MOST_HEARD = 8.0  # heads besides the deepest whose gradients the blocks add up; more of them share that weight


@final
class AllDepthsLoss:
    """The loss of all depths, from the heads of some.

    Args:
        network: whose depths are trained.
        task: of the data.
        config: which heads learn, and from whom.
        label_smoothing: of the labels, in [0, 1).
    """

    def __init__(
        self,
        network: PartitionedNetwork,
        task: Task,
        config: OneShotConfig,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        self.lowest, self.max_depth = network.lowest, network.max_depth
        self.task, self.config, self.label_smoothing = task, config, label_smoothing

    def draw(self) -> list[int]:
        """Draw the depths of one step by the sandwich rule.

        Returns:
            Ascending depths, the first and the last of all among them.
        """
        lowest, deepest = self.lowest, self.max_depth
        between = inner = max(0, deepest - lowest - 1)
        if self.config.depths_per_step:
            between = min(between, self.config.depths_per_step - 2)
        drawn = torch.randperm(inner)[:between] + lowest + 1
        return sorted({lowest, deepest, *drawn.tolist()})

    def __call__(self, model: nn.Module, x: Tensor, targets: Tensor, /) -> Tensor:
        """Run a network on a batch of inputs, and return its mean loss."""
        depths = self.draw()
        config = self.config
        *shallow, deep = model(x, self._shares(depths))
        wanted = deep.detach()
        loss = best = self._on_labels(deep, targets)
        for outputs in shallow:
            own = self._on_labels(outputs, targets)
            # A teacher that knows no more than its pupil, as early in training, has nothing to teach.
            share = config.soft_share * (1 - best.detach() / own.detach().clamp_min(_LEAST)).clamp(0, 1)
            loss = loss + (1 - share) * own
            if config.soft_share:
                loss = loss + share * soft_loss(self.task, outputs, wanted, config.temperature)
        if isinstance(model, DistributedDataParallel):
            # The processes wait for the gradient of every weight, also of the heads that were not drawn.
            network = model.module
            assert isinstance(network, PartitionedNetwork)
            idle = [head for depth, head in enumerate(network.heads, self.lowest) if depth not in depths]
            loss = loss + sum(weight.sum() * 0.0 for head in idle for weight in head.parameters())
        return loss

    def _shares(self, depths: list[int]) -> dict[int, float]:
        """Return the factors on the gradients that the heads of some depths send back into the blocks."""
        other = self.config.other_share * min(1.0, MOST_HEARD / max(len(depths) - 1, 1))
        return dict.fromkeys(depths[:-1], other) | {depths[-1]: self.config.deep_share}

    def _on_labels(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return task_loss(self.task, outputs, targets, label_smoothing=self.label_smoothing)
