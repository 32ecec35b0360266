"""Compress a network in width: cut channels out, and let what is left learn from the network as it was."""

import copy
from collections.abc import Generator
from dataclasses import dataclass

from odn.annealing import annealed_epochs
from odn.checkpoint import Checkpoints
from odn.config import CompressConfig, ExpandConfig, TrainConfig, check_target
from odn.data import Split
from odn.distillation import Teacher
from odn.engine import Progress, finish
from odn.evaluation import evaluate
from odn.measure import measure_cost
from odn.narrowing import at_width, narrowed_sizes, next_width, width_to_keep, widths_to_try, with_bound
from odn.network import Prefix
from odn.processes import training_device
from odn.pruning import find_width, prune, require_pruning, sizes_of
from odn.records import EpochRecord, Narrowed
from odn.stage import Stage


@dataclass(frozen=True, kw_only=True)
class CompressResult:
    """What compressing came to.

    Attributes:
        network: the narrower network on the CPU, or a copy of the one that came where the target would be missed.
        width: share of its channels that layers keep; 1 where the target would be missed.
        valid_score_before: of the network as it came, in the metric of the data.
        valid_score: of ``network``.
        parameters: of ``network``.
        macs: multiply-accumulates of ``network`` for one image.
    """

    network: Prefix
    width: float
    valid_score_before: float
    valid_score: float
    parameters: int
    macs: int


def compress(
    network: Prefix,
    train: Split,
    valid: Split,
    *,
    width: float | None = None,
    max_parameters: int | None = None,
    max_macs: int | None = None,
    target_accuracy: float | None = None,
    config: CompressConfig | None = None,
    training: TrainConfig | None = None,
    seed: int = 0,
) -> CompressResult:
    """Narrow a network, and train it with the network as it was for a teacher (Hinton et al., arXiv 1503.02531).

    Exactly one of the four bounds is given.

    Args:
        network: trained; it is left as it is.
        train: the training split.
        valid: the validation split, on which all decisions rest.
        width: share of the channels that every layer keeps, above 0 to 1.
        max_parameters: keep as many channels as fit into so many parameters.
        max_macs: keep as many channels as fit into so many multiply-accumulates per image.
        target_accuracy: narrow step by step for as long as this validation accuracy is held.
        config: everything else about compressing.
        training: how weights are trained.
        seed: of the order of samples and the augmentation.

    Returns:
        The narrower network, what it costs and how it does. Missing the target is a result, not an error.
    """
    auto = None if target_accuracy is None else True
    config = with_bound(
        config or CompressConfig(), width=width, max_parameters=max_parameters, max_macs=max_macs, auto=auto
    )
    goal = ExpandConfig()
    if target_accuracy is not None:
        check_target(target_accuracy)
        goal = ExpandConfig(target_accuracy=target_accuracy)
    return finish(compress_epochs(network, train, valid, config=config, goal=goal, training=training, seed=seed))


def compress_epochs(
    network: Prefix,
    train: Split,
    valid: Split,
    *,
    config: CompressConfig,
    goal: ExpandConfig,
    training: TrainConfig | None = None,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
) -> Generator[EpochRecord, None, CompressResult]:
    """Do what ``compress`` does, one epoch at a time.

    Args:
        network: trained; it is left as it is.
        train: the training split.
        valid: the validation split.
        config: the bound, and how to train.
        goal: the target that ``config.auto`` has to hold, and how it is confirmed.
        training: how weights are trained.
        seed: of the order of samples and the augmentation.
        checkpoints: the memory of the run; compressing goes on where it stands.

    Yields:
        The record of every evaluation.

    Returns:
        The narrower network, what it costs and how it does.
    """
    require_pruning()
    training = training or TrainConfig()
    checkpoints = checkpoints or Checkpoints("compress")
    shape, sizes = train.spec.input_shape, sizes_of(network)
    widths = widths_to_try(sizes.values(), config) if config.auto else [find_width(network, config, shape)]

    def kept(width: float) -> Prefix:
        small = prune(network, narrowed_sizes(sizes, width, config.channel_multiple), shape)
        checkpoints.take(_kept_name(width), small)
        return small

    teacher = Teacher(
        network,
        train.spec.task,
        temperature=config.temperature,
        share=config.soft_share,
        label_smoothing=training.label_smoothing,
    )
    teacher_macs = measure_cost(network, shape).macs
    while (width := next_width(checkpoints.records, widths, config, goal)) is not None:
        # Each step starts from the network of the step before, whose weights have learnt to be few.
        wider = kept(widths[widths.index(width) - 1]) if width != widths[0] else network
        small = prune(wider, narrowed_sizes(sizes, width, config.channel_multiple), shape)
        cost = measure_cost(small, shape)
        stage = Stage(small, training, train, loss=teacher)
        before = evaluate(stage.averaged, valid, together=True).value
        done = at_width(checkpoints.records, width)
        if checkpoints.position is None or checkpoints.position.epoch > config.epochs:
            checkpoints.keep(_kept_name(width), small)
            checkpoints.save("compress", Progress(), stage)
        else:
            checkpoints.restore(stage)
        yield from annealed_epochs(
            stage,
            train,
            valid,
            phase="compress",
            epochs=config.epochs,
            seed=seed,
            checkpoints=checkpoints,
            kept=_kept_name(width),
            before=before,
            done=done,
            last=goal.confirmations,
            narrowed=Narrowed(width=width, parameters=cost.parameters, macs=cost.macs, teacher_macs=teacher_macs),
        )
    chosen = width_to_keep(checkpoints.records, widths, config, goal)
    result = copy.deepcopy(network).cpu() if chosen is None else kept(chosen)
    before, after = (evaluate(module.to(training_device()), valid).value for module in (teacher.network, result))
    cost = measure_cost(result, shape)
    return CompressResult(
        network=result.cpu(),
        width=chosen or 1.0,
        valid_score_before=before,
        valid_score=after,
        parameters=cost.parameters,
        macs=cost.macs,
    )


def _kept_name(width: float) -> str:
    return f"compressed_{width:g}"
