"""A chain of ONNX stages with exits between them, run by onnxruntime: easy inputs leave early. No torch here.

The artifact holds ``routed.json``, which names the stages with their checksums, and a file per stage.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from odn.errors import OdnError, UsageError
from odn.files import read_bytes, read_text, write_atomically
from odn.gates import Hop, Labels, Route, follow
from odn.runtimes import onnx
from odn.runtimes.parts import CannotExpress, Export, Logits, Runtime, Session
from odn.tables import from_table, to_table
from odn.texts import Batch

FILE, FOLDER = "routed.json", "routed"
SCHEMA = 1
Chain = Callable[[Batch], tuple[Logits, Labels]]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What ``routed.json`` says.

    Attributes:
        route: exits, thresholds and policy.
        files: of each stage, from inputs to the last head, within the artifact.
        sha256: of those files.
        schema: version of this format.
    """

    route: Route
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        count = len(self.route.depths)
        if len(self.files) != count or len(self.sha256) != count:
            raise UsageError(f"{count} exits, {len(self.files)} files and {len(self.sha256)} checksums")
        if any(Path(name).parts != (FOLDER, f"stage_{number}.onnx") for number, name in enumerate(self.files, 1)):
            raise UsageError(f"stages are {', '.join(self.files)}; allowed: {FOLDER}/stage_1.onnx and so on")


def write_stages(exports: Sequence[Export], route: Route, directory: Path) -> None:
    """Write the stages of a network.

    Args:
        exports: of each stage, all but the last giving features and logits.
        route: exits, thresholds and policy.
        directory: the artifact.
    """
    (directory / FOLDER).mkdir(parents=True, exist_ok=True)
    files, sums = [], []
    for number, export in enumerate(exports, 1):
        outputs = ("features", "logits") if number < len(exports) else ("logits",)
        name = f"{FOLDER}/stage_{number}.onnx"
        onnx.write_graph(export, directory / name, outputs)
        files.append(name)
        sums.append(hashlib.sha256(read_bytes(directory / name)).hexdigest())
    stages = Stages(route=route, files=tuple(files), sha256=tuple(sums))
    write_atomically(directory / FILE, json.dumps(to_table(stages), indent=2) + "\n")


def read_stages(directory: Path) -> Stages:
    """Read which stages an artifact has, and compare them with their checksums.

    Args:
        directory: the artifact.

    Returns:
        The stages.

    Raises:
        OdnError: when one is missing or was changed, or the list is damaged.
    """
    path = directory / FILE
    try:
        table = json.loads(read_text(path, "route the network again with: odn route RUN"))
        if table["schema"] != SCHEMA:
            raise OdnError(f"{path} has schema {table['schema']}; this odn reads {SCHEMA}; route the network again")
        stages = from_table(Stages, table)
    except (ValueError, RecursionError, KeyError, TypeError, UsageError) as error:
        raise OdnError(f"{path} is damaged ({error}); route the network again with: odn route RUN") from error
    for number, (name, expected) in enumerate(zip(stages.files, stages.sha256, strict=True), 1):
        if not (directory / name).is_file():
            raise OdnError(f"stage {number}, {directory / name}, is missing; route the network again")
        if hashlib.sha256(read_bytes(directory / name)).hexdigest() != expected:
            raise OdnError(f"stage {number}, {directory / name}, was changed or swapped; route the network again")
    return stages


def open_chain(directory: Path, threads: int) -> Chain:
    """Make the stages of an artifact ready to run.

    Args:
        directory: the artifact.
        threads: to compute with.

    Returns:
        What gives logits, and the depth at which each input left.
    """
    stages = read_stages(directory)
    hops: list[Hop] = []
    for number, name in enumerate(stages.files, 1):
        outputs = ("features", "logits") if number < len(stages.files) else ("logits",)
        hops.append(partial(_hop, onnx.open_graph(directory / name, threads, outputs)))
    return partial(follow, stages.route, hops)


def _hop(graph: Callable[[Any], list[Any]], features: Any) -> tuple[Any, Any]:
    found = graph(features)
    return found[0], found[-1]


def _open(directory: Path, threads: int) -> Session:
    chain = open_chain(directory, threads)
    return lambda inputs: chain(inputs)[0]


def _write(export: Export, directory: Path) -> None:
    raise CannotExpress("stages with exits are made by odn route RUN, not by odn export")


RUNTIME = Runtime(
    name="routed",
    engine="onnxruntime",
    files=(FILE,),
    extra="onnx",
    needs=onnx.NEEDS,
    write=_write,
    open=_open,
    texts=False,
    static=False,
)
