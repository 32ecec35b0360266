"""Feed readers what a fuzzer finds by watching which of their branches each input takes (atheris, libFuzzer).

It complements ``benchmarks.fuzz``, whose damage is blind. Needs ``pip install atheris``, which is not among this
package's extras: it installs on few platforms.
"""

import contextlib
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Cells, Row, parse, write_page

# What is fed: the file that is replaced in the corpus.
FILES = {
    "spec": "narrow/spec.json",
    "manifest": "artifact/manifest.json",
    "weights": "narrow/weights.safetensors",
    "state": "run/checkpoints/expand.safetensors",
    "history": "run/history.jsonl",
    "recipe": "recipe.toml",
    "npz": "data.npz",
}
RUNS, QUICK_RUNS = 20_000, 200
SLOW = ("weights",)  # every input has its network rebuilt: a tenth of the runs
HANG_SECONDS, MOST_MEGABYTES = 5, 2048


def readers(folder: Path) -> dict[str, Callable[[], object]]:
    """Say what reads each file.

    Args:
        folder: the corpus.

    Returns:
        A call without arguments by kind.
    """
    import odn
    from odn.checkpoint import Checkpoints
    from odn.flags import Flags
    from odn.manifest import read_manifest
    from odn.records import read_history
    from odn.storage import load_network

    return {
        "spec": lambda: load_network(folder / "narrow"),
        "manifest": lambda: read_manifest(folder / "artifact"),
        "weights": lambda: load_network(folder / "narrow"),
        "state": lambda: Checkpoints("expand", folder / "run", resume=True),
        "history": lambda: read_history(folder / FILES["history"]),
        "recipe": lambda: Flags(config=folder / FILES["recipe"]).settle(None),
        "npz": lambda: odn.load_data(str(folder / FILES["npz"])).test,
    }


def sealed(content: bytes) -> bytes:
    """Mend the checksum that a manifest has in it, as an attacker would.

    Args:
        content: what the fuzzer made.

    Returns:
        The same, or where it is a JSON object, that with a fitting ``sha256``.
    """
    with contextlib.suppress(ValueError, RecursionError):
        table: Any = json.loads(content)
        if isinstance(table, dict):
            table.pop("sha256", None)
            table["sha256"] = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
            return json.dumps(table).encode()
    return content


def hunt(kind: str, folder: Path, arguments: list[str]) -> None:
    """Be the fuzzer; this does not return.

    Args:
        kind: of ``FILES``.
        folder: the corpus.
        arguments: for libFuzzer.
    """
    import atheris

    with atheris.instrument_imports(include=["odn"]):
        import odn

        read = readers(folder)[kind]
    path = folder / FILES[kind]
    if kind == "state":
        path.with_name("expand.previous.safetensors").unlink(missing_ok=True)

    def feed(content: bytes) -> None:
        path.write_bytes(sealed(content) if kind == "manifest" else content)
        try:
            read()
        except odn.OdnError as error:
            if "\n" in str(error):
                raise ValueError("more than one line") from error

    atheris.Setup([sys.argv[0], *arguments], feed)
    atheris.Fuzz()


def assault(kind: str, runs: int, keep: Path) -> Row:
    """Let the fuzzer look for inputs that break one reader, in a process of its own.

    Args:
        kind: of ``FILES``.
        runs: inputs to try.
        keep: receives the input that broke it.

    Returns:
        How many inputs it tried, the branches it found, and whether one broke the reader.
    """
    from benchmarks.fuzz import corpus  # not above: the fuzzer has to see odn's modules before they are imported

    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder, seeds = Path(temporary) / "corpus", Path(temporary) / "seeds"
        folder.mkdir()
        seeds.mkdir()
        corpus(folder)
        (seeds / "sound").write_bytes((folder / FILES[kind]).read_bytes())
        command = [sys.executable, "-m", "benchmarks.guided_fuzz", "--hunt", kind, str(folder), "-max_len=16384"]
        command += [f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MOST_MEGABYTES}", f"-artifact_prefix={keep}/{kind}-"]

        def start(*arguments: object) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *map(str, arguments)],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                check=False,
            )

        row: Row = {"inputs": 0, "branches": 0, "broken": 0}
        while row["inputs"] < runs and not row["broken"]:
            before = set(keep.iterdir())
            done = start(f"-runs={runs - row['inputs']}", f"-seed={1 + row['inputs']}", seeds)
            told = re.findall(r"^#(\d+)\s.*\bcov: (\d+)", done.stderr, re.MULTILINE)
            if not told:
                raise SystemExit(f"the fuzzer did not start: {done.stderr[-1000:]}")
            row["inputs"] += int(told[-1][0])
            row["branches"] = max(row["branches"], int(told[-1][1]))
            # A machine that stalls makes an input look slow: what is found has to be found again.
            if done.returncode and any(start(path).returncode for path in set(keep.iterdir()) - before):
                print(f"{kind}:", done.stderr[-3000:], file=sys.stderr, flush=True)
                row["broken"] = 1
    return row


def summarise(rows: list[Row]) -> Row:
    """Compute the figures of the contract.

    Args:
        rows: of all cells.

    Returns:
        Figure by name.
    """
    return {name: sum(row[name] for row in rows) for name in ("inputs", "broken")}


def main() -> None:
    """Attack every reader, then print and write the page."""
    if sys.argv[1:2] == ["--hunt"]:
        hunt(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
        return
    options = parse("guided_fuzz", __doc__ or "")
    cells = Cells(options, summarise)
    for kind in FILES:
        runs = QUICK_RUNS if options.quick else RUNS // 10 if kind in SLOW else RUNS
        cells.run({"kind": kind}, partial(assault, kind, runs, ROOT / "runs" / "guided_fuzz"))
    cells.save()
    summary = summarise(cells.rows)
    bars: list[Row] = [
        {"figure": "inputs", "bar": "-", "measured": summary["inputs"]},
        {"figure": "broken", "bar": "0", "measured": summary["broken"]},
    ]
    text = (
        "Inputs that libFuzzer makes while it watches the branches of odn's modules, starting from one sound file of "
        "each kind; manifests get a fitting checksum. `broken` counts readers for which it found a traceback, more "
        f"than {HANG_SECONDS} seconds, or {MOST_MEGABYTES} MiB of memory, PyTorch's own share included. It stops at "
        "the first. `branches` are those it reached."
    )
    columns = ("kind", "inputs", "branches", "broken", "commit")
    write_page(cells.path, "Guided fuzz: hostile input found by coverage", text, bars, cells.rows, columns)


if __name__ == "__main__":
    main()
