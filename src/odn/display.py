"""The live line on stderr while a network trains: depth, epoch, accuracy against the target, time left."""

import time
from collections.abc import Generator
from typing import TypeVar, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from odn.config import RunConfig
from odn.records import EpochRecord

Result = TypeVar("Result")


@final
class Display:
    """Shows the records of training generators while it runs them.

    On a terminal one line is redrawn, and each depth leaves a line behind; elsewhere every epoch is a line.

    Args:
        console: where to write, usually stderr.
        config: of the run, for the target and the caps on epochs.
    """

    def __init__(self, console: Console, config: RunConfig) -> None:
        self.console, self.config = console, config
        self._start = time.monotonic()

    def watch(self, epochs: Generator[EpochRecord, None, Result]) -> Result:
        """Run a training generator to its end.

        Args:
            epochs: of expansion or fine-tuning.

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
                progress.update(task, description=line, completed=record.epoch, total=self._cap(record))
                if not live or record.stop or record.epoch == self._cap(record):
                    self.console.print(line, highlight=False, soft_wrap=True)

    def describe(self, record: EpochRecord) -> str:
        """Put one record into a line.

        Args:
            record: of an epoch.

        Returns:
            Depth, epoch, accuracy, target and time, e.g. ``depth 2  epoch 5/30  valid 0.9921 / 0.9930 ...``.
        """
        cap = self._cap(record)
        name = f"depth {record.depth}" if record.phase == "expand" else f"fine-tune depth {record.depth}"
        text = (
            f"{name}  epoch {record.epoch}/{cap}  valid {record.valid_accuracy:.4f} / target "
            f"{self.config.expand.target_accuracy:.4f}  {record.seconds:.1f} s"
        )
        if record.stop:
            return f"{text}  {record.stop.replace('_', ' ')}"
        left = int((cap - record.epoch) * record.seconds)
        return f"{text}  at most {left // 60}:{left % 60:02d} left" if left else text

    def _cap(self, record: EpochRecord) -> int:
        expanding = record.phase == "expand"
        return self.config.expand.epochs_per_depth if expanding else max(self.config.finetune.epochs, record.epoch)
