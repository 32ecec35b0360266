"""What is known of a pretrained network before it is trained, and at which depth growing begins. No torch here."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odn.config import ExpandConfig
from odn.errors import OdnError, UsageError
from odn.files import write_atomically
from odn.stopping import wilson_interval
from odn.tables import from_table, to_table

START_FILE = "start.json"
SCHEMA = 1
_MOST = 2**53  # beyond it floats are not exact


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How a linear classifier does on the frozen features of one depth.

    Attributes:
        depth: blocks that were passed.
        valid_correct: validation images that it classified correctly.
        valid_count: validation images.
    """

    depth: int
    valid_correct: int
    valid_count: int

    def __post_init__(self) -> None:
        counted = 0 <= self.valid_correct <= self.valid_count and 1 <= self.valid_count <= _MOST
        if not (1 <= self.depth <= _MOST and counted):
            raise UsageError("a probe has a depth from 1, and no more correct images than there are")

    @property
    def valid_accuracy(self) -> float:
        """Its validation accuracy, a fraction."""
        return self.valid_correct / self.valid_count


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a pretrained network brought along, and what probing it found and took.

    Attributes:
        source: of the weights.
        blocks: so many blocks, from the first, came with trained weights.
        probes: by depth, ascending; none where probing was not wanted.
        depth: blocks that every image was passed through.
        images: forward passes, of training and validation images.
        seconds: that probing took.
        sha256: of the network that is kept in the run directory; empty where it is not.
        schema: version of this format.
    """

    source: str
    blocks: int
    probes: tuple[Probe, ...] = ()
    depth: int = 0
    images: int = 0
    seconds: float = 0.0
    sha256: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise UsageError(f"the start has schema {self.schema}; this odn reads {SCHEMA}")
        depths = [probe.depth for probe in self.probes]
        if depths != sorted(set(depths)) or not all(depth <= self.depth for depth in depths):
            raise UsageError(f"probes of depths {depths}; allowed: ascending depths up to {self.depth}")
        if not (0 <= self.depth <= self.blocks <= _MOST and self.blocks and 0 <= self.images <= _MOST):
            raise UsageError("blocks, depth or images are impossible; allowed: 1 or more blocks, a depth up to that")
        if not 0 <= self.seconds < math.inf:
            raise UsageError(f"probing took {self.seconds} seconds; allowed: 0 or more")

    def macs(self, macs_by_depth: Sequence[int]) -> int:
        """Count the multiply-accumulates that probing took: one forward pass per image.

        Args:
            macs_by_depth: of one image at depth 1, 2, and so on.

        Returns:
            MACs in all.

        Raises:
            OdnError: when there is no such depth.
        """
        if self.depth > len(macs_by_depth):
            raise OdnError(
                f"{START_FILE} says that depth {self.depth} was probed, of {len(macs_by_depth)}; start anew with "
                "--force"
            )
        return macs_by_depth[self.depth - 1] * self.images if self.depth else 0


def first_depth(start: Start | None, depths: Sequence[int], config: ExpandConfig) -> int:
    """Say at which depth growing begins: at the shallowest one whose probe does not make it hopeless.

    Training a depth improves on the probe of its frozen features, by how much nobody knows beforehand. So a depth is
    passed over only when its probe's error, at the favourable end of its Wilson interval, is beyond
    ``config.reach_probe`` times the target's, or times the error of the best probe where that is larger. Probes say
    where growing begins and never where the search may end: the first network has heads for those that were passed
    over, too.

    Args:
        start: with its probes; None for a random start.
        depths: the plan, ascending.
        config: target, and how far beyond it is hopeless.

    Returns:
        A depth of the plan; the shallowest where nothing was probed.
    """
    probes = {probe.depth: probe for probe in (start.probes if start else ()) if probe.depth in depths}
    if not probes:
        return depths[0]
    error = 1 - max(probe.valid_accuracy for probe in probes.values())
    if config.target_accuracy:
        error = max(error, 1 - config.target_accuracy)
    needed = 1 - config.reach_probe * error

    def hopeless(probe: Probe) -> bool:
        favourable = wilson_interval(probe.valid_correct, probe.valid_count)[1]
        return max(favourable, probe.valid_accuracy) < needed  # rounding can put the end of the interval inside it

    # Blocks that came without trained weights were not probed, and nothing is known of their depths.
    return next(depth for depth in depths if depth not in probes or not hopeless(probes[depth]))


def write_start(start: Start, run: Path) -> None:
    """Write what is known of a pretrained network to a run directory.

    Args:
        start: what to write.
        run: the run directory.
    """
    write_atomically(run / START_FILE, json.dumps(to_table(start), indent=2) + "\n")


def read_start(run: Path) -> Start | None:
    """Read what is known of the pretrained network of a run.

    Args:
        run: the run directory.

    Returns:
        That, or None for a random start, or one that has not been probed yet.

    Raises:
        OdnError: when the file is damaged.
    """
    path = run / START_FILE
    if not path.is_file():
        return None
    try:
        return from_table(Start, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, UsageError) as error:
        raise OdnError(f"{path} is damaged ({error}); start anew with --force") from error


def start_sentence(start: dict[str, Any] | None) -> str:
    """Say what a network started from and how its probes did.

    Args:
        start: as in report.json.

    Returns:
        One or two sentences; nothing for a random start.
    """
    if start is None:
        return ""
    text = f"Started from {start['source']}, {start['blocks']} blocks with trained weights and new heads."
    if not start["probes"]:
        return text
    probes = ", ".join(f"{probe['depth']} {probe['valid_accuracy']:.4f}" for probe in start["probes"])
    return (
        f"{text} Validation accuracy of linear probes on frozen features, by depth: {probes}; growing began at depth "
        f"{start['first_depth']}."
    )
