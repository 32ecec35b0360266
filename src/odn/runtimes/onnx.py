"""ONNX, written by PyTorch's dynamo exporter and run by onnxruntime, which needs no PyTorch.

The file takes uint8 images: scaling and normalisation are part of the graph. For texts it takes int64 ids of tokens.
"""

import itertools
import logging
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odn.errors import OdnError, require_extra
from odn.runtimes.parts import EXPORT_BATCH, Export, Logits, Runtime, Session, cannot_express
from odn.texts import Batch

FILE = "model.onnx"
NEEDS = ("onnx", "onnxscript", "onnxruntime")


def _write(export: Export, directory: Path) -> None:
    write_graph(export, directory / FILE, ("logits",))


def write_graph(export: Export, path: Path, outputs: Sequence[str]) -> None:
    """Write a module as an ONNX file that takes any number of inputs at once.

    Args:
        export: the module, and inputs of it.
        path: the file.
        outputs: names of what the module gives.
    """
    require_extra("onnxscript", "onnx", "exporting to onnx")
    import torch

    save(_translate(export, outputs), path, {**export.metadata, "exporter": f"torch {torch.__version__}"})


def _translate(export: Export, outputs: Sequence[str]) -> Any:
    import torch

    # It tells of constants that it could not fold; the file is compared with PyTorch anyway.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(
            export.network,
            (torch.from_numpy(export.calibration[:EXPORT_BATCH]),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=[export.input_name],
            output_names=list(outputs),
            verbose=False,
        )
    except Exception as error:
        raise cannot_express("onnx", error) from error
    assert program is not None
    return program.model_proto


def save(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a graph without what only its exporter needed.

    Args:
        model: an ONNX ModelProto; it is changed.
        path: the file.
        metadata: replaces what stands in the model.
    """
    onnx = require_extra("onnx", "onnx", "exporting to onnx")
    strip(model)
    version = metadata.get("odn", "")
    model.producer_name, model.producer_version = "odn", version
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def strip(model: Any) -> None:
    """Take out of a graph what is of no use to a runtime: in small networks it outweighs the weights.

    Source positions, doc strings, intermediate shapes and names of nodes go; tensors get short names, and constants
    that are equal become one.

    Args:
        model: an ONNX ModelProto; it is changed.
    """
    onnx = require_extra("onnx", "onnx", "exporting to onnx")
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:], graph.quantization_annotation[:]
    graph.name, graph.doc_string, model.doc_string = "odn", "", ""
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.name, node.doc_string = "", ""
    constants: dict[Any, Any] = {}
    first: dict[str, str] = {}  # of the constants that are equal
    for tensor in graph.initializer:
        plain = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name)
        same = constants.setdefault((plain.data_type, tuple(plain.dims), plain.raw_data), plain)
        first[tensor.name] = same.name
    outside = {value.name for value in (*graph.input, *graph.output)} | {""}
    inside = [*(t.name for t in constants.values()), *(name for node in graph.node for name in node.output)]
    short = dict(zip((name for name in inside if name not in outside), _names(), strict=False))
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [short.get(first.get(name, name), name) for name in names]
    del graph.initializer[:]
    for tensor in constants.values():
        tensor.name = short[tensor.name]
        graph.initializer.append(tensor)


def weight_bytes(path: Path) -> int:
    """Count the bytes of a file's constants, without their names and the graph around them.

    Args:
        path: an ONNX file.

    Returns:
        Their bytes.
    """
    onnx = require_extra("onnx", "onnx", "measuring an ONNX file")
    return sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer)


def _names() -> Iterator[str]:
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_letters, repeat=length))


def open_file(path: Path, threads: int) -> Session:
    """Make an ONNX file ready to run.

    Args:
        path: the file, with one input and the output ``logits``.
        threads: to compute with.

    Returns:
        What runs it.
    """
    graph = open_graph(path, threads, ("logits",))

    def run(inputs: Batch) -> Logits:
        logits: Logits = graph(inputs)[0]
        return logits.astype(np.float32, copy=False)

    return run


def open_graph(path: Path, threads: int, outputs: Sequence[str]) -> Callable[[Any], list[Any]]:
    """Make an ONNX file with one input ready to run.

    Args:
        path: the file.
        threads: to compute with.
        outputs: names of what is wanted.

    Returns:
        What takes the input and gives the outputs.

    Raises:
        OdnError: when onnxruntime is not installed, or does not take the file.
    """
    ort = require_extra("onnxruntime", "onnx", f"running {path.name}")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    try:
        # Its fallback would try the same provider once more, and say so on stdout.
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
        name = session.get_inputs()[0].name
    except Exception as error:  # onnxruntime's errors have no common class
        raise OdnError(_refusal(path, error)) from error

    def run(inputs: Any) -> list[Any]:
        try:
            found: list[Any] = session.run(list(outputs), {name: inputs})
        except Exception as error:
            raise OdnError(_refusal(path, error)) from error
        return found

    return run


def _refusal(path: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0][:200]
    return f"{path} cannot be run by onnxruntime ({reason}); export the network again"


RUNTIME = Runtime(
    name="onnx",
    engine="onnxruntime",
    files=(FILE,),
    extra="onnx",
    needs=NEEDS,
    write=_write,
    open=lambda directory, threads: open_file(directory / FILE, threads),
    texts=True,
)
