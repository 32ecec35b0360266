"""What a run cost: multiply-accumulates, epochs and seconds, beside a training of the full depth."""

from collections.abc import Sequence
from typing import Any

from odn.config import ReportConfig
from odn.measure import macs_by_depth, macs_together, train_macs
from odn.network import NetworkSpec, rebuild
from odn.records import EpochRecord, Verb
from odn.starting import Start


def macs_of(spec: NetworkSpec) -> list[int]:
    """Count the multiply-accumulates of every depth of a backbone.

    Args:
        spec: of any of them.

    Returns:
        MACs of one input by depth, from depth 1.
    """
    return macs_by_depth(rebuild(spec, "meta").prefixes(), spec.input_shape, spec.input_dtype)


def start_row(start: Start, records: Sequence[EpochRecord]) -> dict[str, Any]:
    """Say what a pretrained network brought along, and how probing it went.

    Args:
        start: what is known of it.
        records: of the run.

    Returns:
        ``start`` of report.json.
    """
    return {
        "source": start.source,
        "blocks": start.blocks,
        "probes": [{"depth": probe.depth, "valid_accuracy": probe.valid_accuracy} for probe in start.probes],
        "first_depth": next((record.depth for record in records if record.verb == "expand"), None),
        "images": start.images,
        "seconds": round(start.seconds, 3),
    }


def cost_of(
    spec: NetworkSpec, records: Sequence[EpochRecord], start: Start | None, config: ReportConfig
) -> dict[str, Any]:
    """Count 3 forward passes' MACs per sample trained on, 1 per sample evaluated and 1 per sample probed.

    Args:
        spec: of the network.
        records: of the run.
        start: what a pretrained network brought along.
        config: to how many epochs of the full depth the cost is compared.

    Returns:
        ``cost`` of report.json.
    """
    if not records:
        keys = (
            "train_macs",
            "full_depth_train_macs",
            "reference_epochs",
            "seconds",
            "epochs_by_depth",
            "oneshot_epochs",
            "finetune_epochs",
            "compress_epochs",
        )
        return dict.fromkeys(keys)
    macs = macs_of(spec)
    together = macs_together(records, rebuild(spec, "meta").trunk, spec.input_shape, spec.input_dtype)
    epochs_by_depth: dict[str, int] = {}
    for record in records:
        if record.verb == "expand":
            epochs_by_depth[str(record.depth)] = epochs_by_depth.get(str(record.depth), 0) + record.epochs
    some = next((record for record in records if record.verb in ("expand", "oneshot")), records[0])
    # The full depth would be evaluated as seldom as anything of this run was.
    evaluated = some.evaluated_samples / max(record.epochs for record in records)
    full_epoch_samples = 3 * some.train_samples / some.epochs + evaluated
    return {
        "train_macs": train_macs(records, macs, together) + (start.macs(macs) if start else 0),
        "full_depth_train_macs": round(macs[-1] * full_epoch_samples * config.reference_epochs),
        "reference_epochs": config.reference_epochs,
        "seconds": round(sum(record.seconds for record in records) + (start.seconds if start else 0), 3),
        "epochs_by_depth": epochs_by_depth,
        "oneshot_epochs": _epochs(records, "oneshot"),
        "finetune_epochs": _epochs(records, "finetune"),
        "compress_epochs": _epochs(records, "compress"),
    }


def _epochs(records: Sequence[EpochRecord], verb: Verb) -> int:
    return sum(record.epochs for record in records if record.verb == verb)
