"""The registry of runtimes: what each writes into an artifact, and how that is run. No torch until one is used."""

from odn.errors import UsageError, did_you_mean
from odn.runtimes import executorch, int8, onnx, openvino, pt2, routed
from odn.runtimes.parts import CannotExpress as CannotExpress
from odn.runtimes.parts import Export as Export
from odn.runtimes.parts import Logits as Logits
from odn.runtimes.parts import Runtime as Runtime
from odn.runtimes.parts import Session as Session
from odn.runtimes.parts import input_name as input_name
from odn.runtimes.parts import torch_session as torch_session

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        onnx.RUNTIME,
        int8.RUNTIME,
        pt2.RUNTIME,
        *executorch.RUNTIMES,
        openvino.RUNTIME,
        routed.RUNTIME,
    )
}


def find_runtime(name: str) -> Runtime:
    """Return a runtime by its name.

    Args:
        name: as given to ``odn export --to``.

    Returns:
        Its entry in the registry.

    Raises:
        UsageError: when there is none of that name.
    """
    if name not in RUNTIMES:
        raise UsageError(f"unknown runtime '{name}'; allowed: {', '.join(RUNTIMES)}.{did_you_mean(name, RUNTIMES)}")
    return RUNTIMES[name]
