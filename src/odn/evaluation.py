"""How a network does on a split, and BatchNorm statistics for averaged weights.

Shapes: B batch, C channels, H height, W width.
"""

import math

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from odn.data import WHOLE, Split, derive_seed, plain_batches
from odn.layers import lay_out
from odn.metrics import Score, Tally
from odn.network import PartitionedNetwork
from odn.processes import share, total

_EVALUATION_BATCH = 256


def evaluate(network: nn.Module, split: Split, device: torch.device | None = None, *, together: bool = False) -> Score:
    """Judge a network in the metric of a split's task, in fp32 and evaluation mode.

    Args:
        network: gives outputs of shape (B, K), for segmentation (B, K, H, W); its mode is restored.
        split: the samples.
        device: where to evaluate; None means where the network's weights are.
        together: several processes look at a part each; all have to call this.

    Returns:
        Its score.
    """
    return _evaluate(network, split, 1, device, together=together)[0]


def evaluate_depths(
    network: PartitionedNetwork, split: Split, device: torch.device | None = None, *, together: bool = False
) -> list[Score]:
    """Judge every depth of a network in one pass over a split, each as ``evaluate`` would.

    Args:
        network: its mode is restored.
        split: the samples.
        device: where to evaluate; None means where the network's weights are.
        together: several processes look at a part each; all have to call this.

    Returns:
        A score per depth that has a head, ascending.
    """
    return _evaluate(network, split, len(network.heads), device, together=together)


def _evaluate(
    network: nn.Module, split: Split, heads: int, device: torch.device | None, *, together: bool
) -> list[Score]:
    part = share() if together else WHOLE
    device = device or next(network.parameters()).device
    training = network.training
    network.eval()
    tallies = [Tally(split.spec.task, len(split.spec.classes), len(split), device) for _ in range(heads)]
    mine = torch.arange(len(split), device=device)[part.rank :: part.world].split(_EVALUATION_BATCH)
    with torch.no_grad():
        count = 0
        for x_BCHW, labels_B in plain_batches(split, _EVALUATION_BATCH, device, share=part):
            outputs = network(lay_out(x_BCHW))
            for tally, logits in zip(tallies, outputs if isinstance(outputs, list) else [outputs], strict=True):
                tally.add(logits, labels_B, mine[count])
            count += 1
        # Parts of a sharded network come from the others, who may have one batch more.
        most = math.ceil(math.ceil(len(split) / part.world) / _EVALUATION_BATCH)
        for _ in range(most - count):
            nothing = torch.zeros(1, *split.spec.input_shape, dtype=torch.uint8, device=device)
            network(split.spec.preprocessing.prepare(nothing))
    network.train(training)
    if together:
        for tally in tallies:
            tally.sums = total(tally.sums)
    return [tally.score(split.spec.metric) for tally in tallies]


def recalibrate(network: nn.Module, train: Split, count: int, *, seed: int, together: bool = False) -> int:
    """Recompute BatchNorm statistics for the weights as they are, from a fixed subset of training images.

    Args:
        network: its BatchNorm layers are reset and filled; a network without any is left alone.
        train: the training split.
        count: images to use.
        seed: of the subset.
        together: several processes look at a part each; all have to call this.

    Returns:
        Images that were passed forward, whole batches.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return 0
    part = share() if together else WHOLE
    device = next(network.parameters()).device
    count = min(count, len(train))
    batch_size = max(min(_EVALUATION_BATCH, count // part.world), 1)
    count -= count % (batch_size * part.world)  # every batch weighs the same, and every process has as many
    with torch.random.fork_rng():
        seed_torch(device, derive_seed(seed, "recalibrate"))
        batches = plain_batches(train, batch_size, device, count=count, seed=seed, share=part)
        update_bn((lay_out(x) for x, _ in batches), network)
    if part.world > 1:
        for statistics in (buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)):
            if statistics is not None:
                statistics.copy_(total(statistics) / part.world)
    return count


def seed_torch(device: torch.device, seed: int) -> None:
    """Seed what draws random numbers on a device.

    Args:
        device: of training.
        seed: any integer.
    """
    if device.type == "cpu":
        # torch.manual_seed formats a stack for every accelerator that is not in use, 0.07 ms each time.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
