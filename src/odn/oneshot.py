"""All depths from one training: every block has a head, and one pass over the blocks serves the heads of a step.

A block's features do not depend on the depth at which the network ends: all depths share the statistics of its
BatchNorm.
"""

import math
from collections.abc import Generator

from odn.annealing import annealed_epochs
from odn.checkpoint import Checkpoints
from odn.config import OneShotConfig, TrainConfig
from odn.curve import Curve, curve_of
from odn.data import Split
from odn.engine import Progress, finish
from odn.network import PartitionedNetwork
from odn.records import EpochRecord
from odn.stage import Stage
from odn.supervision import AllDepthsLoss

KEPT = "all_depths"


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
        The record of every evaluation.

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
