"""What every benchmark shares: its options, its finished cells, the machine it ran on, and its page.

``python -m benchmarks.NAME [--quick] [--data-dir DIR] [--out FILE.json] [--only NAME=VALUE ...]`` prints a table and
writes JSON with ``machine command date commit summary rows``. Cells that are finished are kept in that file, so that an
interrupted benchmark goes on where it stopped, and several processes can measure different cells of it at once. The
page beside it is made from the JSON alone.
"""

import argparse
import datetime
import fcntl
import json
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


def parse(name: str, description: str, jobs: Sequence[str] = ()) -> argparse.Namespace:
    """Read the options that every benchmark has.

    Args:
        name: of the benchmark.
        description: for --help.
        jobs: names of parts that can be asked for.

    Returns:
        quick, data_dir, out, only and jobs; a quick run writes beside the results that are kept, never over them.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="a reduced run of the same code in under 10 minutes")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("ODN_DATA_DIR", "data")))
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--only", nargs="*", default=[], type=_condition, metavar="NAME=VALUE[,VALUE]", help="cells to measure now"
    )
    if jobs:
        parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"parts to measure: {', '.join(jobs)}")
    options = parser.parse_args()
    if unknown := [job for job in getattr(options, "jobs", []) if job not in jobs]:
        parser.error(f"unknown job {unknown[0]}; allowed: {', '.join(jobs)}")
    if options.out is None:
        folder = ROOT / "runs" / "quick" if options.quick else ROOT / "benchmarks" / "results"
        options.out = folder / f"{name}.json"
    return options


def _condition(text: str) -> tuple[str, list[str]]:
    name, found, values = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is no condition; give NAME=VALUE or NAME=VALUE,VALUE")
    return name, values.split(",")


@final
class Cells:
    """The finished cells of a benchmark, kept in its JSON file.

    Args:
        options: ``out`` is the JSON file; ``only`` the conditions on keys that a cell has to meet to be measured.
        summarise: turns all rows into the figures of the contract; what was not measured is None.
    """

    def __init__(self, options: argparse.Namespace, summarise: Callable[[list[Row]], Row]) -> None:
        self.path, self.summarise = options.out, summarise
        self._only: list[tuple[str, list[str]]] = options.only
        kept = self._kept()
        self.rows: list[Row] = kept.pop("rows")
        self._made: Row = {name: kept[name] for name in ("machine", "command", "date", "commit") if name in kept}

    def _kept(self) -> Row:
        kept: Row = json.loads(self.path.read_text()) if self.path.is_file() else {"rows": []}
        for row in kept["rows"]:
            row.setdefault("machine", kept["machine"])
        return kept

    def run(self, key: Row, measure: Callable[[], Row]) -> Row | None:
        """Measure one cell unless it is finished.

        Args:
            key: what identifies the cell; part of its row.
            measure: does the work and returns the rest of the row.

        Returns:
            The row; None where the cell is left to another call.
        """
        for row in self.rows:
            if key.items() <= row.items():
                print("kept:", *key.values(), flush=True)
                return row
        if any(name in key and str(key[name]) not in values for name, values in self._only):
            return None
        row = json.loads(json.dumps({**key, **measure(), "commit": commit(), "machine": machine()}))
        self.rows.append(row)
        # When and where the newest cell was measured; a run that measures nothing does not change it.
        self._made = {
            "machine": row["machine"],
            "command": f"python -m {getattr(sys.modules['__main__'].__spec__, 'name', '?')}",
            "date": datetime.date.today().isoformat(),
            "commit": row["commit"],
        }
        print(*(f"{name}={value}" for name, value in row.items()), flush=True)
        self.save()
        return row

    def save(self) -> None:
        """Write the JSON file, with the rows that other processes have put there meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = self._kept()["rows"]
            self.rows = [*kept, *(row for row in self.rows if row not in kept)]
            document = {**self._made, "summary": self.summarise(self.rows), "rows": self.rows}
            temporary = self.path.with_suffix(".partial")
            temporary.write_text(json.dumps(document, indent=2) + "\n")
            temporary.replace(self.path)


def settle_flags(flags: Sequence[str]) -> list[str]:
    """Keep the last of each flag, so that those of a quick run replace others.

    Args:
        flags: names and values in turn.

    Returns:
        Likewise, each name once.
    """
    return [word for pair in dict(zip(flags[::2], flags[1::2], strict=True)).items() for word in pair]


def cifar_folder(data_dir: Path) -> Path:
    """Unpack the JPEGs of CIFAR-10 once.

    Args:
        data_dir: holds ``cifar10_jpg.tar.xz``.

    Returns:
        The folder with ``train`` and ``test``.
    """
    target = ROOT / "runs" / "cifar10_jpg"
    target.parent.mkdir(exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # cells are run side by side
        if not target.is_dir():
            partial = target.with_suffix(".partial")
            with tarfile.open(data_dir / "cifar10_jpg.tar.xz") as archive:
                archive.extractall(partial, filter="data")
            partial.rename(target)
    return next(path.parent for path in sorted(target.rglob("train")) if path.is_dir())


def machine() -> str:
    """Describe the machine in one line: processor and its vectors, cores, Python and torch."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    model += f" ({torch.backends.cpu.get_cpu_capability()})"  # one name may stand for several generations
    return f"{model}, {os.cpu_count()} cores{gpu}; Python {platform.python_version()}, torch {torch.__version__}"


def commit() -> str:
    """Return the short name of the commit, with ``+`` when the working tree differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks/*.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Write rows as a Markdown table.

    Args:
        rows: the rows.
        columns: which entries to show, in order.

    Returns:
        The table; None shows as a dash.
    """

    def cell(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float):
            return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def write_page(
    path: Path, title: str, text: str, bars: Sequence[Row], rows: Sequence[Row], columns: Sequence[str]
) -> None:
    """Write the page of a benchmark beside its JSON file, and print it.

    Where cells were measured on several machines, these are numbered, and each row says which one it was.

    Args:
        path: of the JSON file.
        title: of the page.
        text: what was done and what to keep in mind.
        bars: rows of ``figure bar measured``.
        rows: the cells.
        columns: of the cells to show.
    """
    document = json.loads(path.read_text())
    machines = list(dict.fromkeys(row["machine"] for row in document["rows"]))
    where = machines[0]
    if len(machines) > 1:
        where = "; ".join(f"[{number}] {name}" for number, name in enumerate(machines, 1))
        columns = (*columns, "machine")
        rows = [
            {**row, "machine": f"[{machines.index(row['machine']) + 1}]"} if "machine" in row else row for row in rows
        ]
    page = f"""# {title}

{document["date"]}, commit {document["commit"]}, `{document["command"]}`, on: {where}.

{text}

{table(bars, ("figure", "bar", "measured"))}

{table(rows, columns)}
"""
    path.with_suffix(".md").write_text(page)
    print(page)
