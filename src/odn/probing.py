"""Linear probes: how far the frozen features of every depth of a pretrained network carry, from one pass over the data.

Alain & Bengio, arXiv 1610.01644. The classifiers that are fitted are those that the heads start from.

Shapes: N images, F features, K classes.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odn.config import ExpandConfig
from odn.data import Split, derive_seed, plain_batches
from odn.errors import OdnError
from odn.layers import lay_out
from odn.network import PartitionedNetwork
from odn.processes import first_only, training_device
from odn.starting import Probe, Start
from odn.weights import weights_of

_BATCH = 256
_MOST_BYTES = 1024**3  # of features, all depths together
_PENALTY = 1e-3  # on the square of the weights, for features of unit variance
_MOST_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class _Found:
    probes: tuple[Probe, ...]
    images: int
    heads: dict[int, dict[str, Tensor]]


def probe(
    network: PartitionedNetwork,
    train: Split,
    valid: Split,
    depths: Sequence[int],
    *,
    config: ExpandConfig,
    recalibration_images: int = 2048,
    seed: int = 0,
) -> Start:
    """Fit a linear classifier on the frozen features of every depth whose blocks are trained; heads start from it.

    The network runs in evaluation mode, with the BatchNorm statistics that came with its weights. Heads that have
    norms of their own get statistics for them first, from the images with which averaged weights are recalibrated.

    Args:
        network: with trained weights; the heads of the depths probed are given the classifiers.
        train: the training split; a random subset where it is large.
        valid: the validation split.
        depths: the plan.
        config: how many images to fit on at most; with 0 nothing is probed, nor where the target is no accuracy.
        recalibration_images: for norms within heads.
        seed: of the subset.

    Returns:
        Where the weights come from, the validation accuracy by depth, and what it took.
    """
    origin = network.origin
    assert origin is not None
    chosen = [depth for depth in depths if depth <= origin.blocks]
    if not config.probe_images or not chosen or train.spec.metric != "accuracy":
        return Start(source=origin.source, blocks=origin.blocks)
    began = time.perf_counter()
    found = first_only(_probe)(network, train, valid, chosen, config.probe_images, recalibration_images, seed)
    for depth, weights in found.heads.items():
        network.heads[depth - 1].load_state_dict(weights)
    return Start(
        source=origin.source,
        blocks=origin.blocks,
        probes=found.probes,
        depth=chosen[-1],
        images=found.images,
        seconds=time.perf_counter() - began,
    )


def _probe(
    network: PartitionedNetwork,
    train: Split,
    valid: Split,
    depths: Sequence[int],
    most_images: int,
    recalibration_images: int,
    seed: int,
) -> _Found:
    classes = len(train.spec.classes)
    layers = {depth: _classifier(network.heads[depth - 1], classes, depth) for depth in depths}
    row_bytes = 4 * sum(layer.in_features for layer in layers.values())
    count = max(min(most_images, len(train), _MOST_BYTES // row_bytes), min(2, len(train)))
    seed = derive_seed(seed, "probe")
    network.to(training_device()).eval()
    images = _settle_norms(network, train, depths, recalibration_images, seed)
    with torch.no_grad():
        features, labels_N = _features(network, train, layers, count, seed)
    for depth, layer in layers.items():
        weight_KF, bias_K = fit_linear(features.pop(depth).to(layer.weight.device), labels_N, classes)
        with torch.no_grad():
            layer.weight.copy_(weight_KF)
            layer.bias.copy_(bias_K)
    correct = dict.fromkeys(depths, 0)
    with torch.no_grad():
        for x, labels_B in plain_batches(valid, _BATCH, training_device()):
            for depth, logits_BK in _logits(network, x, depths):
                correct[depth] += int((logits_BK.argmax(1) == labels_B).sum())
    network.cpu().train()
    return _Found(
        probes=tuple(Probe(depth=depth, valid_correct=hits, valid_count=len(valid)) for depth, hits in correct.items()),
        images=images + count + len(valid),
        heads={depth: weights_of(network.heads[depth - 1]) for depth in depths},
    )


def _classifier(head: nn.Module, classes: int, depth: int) -> nn.Linear:
    layers = [
        m for m in head.modules() if isinstance(m, nn.Linear) and m.out_features == classes and m.bias is not None
    ]
    if not layers:
        raise OdnError(
            f"the head of depth {depth} has no linear layer with {classes} outputs and a bias to fit; end it in one, "
            "or set expand.probe_images to 0"
        )
    return layers[-1]


def _logits(network: PartitionedNetwork, x: Tensor, depths: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Pass a batch through the blocks once, and yield the logits of the depths wanted."""
    features = network.stem(lay_out(x))
    for depth, block in enumerate(network.blocks[: max(depths)], 1):
        features = block(features)
        if depth in depths:
            yield depth, network.heads[depth - 1](features)


def _settle_norms(network: PartitionedNetwork, train: Split, depths: Sequence[int], count: int, seed: int) -> int:
    """Give norms within the new heads statistics of the frozen features; returns the images that took."""
    heads = nn.ModuleList(network.heads[depth - 1] for depth in depths)
    norms = [module for module in heads.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    count = min(count, len(train))
    with torch.no_grad():
        for x, _ in plain_batches(train, _BATCH, training_device(), count=count, seed=seed):
            for _ in _logits(network, x, depths):
                pass
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return count


def _features(
    network: PartitionedNetwork, split: Split, layers: dict[int, nn.Linear], count: int, seed: int
) -> tuple[dict[int, Tensor], Tensor]:
    """Return what the heads' classifiers are given, by depth and of shape (N, F), and the labels."""
    rows: dict[int, list[Tensor]] = {depth: [] for depth in layers}
    labels = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, depth=depth: rows[depth].append(given[0].float().cpu()))
        for depth, layer in layers.items()
    ]
    try:
        for x, labels_B in plain_batches(split, _BATCH, training_device(), count=count, seed=seed):
            labels.append(labels_B)
            for _ in _logits(network, x, list(layers)):
                pass
    finally:
        for hook in hooks:
            hook.remove()
    return {depth: torch.cat(rows.pop(depth)) for depth in layers}, torch.cat(labels)


def fit_linear(features_NF: Tensor, labels_N: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regression with L-BFGS (Liu & Nocedal, Math. Program. 45, 1989).

    Args:
        features_NF: float32.
        labels_N: int64, of the classes; one without any image is allowed.
        classes: number of them.

    Returns:
        Weight (K, F) and bias (K,), to be used on the features as they are.
    """
    mean_F = features_NF.mean(0)
    # One scale for all features: a feature that is nearly constant must not get a weight that is nearly infinite.
    centred_NF = features_NF - mean_F
    scale = centred_NF.square().mean().sqrt().clamp_min(1e-12)
    centred_NF /= scale
    weight_KF = torch.zeros(classes, features_NF.shape[1], device=features_NF.device, requires_grad=True)
    bias_K = torch.zeros(classes, device=features_NF.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_KF, bias_K], max_iter=_MOST_STEPS, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(centred_NF, weight_KF, bias_K), labels_N)
        loss = loss + _PENALTY / 2 * weight_KF.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    weight_KF, bias_K = weight_KF.detach() / scale, bias_K.detach()
    return weight_KF, bias_K - weight_KF @ mean_F
