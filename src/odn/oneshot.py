"""All depths from one training: every block has a head, and one pass over the blocks serves the heads of a step.

Deep supervision (Lee et al., arXiv 1409.5185) of all depths, or of those that the sandwich rule draws (Yu and Huang,
arXiv 1903.05134); the deepest teaches the others (Zhang et al., arXiv 1905.08094) as far as it knows more. A block's
features do not depend on the depth at which the network ends: all depths share the statistics of its BatchNorm.
"""

import math
from collections.abc import Generator
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from odn.annealing import annealed_epochs
from odn.checkpoint import Checkpoints
from odn.config import OneShotConfig, TrainConfig
from odn.curve import Curve, curve_of
from odn.data import Split
from odn.engine import Progress, finish
from odn.losses import soft_loss, task_loss
from odn.network import PartitionedNetwork
from odn.records import EpochRecord
from odn.stage import Stage
from odn.tasks import Task

KEPT = "all_depths"
_LEAST = 1e-8  # of a loss that another is divided by


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
        self, network: PartitionedNetwork, task: Task, config: OneShotConfig, *, label_smoothing: float = 0.0
    ) -> None:
        self.max_depth, self.task, self.config, self.label_smoothing = network.max_depth, task, config, label_smoothing

    def draw(self) -> list[int]:
        """Draw the depths of one step by the sandwich rule.

        Returns:
            Ascending depths, the first and the last of all among them.
        """
        deepest = self.max_depth
        between = max(0, deepest - 2)
        if self.config.depths_per_step:
            between = min(between, self.config.depths_per_step - 2)
        drawn = torch.randperm(max(0, deepest - 2))[:between] + 2
        return sorted({1, deepest, *drawn.tolist()})

    def __call__(self, model: nn.Module, x: Tensor, targets: Tensor, /) -> Tensor:
        """Run a network on a batch of inputs, and return its mean loss."""
        depths = self.draw()
        config = self.config
        other = config.other_share
        *shallow, deep = model(x, dict.fromkeys(depths[:-1], other) | {depths[-1]: config.deep_share})
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
            idle = [head for depth, head in enumerate(network.heads, 1) if depth not in depths]
            loss = loss + sum(weight.sum() * 0.0 for head in idle for weight in head.parameters())
        return loss

    def _on_labels(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return task_loss(self.task, outputs, targets, label_smoothing=self.label_smoothing)


def train_all_depths(
    network: PartitionedNetwork,
    train: Split,
    valid: Split,
    *,
    config: OneShotConfig | None = None,
    training: TrainConfig | None = None,
    seed: int = 0,
) -> Curve:
    """Train every depth of a network in one run, at about the cost of its full depth.

    Args:
        network: is trained in place; afterwards it holds the averaged weights that were best on the validation split,
            in the mean over all depths, so that every ``extract(network, depth)`` is ready for use.
        train: the training split.
        valid: the validation split.
        config: which heads learn at each step, from whom, and for how long.
        training: how weights are trained.
        seed: of the order of samples, the augmentation and the depths drawn.

    Returns:
        How every depth does on the validation split.
    """
    return finish(train_all_depths_epochs(network, train, valid, config=config, training=training, seed=seed))


def train_all_depths_epochs(
    network: PartitionedNetwork,
    train: Split,
    valid: Split,
    *,
    config: OneShotConfig | None = None,
    training: TrainConfig | None = None,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
) -> Generator[EpochRecord, None, Curve]:
    """Do what ``train_all_depths`` does, one epoch at a time.

    Args:
        network: trained in place.
        train: the training split.
        valid: the validation split.
        config: which heads learn at each step, from whom, and for how long.
        training: how weights are trained.
        seed: of the order of samples, the augmentation and the depths drawn.
        checkpoints: the memory of the run; training goes on where it stands.

    Yields:
        The record of every epoch.

    Returns:
        How every depth does on the validation split.

    Raises:
        OdnError: when the loss stops being finite.
    """
    config, training = config or OneShotConfig(), training or TrainConfig()
    checkpoints = checkpoints or Checkpoints("oneshot")
    loss = AllDepthsLoss(network, train.spec.task, config, label_smoothing=training.label_smoothing)
    stage = Stage(network, training, train, loss=loss)
    if checkpoints.position is None:
        checkpoints.save("oneshot", Progress(), stage)
    else:
        checkpoints.restore(stage)
    yield from annealed_epochs(
        stage,
        train,
        valid,
        phase="oneshot",
        epochs=config.epochs_for(stage.steps_per_epoch),
        seed=seed,
        checkpoints=checkpoints,
        kept=KEPT,
        before=-math.inf,
        done=checkpoints.records,
    )
    checkpoints.take(KEPT, network)
    return curve_of(checkpoints.records)
