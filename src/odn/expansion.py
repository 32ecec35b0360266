"""Progressive depth expansion: train shallow, attach blocks, and keep the shallowest depth that holds the target.

The method of Optimally Deep Networks (arXiv 2510.10764). Decisions rest on averaged weights (an exponential moving
average with BatchNorm statistics recomputed for it), because raw weights at a constant learning rate jump by
percents from one epoch to the next. Depths that are compared have a head each and learn together.
"""

import dataclasses
import logging
import math
from collections.abc import Generator, Iterator, Sequence

from odn.checkpoint import Checkpoints, Position
from odn.config import REFINING_RATE, ExpandConfig, OneShotConfig, TrainConfig, check_confidence, check_target
from odn.data import Split
from odn.durable import durable_epochs
from odn.engine import Progress, finish
from odn.network import PartitionedNetwork
from odn.outcome import ExpandResult, expand_result, kept_by_depth, kept_name
from odn.probing import probe
from odn.processes import training_device
from odn.records import ENDING_PHASES, EpochRecord
from odn.schedules import Schedule, anneal, constant_after_warmup
from odn.search import Step, next_step, plan_depths
from odn.stage import Stage
from odn.starting import Start, first_depth
from odn.stopping import cap_of, decide, has_begun
from odn.supervision import MOST_HEARD, AllDepthsLoss

_FRESH = "fresh"  # the weights that expansion began with, under this name
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
        The record of every evaluation, with the reason to stop in the last one of each phase of each depth.

    Returns:
        The chosen depth and how it was found.

    Raises:
        UsageError: for a confidence without a target.
        OdnError: when the loss stops being finite.
    """
    check_confidence(config.confidence, config.target_accuracy)
    training = training or TrainConfig()
    checkpoints = checkpoints or Checkpoints("expand")
    records = checkpoints.records
    depths = plan_depths(config, network.max_depth)
    start = _started(network, train, valid, depths, config, training, seed, checkpoints)
    first = first_depth(start, depths, config)
    # With a target, networks of trained weights go on from what they have grown to.
    anew = start is None or not config.target_accuracy
    if checkpoints.position is None or not checkpoints.holds(_FRESH):
        checkpoints.keep(_FRESH, network)
    stage: Stage | None = None
    position = checkpoints.position
    if position is not None:
        stage = _stage(network, _step_at(position, records, depths, config, first), training, train)
        checkpoints.restore(stage)
    while (step := next_step(records, depths, config, first)) is not None:
        if stage is None or position is None or (position.phase, position.depth) != (step.phase, step.depth):
            stage = _stage_for(step, network, training, train, stage, checkpoints, anew=anew)
            checkpoints.save(step.phase, Progress(), stage)
        position = checkpoints.position
        yield from _step_epochs(
            step,
            stage,
            train,
            valid,
            depths=depths,
            config=config,
            training=training,
            seed=seed,
            checkpoints=checkpoints,
        )
    result = expand_result(records, depths, config)
    if not (stage and stage.sharded):
        network.to(training_device())  # the blocks that were never trained follow the others
    _take_kept(network, result.depth, checkpoints)
    return dataclasses.replace(result, start=start)


def _step_epochs(
    step: Step,
    stage: Stage,
    train: Split,
    valid: Split,
    *,
    depths: Sequence[int],
    config: ExpandConfig,
    training: TrainConfig,
    seed: int,
    checkpoints: Checkpoints,
) -> Iterator[EpochRecord]:
    """Do one step of the search, from where the checkpoints stand to the epoch that ends it."""
    records = checkpoints.records
    best: dict[int, float] = {}
    for record in records:
        for one in record.by_depth() if record.phase in ENDING_PHASES else ():
            best[one.depth] = max(one.valid_score, best.get(one.depth, -math.inf))
    # What is under way, as of another version, keeps its length; without a record it may be past what is due today.
    today = max(cap_of(step.phase, config, stage.steps_per_epoch, len(train)), checkpoints.progress.epoch)
    cap = records[-1].cap if records and records[-1].stop is None else today
    for record in durable_epochs(
        stage,
        train,
        valid,
        phase=step.phase,
        schedule=_schedule(step, cap, training),
        epochs=cap,
        seed=seed,
        checkpoints=checkpoints,
        # Growing ends early where it has come to nothing more for ``patience`` epochs, what is annealed never.
        last=config.confirmations if step.phase in ENDING_PHASES or cap <= config.patience else None,
    ):
        if record.scores:
            record = dataclasses.replace(record, valid_score=record.scores[-1], valid_error=record.errors[-1])
        record = dataclasses.replace(record, stop=decide([*records, record], config, depths))
        if step.phase in ENDING_PHASES:
            assert isinstance(stage.averaged, PartitionedNetwork)
            # Of every depth the best weights are kept, of equals the later ones, which are annealed further.
            for one in record.by_depth():
                if one.valid_score >= best.get(one.depth, -math.inf):
                    best[one.depth] = one.valid_score
                    checkpoints.keep(kept_name("settle", one.depth), stage.averaged.prefix(one.depth))
        elif record.stop is not None:
            checkpoints.keep(kept_name(step.phase, step.depth), stage.averaged)
        checkpoints.commit(record, stage)
        yield record
        if record.stop is not None:
            break


def _take_kept(network: PartitionedNetwork, depth: int, checkpoints: Checkpoints) -> None:
    """Put the best weights that were kept for a depth in place, and warn where they have learnt nothing."""
    own, kept = kept_by_depth(checkpoints.records)[depth]
    if not has_begun([own]):
        _log.warning(
            "depth %d does no better than one answer for every sample would, %.4f; try more data, trained weights "
            "(--pretrained) or another learning rate",
            depth,
            own.trivial_score,
        )
    place = network.prefix(kept.depth) if kept.phase in ENDING_PHASES else network.trunk(kept.depth)
    checkpoints.take(kept_name(kept.phase, kept.depth), place)


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


def _schedule(step: Step, cap: int, training: TrainConfig) -> Schedule:
    if step.phase == "expand":
        return constant_after_warmup(training.warmup_epochs)
    return anneal(cap, training.warmup_epochs, REFINING_RATE if step.phase == "refine" else 1.0)


def _step_at(
    position: Position, records: Sequence[EpochRecord], depths: Sequence[int], config: ExpandConfig, first: int
) -> Step:
    """Say what the state belongs to that the checkpoints hold: the step that comes next, or the one that ended."""
    step = next_step(records, depths, config, first)
    if step is not None and (step.phase, step.depth) == (position.phase, position.depth):
        return step
    return Step(phase=position.phase, depth=position.depth, lowest=records[-1].lowest if records else 1)


def _stage(
    network: PartitionedNetwork, step: Step, training: TrainConfig, train: Split, previous: Stage | None = None
) -> Stage:
    """Set up the training of a step's depths."""
    trunk = network.trunk(step.depth, step.lowest)
    others = step.depth - step.lowest
    share = 1.0
    if step.phase == "settle" and others:  # adding them all up costs each depth up to a point of what it gives alone
        share = 0.0 if step.looks_back else 1 / min(others, MOST_HEARD)
    # The heads learn from the labels alone: where the deepest one teaches, the others do better than they would alone.
    heads = OneShotConfig(soft_share=0.0, other_share=share)
    loss = AllDepthsLoss(trunk, train.spec.task, heads, label_smoothing=training.label_smoothing)
    return Stage(trunk, training, train, previous=previous, loss=loss)


def _stage_for(
    step: Step,
    network: PartitionedNetwork,
    training: TrainConfig,
    train: Split,
    stage: Stage | None,
    checkpoints: Checkpoints,
    *,
    anew: bool,
) -> Stage:
    if step.phase == "refine":
        checkpoints.take(kept_name(step.phase, step.depth), network.prefix(step.depth))
        return _stage(network, step, training, train)
    grown = [record.depth for record in checkpoints.records if record.phase == "expand"]
    if not grown or (step.phase == "settle" and anew):
        checkpoints.take(_FRESH, network)
        return _stage(network, step, training, train)
    previous = None
    if any((record.phase, record.depth) == ("settle", grown[-1]) for record in checkpoints.records):
        # What was trained to its end is left aside, with blocks that only that has trained.
        checkpoints.take(_FRESH, network)
        checkpoints.take(kept_name("expand", grown[-1]), network.trunk(grown[-1]))
    else:
        assert stage is not None
        stage.settle()  # training goes on from the averaged weights
        previous = stage if step.phase == "expand" else None
    probed = {probe.depth for probe in checkpoints.start.probes} if checkpoints.start else set()
    _copy_head(network, grown[-1], [depth for depth in range(grown[-1] + 1, step.depth + 1) if depth not in probed])
    return _stage(network, step, training, train, previous)


def _copy_head(network: PartitionedNetwork, old_depth: int, depths: Sequence[int]) -> None:
    """Let new heads begin as that of the deepest depth so far, where shapes agree.

    A new block whose residual branch starts at zero and whose shapes agree leaves the function as it was, and so does
    its head then. Heads that were fitted to their depth by a probe are left out by the caller.
    """
    state = network.heads[old_depth - 1].state_dict()
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for depth in depths:
        head = network.heads[depth - 1]
        if shapes == {name: tensor.shape for name, tensor in head.state_dict().items()}:
            head.load_state_dict(state)
