"""The command ``odn specialize``. No torch here before it runs."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odn.command import DONE, FAILED, TARGET_MISSED, Switch, print_json

if TYPE_CHECKING:
    from odn.choosing import Judged
    from odn.specializing import Specialized


def specialize_command(
    run: Path,
    /,
    *,
    target: float | None = None,
    within: float | None = None,
    depth: int | None = None,
    max_parameters: int | None = None,
    max_macs: int | None = None,
    max_bytes: int | None = None,
    max_latency_ms: float | None = None,
    device: Path | None = None,
    finetune_epochs: int = 0,
    compress: str | None = None,
    to: str | None = None,
    out: Path | None = None,
    force: Switch = False,
    json: Switch = False,
) -> int:
    """Take the network for one target and device out of a finished run; nothing is trained unless asked for.

    Args:
        run: the run directory, best of odn run --mode one-shot.
        target: validation score to hold [default: the run's, where nothing else is asked for].
        within: how far below the best score of all depths it may stay, e.g. 0.005.
        depth: that very one.
        max_parameters: most weights.
        max_macs: most multiply-accumulates of one input.
        max_bytes: most bytes of the weights on disk, in fp32.
        max_latency_ms: most milliseconds of one input on the device.
        device: its table of latencies, as odn profile --latency writes it.
        finetune_epochs: epochs over which the network is annealed on its own.
        compress: narrow it in the end, as for odn run.
        to: further runtimes that the artifact gets files for, e.g. onnx,int8 [default: that of the device table].
        out: directory that receives everything, a run of its own [default: RUN/specialized/depth_00D].
        force: replace what stands there.
        json: print every depth and what became of it as JSON.

    Returns:
        The exit code: 1 when a file was not kept, 3 when the target is not held in the end.
    """
    from odn.choosing import Constraints
    from odn.config import ExportConfig, check_target
    from odn.devices import read_device_table
    from odn.display import Display, print_rows
    from odn.flags import compression, listed
    from odn.recipe import read_run_config
    from odn.specializing import specialize

    if target is not None:
        check_target(target)
    bound, quantised = compression(compress)
    config = read_run_config(run / "config.toml")
    # How to compress is the run's own setting, how far is asked anew.
    unasked = {name: type(getattr(config.compress, name))() for name in config.compress.asked}
    constraints = Constraints(
        target=target,
        within=within,
        depth=depth,
        max_parameters=max_parameters,
        max_macs=max_macs,
        max_bytes=max_bytes,
        max_latency_ms=max_latency_ms,
    )
    result = specialize(
        run,
        constraints,
        device=read_device_table(device) if device else None,
        out=out,
        finetune_epochs=finetune_epochs,
        compress=dataclasses.replace(config.compress, **{**unasked, **bound}),
        export=ExportConfig(to=runtimes) if (runtimes := (*listed(to), *quantised)) else None,
        force=force,
        watch=Display(config).watch,
    )
    if json:
        depths = [
            dataclasses.asdict(row.candidate) | {"verdict": row.verdict, "why": row.reason} for row in result.rows
        ]
        outcome = {name: getattr(result, name) for name in ("depth", "valid_score", "target", "reached", "seconds")}
        print_json({**outcome, "directory": str(result.directory), "depths": depths})
    else:
        print_rows(f"{run}: depth {result.depth} chosen", [_brief(row) for row in result.rows])
        print(
            f"valid {result.valid_score:.4f}, {result.seconds:.1f} s; artifact: {result.directory / 'artifact'}; next: "
            f"odn report {result.directory}"
        )
    return _outcome(result)


def _outcome(result: "Specialized") -> int:
    """Say what did not become of it, and choose the exit code."""
    refused = [export for export in result.exports if not export.kept]
    for export in refused:
        print(f"odn: {export.runtime}: not kept: {export.reason}", file=sys.stderr)
    if not result.reached:
        print(f"odn: the target {result.target:.4f} is not held: {result.valid_score:.4f}", file=sys.stderr)
    return FAILED if refused else DONE if result.reached else TARGET_MISSED


def _brief(row: "Judged") -> dict[str, Any]:
    candidate = row.candidate
    latency = {} if candidate.latency_ms is None else {"ms": candidate.latency_ms}
    return {
        "depth": candidate.depth,
        "valid": candidate.valid_score,
        "parameters": candidate.parameters,
        "MACs": candidate.macs,
        "bytes": candidate.file_bytes,
        **latency,
        "verdict": row.verdict,
        "why": row.reason,
    }
