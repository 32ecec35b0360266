"""What happened, epoch by epoch: one frozen record each, kept as JSON lines. No torch here."""

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from odn.errors import OdnError, UsageError
from odn.files import explain, write_atomically
from odn.tables import from_table
from odn.tasks import Metric

Phase = Literal["expand", "cooldown", "settle", "refine", "oneshot", "finetune", "compress"]
Verb = Literal["expand", "oneshot", "finetune", "compress"]
VERBS: tuple[Verb, ...] = ("expand", "oneshot", "finetune", "compress")
ENDING_PHASES: tuple[Phase, ...] = ("settle", "refine")  # of expansion, those that train depths to their end
PHASE_NAMES: dict[Phase, str] = {
    "expand": "grow",
    "cooldown": "cool down",  # in runs of earlier versions
    "settle": "settle",
    "refine": "refine",
    "oneshot": "all depths",
    "finetune": "fine-tune",
    "compress": "compress",
}


class StopReason(StrEnum):
    """Why training at one depth ended."""

    TARGET_REACHED = "target_reached"
    PLATEAU = "plateau"
    EPOCH_BUDGET = "epoch_budget"
    NON_FINITE = "non_finite"


@dataclass(frozen=True, kw_only=True)
class Narrowed:
    """The network that is trained where it is narrower than its depth's.

    Attributes:
        width: share of the channels that is left, above 0 to 1.
        parameters: number of its weights.
        macs: multiply-accumulates of its forward pass for one image.
        teacher_macs: likewise of the network that it learns from.
    """

    width: float
    parameters: int
    macs: int
    teacher_macs: int


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The training between two evaluations, an epoch or more, and the evaluation that followed it.

    Attributes:
        phase: expansion at a constant learning rate, training some depths to their end or one of them further, all
            depths at once, fine-tuning, or compressing; earlier versions also annealed a growing network.
        depth: number of blocks in training, from 1.
        epoch: the last one of it, within this phase and depth, from 1.
        cap: most epochs of this phase at this depth.
        learning_rate: at the end of the epoch.
        train_loss: mean loss over its samples; None when it was not finite.
        valid_score: how the averaged weights do on the validation split, at most 1; while expanding at the deepest of
            the heads in training, where all depths are trained at once in the mean over them.
        valid_error: standard error of that score, or the mean of those of all depths.
        valid_count: validation samples.
        train_samples: samples trained on, as often as they were.
        evaluated_samples: samples of forward passes without training (recalibration and validation).
        seconds: wall-clock time of training and evaluation.
        metric: what the score is a value of.
        trivial_score: what the best answer scores that is the same for every sample; None if unknown.
        epochs: how many it took.
        stop: why this phase of this depth ended with it, None while it goes on.
        narrowed: while compressing, the network in training.
        scores: where depths are trained together, the validation score of each that has a head, ascending to ``depth``.
        errors: likewise their standard errors.
    """

    phase: Phase
    depth: int
    epoch: int
    cap: int
    learning_rate: float
    train_loss: float | None
    valid_score: float
    valid_error: float
    valid_count: int
    train_samples: int
    evaluated_samples: int
    seconds: float
    metric: Metric = "accuracy"
    trivial_score: float | None = None
    epochs: int = 1
    stop: str | None = None
    narrowed: Narrowed | None = None
    scores: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()

    @property
    def lowest(self) -> int:
        """The first depth that had a head."""
        return self.depth - max(len(self.scores), 1) + 1

    def by_depth(self) -> "list[EpochRecord]":
        """Take an epoch in which several depths were trained apart.

        Returns:
            A record for each depth, with its own score; the record alone where one depth was trained.
        """
        if not self.scores:
            return [self]
        return [
            dataclasses.replace(self, depth=depth, valid_score=score, valid_error=error, scores=(), errors=())
            for depth, (score, error) in enumerate(zip(self.scores, self.errors, strict=True), self.lowest)
        ]

    @property
    def verb(self) -> Verb:
        """The step of the line that trained: a cool-down is part of expansion."""
        return self.phase if self.phase in ("oneshot", "finetune", "compress") else "expand"


def write_history(path: Path, records: Iterable[EpochRecord]) -> None:
    """Write a history anew, one JSON object per line.

    Args:
        path: the file, replaced.
        records: the records, oldest first.
    """
    write_atomically(path, "".join(_line(record) for record in records))


def append_history(path: Path, record: EpochRecord) -> None:
    """Add one record to the end of a history.

    Args:
        path: the file, made if absent.
        record: the newest record.

    Raises:
        OdnError: when the disk is full or the place cannot be written.
    """
    line = _line(record)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OdnError(explain(error, path, len(line))) from error


def read_history(path: Path) -> list[EpochRecord]:
    """Read a history; a last line that was cut short by an interruption is left out.

    Args:
        path: the file; a missing one is an empty history.

    Returns:
        The records, oldest first.

    Raises:
        OdnError: when a line other than the last is damaged.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(from_table(EpochRecord, json.loads(line)))
        except (ValueError, RecursionError, UsageError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise OdnError(
                f"{path}, line {number} is damaged ({error}); restore the file or start anew with --force"
            ) from error
    return records


def _line(record: EpochRecord) -> str:
    return json.dumps(dataclasses.asdict(record)) + "\n"
