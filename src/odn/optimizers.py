"""Optimizers, and what of them a recipe leaves to the kind of data."""

import dataclasses
import math
from typing import Any, Literal

import torch
from torch import nn

from odn.config import TrainConfig
from odn.network import Network


def settled(config: TrainConfig, *, texts: bool) -> TrainConfig:
    """Fill in what a recipe leaves to the kind of data.

    Convolutional networks learn best by SGD; the encoders of texts do not learn without Adam and clipped gradients.

    Args:
        config: may leave optimizer and clipping open.
        texts: whether texts are learnt from.

    Returns:
        The same with both said.
    """
    optimizer: Literal["sgd", "adamw"] = "adamw" if texts else "sgd"
    return dataclasses.replace(
        config,
        optimizer=optimizer if config.optimizer == "auto" else config.optimizer,
        max_gradient_norm=float(texts) if config.max_gradient_norm < 0 else config.max_gradient_norm,
    )


def batch_size_for(config: TrainConfig, train_count: int) -> int:
    """Choose the number of images per step.

    Args:
        config: may name it.
        train_count: images in the training split.

    Returns:
        The batch size asked for, or a 64th of the images, rounded down to a power of two between 16 and 256.
    """
    if config.batch_size:
        return config.batch_size
    return min(max(1 << (max(train_count // 64, 1).bit_length() - 1), 16), 256)


def make_optimizer(
    network: Network, config: TrainConfig, batch_size: int, *, fused: bool = True
) -> torch.optim.Optimizer:
    """Make the optimizer of a network's weights; each group remembers its rate as ``initial_lr``.

    Args:
        network: holding exactly the parameters to train; blocks that came trained learn at their own rate.
        config: as from ``settled``.
        batch_size: images or texts per step.
        fused: take a step in one pass over the weights; impossible where processes hold a part of each.

    Returns:
        The optimizer.
    """
    assert config.optimizer != "auto"
    sgd = config.optimizer == "sgd"
    # Linear scaling for SGD (Goyal et al., arXiv 1706.02677), but not below 128 images, where it starves small datasets
    # (docs/log.md, 2026-11-28); square root for Adam (Malladi et al., arXiv 2205.10287).
    batches = batch_size / 128
    rate = config.learning_rate or (0.1 * max(batches, 1.0) if sgd else 0.002 * math.sqrt(batches))
    decay = config.weight_decay if config.weight_decay >= 0 else (5e-4 if sgd else 0.05)
    parts = nn.ModuleList([network.stem, *network.blocks[: network.pretrained]] if network.pretrained else [])
    trained = set(map(id, parts.parameters()))
    groups: list[dict[str, Any]] = []
    slower = config.pretrained_rate or min(rate, 0.05 if sgd else 0.0005)
    for came_trained, own_rate in ((False, rate), (True, slower)):
        chosen = [p for p in network.parameters() if (id(p) in trained) == came_trained]
        weights, others = [p for p in chosen if p.ndim >= 2], [p for p in chosen if p.ndim < 2]
        for parameters, own_decay in ((weights, decay), (others, 0.0)):
            if parameters:
                groups.append({"params": parameters, "weight_decay": own_decay, "initial_lr": own_rate})
    if sgd:
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=rate, fused=fused)
