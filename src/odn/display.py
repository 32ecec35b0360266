"""What a person sees in the terminal: a live line on stderr while a network trains, tables on stdout."""

import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeVar, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from odn.recipe import RunConfig
from odn.records import PHASE_NAMES, EpochRecord

if TYPE_CHECKING:
    from odn.reporting import Report

Result = TypeVar("Result")


@final
class Display:
    """Shows the records of training generators while it runs them.

    On a terminal one line is redrawn, and each depth leaves a line behind; elsewhere every evaluation is a line.

    Args:
        config: of the run, for the target.
        console: where to write; None means stderr.
    """

    def __init__(self, config: RunConfig, console: Console | None = None) -> None:
        self.config, self.console = config, console or Console(stderr=True)

    def watch(self, epochs: Generator[EpochRecord, None, Result]) -> Result:
        """Run a training generator to its end.

        Args:
            epochs: of expansion, fine-tuning or compressing.

        Returns:
            Its result.
        """
        live = self.console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
        with Progress(*columns, console=self.console, disable=not live, transient=True) as progress:
            task = progress.add_task("starting", total=None)
            while True:
                try:
                    record = next(epochs)
                except StopIteration as stop:
                    result: Result = stop.value
                    return result
                line = self.describe(record)
                progress.update(task, description=line, completed=record.epoch, total=record.cap)
                if not live or record.stop or record.epoch == record.cap:
                    self.console.print(line, highlight=False, soft_wrap=True)

    def describe(self, record: EpochRecord) -> str:
        """Put one record into a line.

        Args:
            record: of an epoch.

        Returns:
            Depth, epoch, accuracy, target and time, e.g. ``grow  depth 2  epoch 5/30  valid 0.9921 / ...``.
        """
        cap = record.cap
        goal = self.config.expand.target_accuracy
        target = f"{goal:.4f}" if goal else "auto"
        width = f"  width {record.narrowed.width:g}" if record.narrowed else ""
        text = (
            f"{PHASE_NAMES[record.phase]}  depth {record.depth}{width}  epoch {record.epoch}/{cap}  "
            f"valid {record.valid_score:.4f} / target {target}  {record.seconds:.1f} s"
        )
        if record.stop:
            return f"{text}  {record.stop.replace('_', ' ')}"
        if len(record.scores) > 1:
            text = (
                f"{PHASE_NAMES[record.phase]}  epoch {record.epoch}/{cap}  valid {record.scores[0]:.4f} (depth "
                f"{record.lowest}) to {record.scores[-1]:.4f} (depth {record.depth})  {record.seconds:.1f} s"
            )
        left = int((cap - record.epoch) * record.seconds / record.epochs)
        return f"{text}  at most {left // 60}:{left % 60:02d} left" if left else text


def print_report(report: "Report") -> None:
    """Print a report's table and where it lies.

    Args:
        report: as made by ``odn.report``.
    """
    console = _stdout()
    console.print(report)
    for name in ("report.html", "artifact"):
        console.print(f"{name.split('.')[0]}: {report.directory / name}", soft_wrap=True, highlight=False)


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table.

    Args:
        title: above it.
        rows: one or more, all with the same keys.
    """
    table = Table(title=title)
    for name, value in rows[0].items():
        # Without the underscores a heading can be folded where the terminal is narrow.
        table.add_column(name.replace("_", " "), justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    _stdout().print(table)


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "?"
    if isinstance(value, float):
        return f"{value:.5f}" if abs(value) < 1 else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def _stdout() -> Console:
    # A pipe has no width of its own: wide enough that no table is folded.
    return Console(width=None if sys.stdout.isatty() else 150)
