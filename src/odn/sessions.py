"""Opening the files of an artifact for use: checked, and without torch where a runtime does without."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from odn.errors import UsageError, did_you_mean
from odn.manifest import Manifest, check_files
from odn.predictions import Answered
from odn.runtimes import RUNTIMES, Logits, Session, routed, torch_session
from odn.texts import Batch

Answer = Callable[[Batch], Answered]
# What files from strangers may be opened with, the first in an artifact being the default.
USABLE = ("onnx", "int8", "torch", "routed")


def choose_runtime(manifest: Manifest, asked: str | None, allowed: Sequence[str] = USABLE) -> str:
    """Choose what an artifact is run with.

    Args:
        manifest: of the artifact.
        asked: a name, or None for the first that the artifact has files for.
        allowed: names to choose from.

    Returns:
        The name of a runtime.

    Raises:
        UsageError: when there is none of that name, or the artifact has no file for it.
    """
    present = [name for name in allowed if name in manifest.runtimes]
    if asked is None:
        return present[0]
    if asked not in allowed:
        raise UsageError(f"unknown runtime '{asked}'; allowed: {', '.join(allowed)}.{did_you_mean(asked, allowed)}")
    if asked not in present:
        raise UsageError(
            f"the artifact has no file for '{asked}'; it has {', '.join(present)}; add one with: "
            + (f"odn export RUN --to {asked}" if RUNTIMES[asked].static else "odn route RUN")
        )
    return asked


def open_session(directory: Path, manifest: Manifest, runtime: str, threads: int) -> Session:
    """Compare a runtime's files with their checksums and make them ready to run.

    Args:
        directory: the artifact.
        manifest: its manifest.
        runtime: a name that the manifest has files for.
        threads: to compute with.

    Returns:
        What runs decoded images.
    """
    if runtime == "torch":
        return _open_torch(directory, threads)
    check_files(directory, manifest, runtime)
    return RUNTIMES[runtime].open(directory, threads)


def open_answer(directory: Path, manifest: Manifest, runtime: str, threads: int) -> Answer:
    """Make a runtime's files ready to run, as ``open_session`` does, and keep where inputs leave a routed network.

    Args:
        directory: the artifact.
        manifest: its manifest.
        runtime: a name that the manifest has files for.
        threads: to compute with.

    Returns:
        What gives logits, and the depth at which each input left; None instead where all pass the whole network.
    """
    if runtime == "routed":
        check_files(directory, manifest, runtime)
        return routed.open_chain(directory, threads)
    session = open_session(directory, manifest, runtime, threads)
    return lambda inputs: (session(inputs), None)


def _open_torch(directory: Path, threads: int) -> Session:
    from odn.artifact import load

    return torch_session(load(directory).deployed, threads)


def run_all(session: Session, inputs: Batch, batch: int) -> Logits:
    """Run any number of inputs, the first alone, so that more than one batch size is seen.

    Args:
        session: of a runtime.
        inputs: images, uint8 of shape (N, C, H, W), or ids of tokens, int64 of shape (N, T), one or more.
        batch: inputs at once.

    Returns:
        Logits of shape (N, K).
    """
    starts = [0, *range(1, len(inputs), batch)]
    ends = [*starts[1:], len(inputs)]
    return np.concatenate([session(inputs[a:b].copy()) for a, b in zip(starts, ends, strict=True)])
