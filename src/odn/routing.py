"""Dynamic depth: a network whose easy inputs leave at early heads, calibrated on data of its own.

Shapes: B batch, N samples, K classes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from odn.calibration import Calibrated, calibrate
from odn.data import MOST_SHARED, Split, plain_batches, shared_samples
from odn.devices import DeviceTable, check_device
from odn.errors import UsageError
from odn.gates import Costs, Exit, Labels, Policy, Route, follow
from odn.measure import measure_cost
from odn.network import PartitionedNetwork
from odn.processes import training_device
from odn.stopwatch import time_in_turn

_BATCH = 256


@final
class Hop(nn.Module):
    """The part of a network from one exit to the next.

    Args:
        before: modules in order, from what the exit before gives.
        head: of the exit it leads to.
    """

    def __init__(self, before: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.before, self.head = nn.Sequential(*before), head

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features at the exit, and the logits of its head."""
        features = self.before(features)
        return features, self.head(features)


@final
class RoutedNetwork(nn.Module):
    """A network that stops computing an input at the first exit that is sure of it.

    Args:
        network: whose weights it shares.
        route: exits, thresholds and policy.
    """

    def __init__(self, network: PartitionedNetwork, route: Route) -> None:
        super().__init__()
        self.route = route
        start, blocks = 0, list(network.blocks)
        hops = []
        for depth in route.depths:
            first = [network.stem] if start == 0 else []
            hops.append(Hop([*first, *blocks[start:depth]], network.heads[depth - 1]))
            start = depth
        self.hops = nn.ModuleList(hops)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of shape (B, K) and the depths at which inputs left, shape (B,), for a normalised batch."""
        logits, depths = follow(self.route, [partial(_run, hop) for hop in self.hops], x)
        return torch.from_numpy(logits), torch.from_numpy(depths)


def _run(hop: nn.Module, features: Tensor) -> tuple[Any, Any]:
    features, logits = hop(features)
    return features, logits.float().cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class Routed:
    """A routed network and what is known of it from calibration.

    Attributes:
        network: that stops early.
        found: the route, with accuracy and cost on the half of the calibration data that checked it.
        static_depth: the depth to compare with: the shallowest that the same drop allows on that half; with a mean
            cost the shallowest that is as accurate as the route, or the most accurate of all where none is.
        static_accuracy: of it.
        static_cost: of it.
        costs: of every depth.
        unit: of all costs: ``macs`` or ``ms``.
        worthwhile: whether the route costs less than that static network, or no static one is as accurate.
    """

    network: RoutedNetwork
    found: Calibrated
    static_depth: int
    static_accuracy: float
    static_cost: float
    costs: Costs
    unit: str
    worthwhile: bool


def route(
    network: PartitionedNetwork,
    calibration: Split,
    *,
    train: Split | None = None,
    max_drop: float | None = None,
    mean_cost: float | None = None,
    policy: Policy | None = None,
    device: DeviceTable | None = None,
) -> Routed:
    """Let easy inputs leave a network early (BranchyNet: Teerapittayanon et al., arXiv 1709.01686).

    Args:
        network: with all heads trained.
        calibration: labelled samples that nothing was trained on and nothing will be reported on.
        train: the training split, to see that they are not in it.
        max_drop: accuracy that may be lost against the deepest head, a fraction.
        mean_cost: instead of it, the most that an input may take in the mean: multiply-accumulates, or with a device
            milliseconds.
        policy: what makes a head sure; None tries all.
        device: latencies to count in instead of multiply-accumulates.

    Returns:
        The routed network, and the static one to compare with.

    Raises:
        UsageError: when the task is not one label per image, or judged by another metric than accuracy, when there
            are too few images, or they were trained on.
        OdnError: when no route is as cheap as that.
    """
    if calibration.spec.texts:
        raise UsageError("exits are for images; a network that reads texts stays static: odn specialize RUN")
    if calibration.spec.task != "classification":
        raise UsageError(f"exits are for classification, the task is {calibration.spec.task}")
    if calibration.spec.metric != "accuracy":
        raise UsageError(
            f"exits are calibrated in accuracy, the metric is {calibration.spec.metric}, which they might spoil; "
            "take a static network: odn specialize RUN"
        )
    if train is not None and (shared := shared_samples(calibration, train)) > MOST_SHARED * len(calibration):
        raise UsageError(
            f"{shared} of the {len(calibration)} calibration samples are in the training split, where heads are surer "
            "than they should be; calibrate on other data"
        )
    costs = costs_of(network, calibration.spec.input_shape, device)
    logits, labels = logits_of(network, calibration)
    found = calibrate(logits, labels, costs, max_drop=max_drop, mean_cost=mean_cost, policy=policy)
    check = {depth: values[1::2] for depth, values in logits.items()}
    accuracies = {depth: float((values.argmax(1) == labels[1::2]).mean()) for depth, values in check.items()}
    wanted = found.accuracy if max_drop is None else found.full_accuracy - max_drop
    static = next((d for d in sorted(check) if accuracies[d] >= wanted), max(accuracies, key=accuracies.__getitem__))
    static_cost = costs.of([static])[static]
    return Routed(
        network=RoutedNetwork(network, found.route).eval(),
        found=found,
        static_depth=static,
        static_accuracy=accuracies[static],
        static_cost=static_cost,
        costs=costs,
        unit=costs.unit,
        worthwhile=found.mean_cost < static_cost or accuracies[static] < wanted,
    )


def logits_of(network: PartitionedNetwork, split: Split) -> tuple[dict[int, Any], Labels]:
    """Compute the logits of every depth.

    Args:
        network: moves to the training device; its mode is restored.
        split: N samples with one label each.

    Returns:
        Logits by depth, each of shape (N, K) in double precision, and the labels, shape (N,).
    """
    device, training = training_device(), network.training
    network.to(device).eval()
    parts: list[list[Any]] = []
    labels: list[Tensor] = []
    with torch.inference_mode():
        for x, y in plain_batches(split, _BATCH, device):
            parts.append([values.float().cpu().numpy() for values in network(x)])
            labels.append(y.cpu())
    network.train(training)
    logits = {
        depth: np.concatenate(values).astype(np.float64) for depth, values in enumerate(zip(*parts, strict=True), 1)
    }
    return logits, torch.cat(labels).numpy()


def costs_of(network: PartitionedNetwork, input_shape: tuple[int, ...], device: DeviceTable | None = None) -> Costs:
    """Say what each depth of a network takes.

    Args:
        network: with all heads.
        input_shape: of one input.
        device: latencies to count in.

    Returns:
        Multiply-accumulates, or with a device milliseconds.
    """
    spec = network.spec
    if device is not None:
        assert spec is not None
        check_device(device, spec, network.max_depth)
        heads = tuple(max(ms - device.call_ms, 0.0) for ms in device.heads_ms)
        whole = [device.predict_ms(depth) for depth in range(1, network.max_depth + 1)]
        trunk = tuple(ms - head for ms, head in zip(whole, heads, strict=True))
        return Costs(trunk=trunk, heads=heads, call=device.call_ms, gate=_gate_ms(spec.classes), unit="ms")
    dtype = spec.input_dtype if spec is not None else torch.float32
    headless = [nn.Sequential(network.stem, *list(network.blocks)[:depth]) for depth in range(1, network.max_depth + 1)]
    trunk_macs = [measure_cost(module, input_shape, dtype).macs for module in headless]
    whole_macs = [measure_cost(prefix, input_shape, dtype).macs for prefix in network.prefixes()]
    return Costs(
        trunk=tuple(map(float, trunk_macs)),
        heads=tuple(float(a - b) for a, b in zip(whole_macs, trunk_macs, strict=True)),
    )


def _gate_ms(classes: int) -> float:
    """Time what a single input costs at an exit besides the network, on this machine."""
    logits = np.zeros((1, classes), np.float32)
    exits = (Exit(depth=1, temperature=1.0, threshold=2.0),)
    gated, plain = (Route(policy="max-probability", exits=found, last=2) for found in (exits, ()))
    hops = [lambda features: (features, logits)] * 2
    calls = {
        "gated": lambda: follow(gated, hops, logits),
        "plain": lambda: follow(plain, hops[:1], logits),
    }
    times = time_in_turn(calls, 0.02)
    return max(times["gated"] - times["plain"], 0.0)
