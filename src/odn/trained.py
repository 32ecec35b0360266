"""What the training of a run's backbone left behind: the depth it chose, and the weights of every depth."""

from pathlib import Path

from odn.curve import curve_of, curve_result
from odn.errors import OdnError, UsageError
from odn.extraction import extract
from odn.network import Prefix
from odn.oneshot import KEPT
from odn.outcome import ExpandResult, expand_result, kept_by_depth, kept_name
from odn.recipe import RunConfig
from odn.records import ENDING_PHASES, EpochRecord, read_history
from odn.rundata import read_data_spec
from odn.rundir import planned_depths
from odn.search import next_step
from odn.starting import first_depth, read_start
from odn.storage import load_network, load_partitioned


def outcome_of(path: Path, config: RunConfig) -> ExpandResult:
    """Read which depth the training of a run chose.

    Args:
        path: the run directory.
        config: its settings.

    Returns:
        The depth and how it was found.

    Raises:
        OdnError: when training has not finished.
    """
    records = read_history(path / "history.jsonl")
    if config.mode == "one-shot":
        records = [record for record in records if record.verb == "oneshot"]
        if not records or records[-1].epoch < records[-1].cap:
            raise OdnError(f"training of {path} has not finished; continue it with: odn run --run {path} --resume")
        return curve_result(records, config.expand)
    records = [record for record in records if record.verb == "expand"]
    depths = planned_depths(config, read_data_spec(path))
    first = first_depth(read_start(path), depths, config.expand)
    if next_step(records, depths, config.expand, first) is not None:
        raise OdnError(f"expansion of {path} has not finished; continue it with: odn run --run {path} --resume")
    return expand_result(records, depths, config.expand)


def require_backbone(path: Path) -> None:
    """Refuse a run whose backbone lies elsewhere.

    Args:
        path: the run directory.

    Raises:
        OdnError: when it has no checkpoints.
    """
    if not (path / "checkpoints").is_dir():
        raise OdnError(
            f"{path} has no checkpoints of its backbone: it was specialised from another run, or they were removed; "
            "use the run that was trained"
        )


def load_depth(path: Path, depth: int) -> Prefix:
    """Load the network of one depth as training left it.

    Args:
        path: the run directory.
        depth: number of blocks.

    Returns:
        The network, on the CPU.

    Raises:
        UsageError: when that depth was not trained.
    """
    require_backbone(path)
    records = read_history(path / "history.jsonl")
    tried = [record.depth for record in curve_of(records)]
    if depth not in tried:
        raise UsageError(f"depth {depth} was not trained; allowed: {', '.join(map(str, tried)) or 'none yet'}")
    if together(records):
        return extract(load_partitioned(path / "checkpoints" / KEPT), depth)
    _, kept = kept_by_depth([record for record in records if record.verb == "expand"])[depth]
    place = path / "checkpoints" / kept_name(kept.phase, kept.depth)
    return load_network(place) if kept.phase in ENDING_PHASES else extract(load_partitioned(place), depth)


def together(records: list[EpochRecord]) -> bool:
    """Say whether all depths of a run were trained at once.

    Args:
        records: of the run.

    Returns:
        True for one-shot runs.
    """
    return any(record.verb == "oneshot" for record in records)
