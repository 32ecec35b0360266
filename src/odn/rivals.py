"""Networks to compare with: the full depth, and small ones that a person would pick without any search."""

import torch
from torch import nn

from odn.errors import UsageError
from odn.network import NetworkSpec, build_network, rebuild

FULL = "full"
STOCK = "cifar_resnet20"
RIVALS = (FULL, "resnet18", STOCK, "mobilenet_v3_small")


def rivals_of(spec: NetworkSpec) -> tuple[str, ...]:
    """Name the networks to compare with.

    Args:
        spec: of the network.

    Returns:
        Some of ``RIVALS``; for a network that reads texts only its own full depth.
    """
    return RIVALS if len(spec.input_shape) == 3 else (FULL,)


def build_rival(name: str, spec: NetworkSpec, *, seed: int = 0) -> nn.Module:
    """Build a network for the same inputs and classes, with random weights.

    Args:
        name: one of ``RIVALS``; ``full`` is the backbone that the network was taken from, uncut.
        spec: of the network to compare with.
        seed: of the weights; the caller's random state is left alone.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        UsageError: when there is none of that name.
    """
    if name not in RIVALS:
        raise UsageError(f"unknown network '{name}'; allowed: {', '.join(RIVALS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "mobilenet_v3_small":
            return _mobilenet(spec.input_shape[0], spec.classes).eval()
        network = rebuild(spec) if name == FULL else build_network(name, spec.input_shape, spec.classes, task=spec.task)
        return network.prefix(network.max_depth).eval()


def _mobilenet(channels: int, classes: int) -> nn.Module:
    from torchvision.models import mobilenet_v3_small

    network = mobilenet_v3_small(weights=None, num_classes=classes)
    assert isinstance(network, nn.Module)
    stem = network.get_submodule("features.0")
    first = stem.get_submodule("0")
    assert isinstance(stem, nn.Sequential)
    assert isinstance(first, nn.Conv2d)
    if channels != first.in_channels:
        stem[0] = nn.Conv2d(channels, first.out_channels, 3, stride=2, padding=1, bias=False)
    return network
