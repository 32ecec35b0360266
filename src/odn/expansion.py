"""Progressive depth expansion: train shallow, add a block when the ones before have converged, stop at the target.

The method of Optimally Deep Networks (arXiv 2510.10764). Decisions rest on averaged weights (an exponential moving
average with BatchNorm statistics recomputed for it), because raw weights at a constant learning rate jump by
percents from one epoch to the next.
"""

import dataclasses
import logging
import math
from collections.abc import Generator, Sequence

import torch
from torch import nn

from odn.checkpoint import Checkpoints
from odn.config import ExpandConfig, TrainConfig, check_target
from odn.data import Split
from odn.durable import durable_epochs
from odn.engine import Progress, finish
from odn.network import PartitionedNetwork
from odn.probing import probe
from odn.processes import training_device
from odn.records import EpochRecord
from odn.schedules import Schedule, anneal, constant_after_warmup, cool_down
from odn.search import ExpandResult, Step, expand_result, next_step, plan_depths
from odn.stage import Stage
from odn.starting import Start, first_depth
from odn.stopping import cap_of, decide, has_begun, settle_target

_log = logging.getLogger("odn")


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
        target_accuracy: short for the ``target_accuracy`` of ``config``, a fraction; without either the target is
            found automatically.
        config: when to grow and when to stop.
        training: how weights are trained.
        seed: of the order of samples and the augmentation.

    Returns:
        The chosen depth and how it was found. Missing the target is a result, not an error.
    """
    config = config or ExpandConfig()
    if target_accuracy is not None:
        check_target(target_accuracy)
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
    start = _started(network, train, valid, depths, config, training, seed, checkpoints)
    first = first_depth(start, depths, config)
    stage: Stage | None = None
    position = checkpoints.position
    if position is not None:
        stage = Stage(network.prefix(position.depth), training, train)
        checkpoints.restore(stage)
    while (step := next_step(records, depths, config, first)) is not None:
        settled = settle_target(records, depths, config)
        if stage is None or position is None or (position.phase, position.depth) != (step.phase, step.depth):
            stage = _stage_for(step, network, training, train, stage, checkpoints)
            checkpoints.save(step.phase, Progress(), stage)
        position = checkpoints.position
        best = max((record.valid_score for record in records if record.depth == step.depth), default=-math.inf)
        for record in durable_epochs(
            stage,
            train,
            valid,
            phase=step.phase,
            schedule=_schedule(records, step, config, training),
            epochs=cap_of(step.phase, config, stage.steps_per_epoch, deepest=step.depth == depths[-1]),
            seed=seed,
            checkpoints=checkpoints,
        ):
            record = dataclasses.replace(record, stop=decide([*records, record], settled))
            if record.valid_score > best:
                best = record.valid_score
                checkpoints.keep(kept_name(step.depth), stage.averaged)
            checkpoints.commit(record, stage)
            yield record
            if record.stop is not None:
                break
    result = expand_result(records, depths, config)
    kept = [record for record in records if record.depth == result.depth]
    if not has_begun(kept):
        _log.warning(
            "depth %d does no better than one answer for every sample would, %.4f; try more data, trained weights "
            "(--pretrained) or another learning rate",
            result.depth,
            kept[0].trivial_score,
        )
    if not (stage and stage.sharded):
        network.to(training_device())  # the blocks that were never trained follow the others
    checkpoints.take(kept_name(result.depth), network.prefix(result.depth))
    return dataclasses.replace(result, start=start)


def _started(
    network: PartitionedNetwork,
    train: Split,
    valid: Split,
    depths: Sequence[int],
    config: ExpandConfig,
    training: TrainConfig,
    seed: int,
    checkpoints: Checkpoints,
) -> Start | None:
    """Probe a pretrained network, or take up what probing it came to; nothing to do for a random start."""
    if network.origin is None:
        return None
    if checkpoints.start is not None:
        checkpoints.take_start(network)
        return checkpoints.start
    images = training.recalibration_images
    start = probe(network, train, valid, depths, config=config, recalibration_images=images, seed=seed)
    checkpoints.begin(network, start)
    if start.probes:
        said = ", ".join(f"{found.depth}: {found.valid_accuracy:.4f}" for found in start.probes)
        first = first_depth(start, depths, config)
        _log.warning("linear probes by depth: %s; growing begins at depth %d", said, first)
    return start


def _schedule(records: Sequence[EpochRecord], step: Step, config: ExpandConfig, training: TrainConfig) -> Schedule:
    if step.phase == "expand":
        return constant_after_warmup(training.warmup_epochs)
    if step.phase == "lookback":
        return anneal(config.lookback_epochs, training.warmup_epochs)
    start = sum((record.phase, record.depth) == ("expand", step.depth) for record in records)
    return cool_down(start, config.cooldown_epochs)


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


def _stage_for(
    step: Step,
    network: PartitionedNetwork,
    training: TrainConfig,
    train: Split,
    stage: Stage | None,
    checkpoints: Checkpoints,
) -> Stage:
    if stage is None:
        return Stage(network.prefix(step.depth), training, train)
    fitted = checkpoints.start is not None and any(p.depth == step.depth for p in checkpoints.start.probes)
    if step.source is not None:
        checkpoints.take(kept_name(step.source), network.prefix(step.source))
        return _attach(network, step.source, step.depth, training, train, fitted=fitted)
    if stage.network.depth == step.depth:
        return stage
    stage.settle()  # training goes on from the averaged weights
    return _attach(network, stage.network.depth, step.depth, training, train, previous=stage, fitted=fitted)


def _attach(
    network: PartitionedNetwork,
    old_depth: int,
    depth: int,
    training: TrainConfig,
    train: Split,
    previous: Stage | None = None,
    fitted: bool = False,
) -> Stage:
    """Move to another depth with what was learnt: blocks are shared, the head and the optimizer's memory follow."""
    # A new block whose residual branch starts at zero and whose shapes agree leaves the function as it was, and so
    # does its head, copied where the widths match. A head that was fitted to its depth by a probe is left as it is.
    old_head, new_head = network.heads[old_depth - 1], network.heads[depth - 1]
    same = not fitted and _shapes(old_head) == _shapes(new_head)
    if same:
        new_head.load_state_dict(old_head.state_dict())
    return Stage(network.prefix(depth), training, train, previous=previous, new_head=not same)
