"""Take the chosen depth out of the backbone, and fine-tune it."""

import copy
from collections.abc import Generator
from dataclasses import dataclass

from odn.annealing import annealed_epochs
from odn.checkpoint import Checkpoints
from odn.config import FinetuneConfig, TrainConfig
from odn.data import Split
from odn.engine import Progress, finish
from odn.evaluation import evaluate
from odn.network import PartitionedNetwork, Prefix
from odn.records import EpochRecord
from odn.stage import Stage

_KEPT = "finetuned_best"


def extract(network: PartitionedNetwork, depth: int) -> Prefix:
    """Copy the network of one depth out of its backbone.

    The blocks beyond are not masked but gone: the copy holds the parameters of its own blocks and head alone, and
    gives the same logits as the prefix, bit for bit.

    Args:
        network: the partitioned backbone; it is left as it is.
        depth: blocks to keep, 1 to ``network.max_depth``.

    Returns:
        A network that shares nothing with the backbone.
    """
    return copy.deepcopy(network.prefix(depth))


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What fine-tuning gained.

    Attributes:
        valid_score_before: of the network as it came, in the metric of the data.
        valid_score: of the weights kept; never below the one before.
    """

    valid_score_before: float
    valid_score: float


def finetune(
    network: Prefix,
    train: Split,
    valid: Split,
    *,
    config: FinetuneConfig | None = None,
    training: TrainConfig | None = None,
    seed: int = 0,
) -> FinetuneResult:
    """Anneal the learning rate to zero and keep the averaged weights that were best on the validation split.

    Args:
        network: trained in place; where every epoch is below it, it is left as it came.
        train: the training split.
        valid: the validation split.
        config: number of epochs, and the peak of the rate: by default those for a network that was trained to its end.
        training: how weights are trained.
        seed: of the order of samples and the augmentation.

    Returns:
        Validation score before and after.
    """
    return finish(finetune_epochs(network, train, valid, config=config, training=training, seed=seed))


def finetune_epochs(
    network: Prefix,
    train: Split,
    valid: Split,
    *,
    config: FinetuneConfig | None = None,
    training: TrainConfig | None = None,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
    confirmations: int = 1,
) -> Generator[EpochRecord, None, FinetuneResult]:
    """Do what ``finetune`` does, one epoch at a time.

    Args:
        network: trained in place.
        train: the training split.
        valid: the validation split.
        config: number of epochs, and the peak of the rate: by default those for a network that was trained to its end.
        training: how weights are trained.
        seed: of the order of samples and the augmentation.
        checkpoints: the memory of the run; fine-tuning goes on where it stands.
        confirmations: so many epochs at the end are evaluated each, for a target to be confirmed, 1 or more.

    Yields:
        The record of every evaluation.

    Returns:
        Validation score before and after.

    Raises:
        OdnError: when the loss stops being finite.
    """
    config, training = config or FinetuneConfig(), training or TrainConfig()
    checkpoints = checkpoints or Checkpoints("finetune")
    config = config.resolved()
    stage = Stage(network, training, train) if config.epochs else None
    before = evaluate(stage.averaged if stage else network, valid, together=True).value
    if stage is None:
        return FinetuneResult(valid_score_before=before, valid_score=before)
    if checkpoints.position is None:
        checkpoints.keep(_KEPT, network)
        checkpoints.save("finetune", Progress(), stage)
    else:
        checkpoints.restore(stage)
    best = yield from annealed_epochs(
        stage,
        train,
        valid,
        phase="finetune",
        epochs=config.epochs,
        peak=config.rate,
        seed=seed,
        checkpoints=checkpoints,
        kept=_KEPT,
        before=before,
        done=checkpoints.records,
        last=confirmations,
    )
    checkpoints.take(_KEPT, network)
    return FinetuneResult(valid_score_before=before, valid_score=best)
