"""What a runtime provides.

Shapes: B batch, C channels, H height, W width, K classes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from odn.errors import OdnError
from odn.texts import Batch

if TYPE_CHECKING:
    from torch import nn

Logits = npt.NDArray[np.float32]
# Runs decoded images, uint8 of shape (B, C, H, W), or ids of tokens, int64 of shape (B, T); gives logits, (B, K).
Session = Callable[[Batch], Logits]
EXPORT_BATCH = 2  # a batch of one would be taken for a constant
_OPERATOR = re.compile(r"\b(?:aten|prims|quantized|torchvision|onnx)(?:\.|::?)\w+(?:\.\w+)?")


class CannotExpress(OdnError):
    """A network that a runtime's format has no words for."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is to be written.

    Attributes:
        network: takes uint8 images of shape (B, C, H, W), or int64 ids of shape (B, T), and gives logits; on the CPU,
            in evaluation mode.
        calibration: such inputs from the training split, for runtimes that quantise.
        metadata: what a user of the file must know, where the format has room for it.
        input_name: of the graph's only input.
    """

    network: "nn.Module"
    calibration: Batch
    metadata: Mapping[str, str]
    input_name: str = "images"


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """An entry of the registry.

    Attributes:
        name: by which users call it.
        engine: the library that runs it, as reports name it.
        files: that it writes into the artifact.
        extra: of this package, that brings what it needs; None where PyTorch is enough.
        needs: modules that writing needs.
        write: writes the files into a directory.
        open: makes ready to run them, with so many threads.
        exact: where it quantises: the runtime of the same engine in fp32. It is then judged by accuracy, not by logits.
        max_batch: images it takes at once.
        own_threads: whether the engine chooses their number by itself.
        texts: whether it can take networks that read ids of tokens.
        static: whether every input takes the same way through it, so that its latency can be told from noise.
    """

    name: str
    engine: str
    files: tuple[str, ...]
    extra: str | None
    needs: tuple[str, ...]
    write: Callable[[Export, Path], None]
    open: Callable[[Path, int], Session]
    exact: str | None = None
    max_batch: int = 2**31 - 1
    own_threads: bool = False
    texts: bool = False
    static: bool = True


def input_name(texts: bool) -> str:
    """Name the only input of a graph.

    Args:
        texts: whether it reads texts.

    Returns:
        ``ids`` or ``images``.
    """
    return "ids" if texts else "images"


def cannot_express(runtime: str, error: Exception) -> CannotExpress:
    """Explain why a network could not be written.

    Args:
        runtime: its name.
        error: as raised by the exporter.

    Returns:
        An error that names the operator, where the exporter does.
    """
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    # The innermost error knows best.
    operators = [found for text in reversed(texts) for found in _OPERATOR.findall(text)]
    if operators:
        return CannotExpress(f"{runtime} cannot express the operator {operators[0]}")
    last = next((line for text in reversed(texts) for line in text.splitlines() if line.strip()), type(error).__name__)
    return CannotExpress(f"{runtime} cannot express this network: {last.strip()[:200]}")


def torch_session(network: "nn.Module", threads: int | None = None) -> Session:
    """Run a module as other runtimes run their files.

    Args:
        network: takes uint8 images, or int64 ids of tokens, and gives logits; on the CPU, in evaluation mode.
        threads: to compute with; None leaves that to the program. The program's own number is restored after each run.

    Returns:
        What runs decoded images or ids.
    """
    import torch

    def run(inputs: Batch) -> Logits:
        before = torch.get_num_threads()
        if threads not in (None, before):
            torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                logits: Logits = network(torch.from_numpy(inputs)).numpy()
        finally:
            if threads not in (None, before):
                torch.set_num_threads(before)
        return logits.astype(np.float32, copy=False)

    return run
