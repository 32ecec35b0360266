"""Progressive depth expansion: train shallow, add a block when the ones before have converged, stop at the target.

The method of Optimally Deep Networks (arXiv 2510.10764). Decisions rest on averaged weights (an exponential moving
average with BatchNorm statistics recomputed for it), because raw weights at a constant learning rate jump by
percents from one epoch to the next.
"""

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from odn.checkpoint import Checkpoints
from odn.config import ExpandConfig, TrainConfig
from odn.data import Split
from odn.engine import Stage, finish, train_epochs, training_device
from odn.errors import OdnError, UsageError
from odn.network import PartitionedNetwork
from odn.records import EpochRecord, Phase, StopReason, divergence
from odn.schedules import Schedule, constant_after_warmup, cool_down
from odn.stopping import almost_reached, decide


@dataclass(frozen=True, kw_only=True)
class ExpandResult:
    """What expansion found.

    Attributes:
        depth: the depth kept: the first one that reached the target, or, where none did, the one with the best
            validation accuracy.
        reached: whether the target was reached and confirmed.
        valid_accuracy: of the averaged weights kept for that depth, a fraction.
        records: every epoch, oldest first.
    """

    depth: int
    reached: bool
    valid_accuracy: float
    records: tuple[EpochRecord, ...]


def expand(
    network: PartitionedNetwork,
    train: Split,
    valid: Split,
    *,
    target_accuracy: float | None = None,
    config: ExpandConfig | None = None,
    training: TrainConfig | None = None,
    seed: int = 0,
) -> ExpandResult:
    """Grow a network until it reaches the target accuracy on the validation split.

    Args:
        network: is trained in place; afterwards the prefix of the chosen depth holds its best averaged weights.
        train: the training split.
        valid: the validation split, on which all decisions rest.
        target_accuracy: short for the ``target_accuracy`` of ``config``, a fraction.
        config: when to grow and when to stop.
        training: how weights are trained.
        seed: of the order of samples and the augmentation.

    Returns:
        The chosen depth and how it was found. Missing the target is a result, not an error.
    """
    config = config or ExpandConfig()
    if target_accuracy is not None:
        config = dataclasses.replace(config, target_accuracy=target_accuracy)
    return finish(expand_epochs(network, train, valid, config=config, training=training, seed=seed))


def expand_epochs(
    network: PartitionedNetwork,
    train: Split,
    valid: Split,
    *,
    config: ExpandConfig,
    training: TrainConfig | None = None,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
) -> Generator[EpochRecord, None, ExpandResult]:
    """Do what ``expand`` does, one epoch at a time.

    Args:
        network: trained in place.
        train: the training split.
        valid: the validation split.
        config: when to grow and when to stop.
        training: how weights are trained.
        seed: of the order of samples and the augmentation.
        checkpoints: the memory of the run; expansion goes on where it stands.

    Yields:
        The record of every epoch, with the reason to stop in the last one of each phase of each depth.

    Returns:
        The chosen depth and how it was found.

    Raises:
        OdnError: when the loss stops being finite.
    """
    training = training or TrainConfig()
    checkpoints = checkpoints or Checkpoints("expand")
    records = checkpoints.records
    depths = plan_depths(config, network.max_depth)
    stage: Stage | None = None
    if checkpoints.position is not None:
        stage = Stage(network.prefix(checkpoints.position.depth), training, train)
        checkpoints.restore(stage)
    while (step := next_step(records, depths, config)) is not None:
        phase, depth = step
        if stage is None:
            stage = Stage(network.prefix(depth), training, train)
        elif stage.prefix.depth < depth:
            stage = _grow(network, stage, depth, train)
        best = max((record.valid_correct for record in records if record.depth == depth), default=-1)
        for record in train_epochs(
            stage,
            train,
            valid,
            phase=phase,
            schedule=_schedule(records, phase, depth, config, training),
            epochs=config.cooldown_epochs if phase == "cooldown" else config.epochs_per_depth,
            seed=seed,
            first_epoch=1 + sum((record.phase, record.depth) == step for record in records),
        ):
            stop = decide([*records, record], config)
            if stop == StopReason.NON_FINITE:
                raise OdnError(divergence(record))
            record = dataclasses.replace(record, stop=stop)
            if record.valid_correct > best:
                best = record.valid_correct
                checkpoints.keep(kept_name(depth), stage.averaged)
            checkpoints.commit(record, stage)
            yield record
            if stop is not None:
                break
    result = expand_result(records)
    network.to(training_device())  # the blocks that were never trained follow the others
    checkpoints.take(kept_name(result.depth), network.prefix(result.depth))
    return result


def next_step(records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig) -> tuple[Phase, int] | None:
    """Say what to train next: a pure function of the records so far, so that resuming needs no other state.

    Args:
        records: of the expansion, oldest first.
        depths: the plan, ascending.
        config: when a depth deserves to be annealed.

    Returns:
        Phase and depth, or None when expansion is over.
    """
    if not records:
        return "expand", depths[0]
    last = records[-1]
    if last.stop is None:
        return last.phase, last.depth
    if last.stop == StopReason.TARGET_REACHED:
        return None
    at_depth = [record for record in records if record.depth == last.depth]
    if last.phase == "expand" and almost_reached(at_depth, config):
        return "cooldown", last.depth
    deeper = [depth for depth in depths if depth > last.depth]
    return ("expand", deeper[0]) if deeper else None


def _schedule(
    records: Sequence[EpochRecord], phase: Phase, depth: int, config: ExpandConfig, training: TrainConfig
) -> Schedule:
    if phase == "expand":
        return constant_after_warmup(training.warmup_epochs)
    start = sum((record.phase, record.depth) == ("expand", depth) for record in records)
    return cool_down(start, config.cooldown_epochs)


def expand_result(records: Sequence[EpochRecord]) -> ExpandResult:
    """Read the outcome of an expansion from its records.

    Args:
        records: of the expansion, oldest first, one or more.

    Returns:
        The chosen depth and how it was found.
    """
    last = records[-1]
    reached = last.stop == StopReason.TARGET_REACHED
    candidates = [record for record in records if record.depth == last.depth] if reached else records
    # max() keeps the first of equals: the shallowest depth.
    best = max(candidates, key=lambda record: record.valid_correct)
    return ExpandResult(depth=best.depth, reached=reached, valid_accuracy=best.valid_accuracy, records=tuple(records))


def plan_depths(config: ExpandConfig, max_depth: int) -> list[int]:
    """List the depths that expansion tries.

    Args:
        config: may name them.
        max_depth: of the backbone.

    Returns:
        Ascending depths.

    Raises:
        UsageError: when the backbone has no such depth.
    """
    if config.depths and config.depths[-1] > max_depth:
        raise UsageError(f"depth {config.depths[-1]} is in the plan; allowed: 1 to {max_depth} for this backbone")
    return list(config.depths) or list(range(1, max_depth + 1))


def kept_name(depth: int) -> str:
    """Return the name under which the best averaged weights of a depth are kept.

    Args:
        depth: number of blocks.

    Returns:
        The name of a directory.
    """
    return f"depth_{depth:03d}"


def _shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in module.state_dict().items()]


def _grow(network: PartitionedNetwork, stage: Stage, depth: int, train: Split) -> Stage:
    """Attach the next blocks to the network that was judged, and take the optimizer's memory along."""
    # Training goes on from the averaged weights. A new block whose residual branch starts at zero and whose shapes
    # agree leaves the function as it was, and so does its head, copied where the widths match.
    stage.prefix.load_state_dict(stage.averaged.state_dict())
    old_head, new_head = stage.prefix.head, network.heads[depth - 1]
    same_as: dict[nn.Parameter, nn.Parameter] = {}
    if _shapes(old_head) == _shapes(new_head):
        new_head.load_state_dict(old_head.state_dict())
        same_as = dict(zip(new_head.parameters(), old_head.parameters(), strict=True))
    prefix = network.prefix(depth)
    return Stage(prefix, stage.config, train, previous=stage, same_as=same_as)
