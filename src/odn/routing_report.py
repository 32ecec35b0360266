"""What a report says of dynamic depth: who leaves where on the test split, and what they look like."""

import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odn.data import Split
from odn.errors import OdnError
from odn.evaluation import evaluate_depths
from odn.judging import write_inputs
from odn.manifest import Manifest
from odn.oneshot import KEPT
from odn.processes import training_device
from odn.route_record import ROUTING_FILE, read_routing
from odn.routing_page import Picture
from odn.runtimes import routed
from odn.storage import load_partitioned
from odn.tables import to_table

_log = logging.getLogger("odn")
_BATCH, _PICTURES = 64, 8


def routing_of(run: Path, manifest: Manifest, test: Split | None) -> tuple[dict[str, Any] | None, list[Picture]]:
    """Run the stages of an artifact on the test split.

    Args:
        run: the run directory.
        manifest: of its artifact.
        test: the test split; None leaves what it would tell unmeasured.

    Returns:
        ``routing`` of report.json, or None where there are no stages; and some of those that leave first and last.

    Raises:
        OdnError: when the stages are damaged, or of another route.
    """
    routing = read_routing(run)
    if routing is None or "routed" not in manifest.runtimes:
        return None, []
    if routed.read_stages(run / "artifact").route.exits != routing.exits:
        raise OdnError(
            f"the stages of {run / 'artifact'} are of another route than {run / ROUTING_FILE}; run: odn route {run}"
        )
    figures = {**to_table(routing), "test": None}
    if test is None:
        return figures, []
    with tempfile.TemporaryDirectory() as folder:
        judge = write_inputs(test, Path(folder) / "inputs.npy")
        inputs = np.load(Path(folder) / "inputs.npy")
    try:
        chain = routed.open_chain(run / "artifact", 1)
    except OdnError as error:  # onnxruntime may not be installed here
        _log.warning("the routed network is not measured: %s", error)
        return figures, []
    parts = [chain(inputs[start : start + _BATCH]) for start in range(0, len(inputs), _BATCH)]
    logits, left = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    answers, labels = logits.argmax(1), judge.targets.numpy()
    exits = []
    costs = dict(zip([*(exit_.depth for exit_ in routing.exits), routing.last], routing.costs, strict=True))
    for depth in costs:
        there = left == depth
        accuracy = float((answers[there] == labels[there]).mean()) if there.any() else None
        exits.append({"depth": depth, "count": int(there.sum()), "share": float(there.mean()), "accuracy": accuracy})
    figures["test"] = {
        "accuracy": float((answers == labels).mean()),
        "mean_cost": float(np.mean([costs[int(depth)] for depth in left])),
        "exits": exits,
        "by_depth": _by_depth(run, test, (routing.static_depth, routing.last)),
    }
    return figures, [] if test.spec.texts else _pictures(inputs, left, labels, answers, manifest.labels)


def _by_depth(run: Path, test: Split, depths: Sequence[int]) -> dict[str, float] | None:
    """Judge the static networks that the route is compared with, where their weights are still there."""
    weights = run / "checkpoints" / KEPT
    if not weights.is_dir():
        return None
    scores = evaluate_depths(load_partitioned(weights).to(training_device()), test)
    return {str(depth): float(scores[depth - 1].accuracy or 0.0) for depth in depths}


def _pictures(inputs: Any, left: Any, labels: Any, answers: Any, names: Sequence[str]) -> list[Picture]:
    from PIL import Image

    found = []
    order = np.argsort(left, kind="stable")
    for index in [*order[:_PICTURES], *order[_PICTURES:][-_PICTURES:]]:
        image = inputs[index]
        buffer = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image[:3].transpose(1, 2, 0)).save(buffer, "PNG")
        label, answer = names[labels[index]], names[int(answers[index])]
        found.append(Picture(png=buffer.getvalue(), depth=int(left[index]), label=label, answer=answer))
    return found
