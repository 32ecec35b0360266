"""int8 for onnxruntime: static quantisation with QuantizeLinear and DequantizeLinear around every layer.

Per channel, unsigned activations of eight bits and signed weights of seven: on x86 signed activations were slower than
fp32, and weights of eight bits are computed wrongly where there is no VNNI.
"""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from odn.errors import require_extra
from odn.runtimes import onnx as fp32
from odn.runtimes.parts import Export, Runtime
from odn.texts import Batch

FILE = "model.int8.onnx"
_CALIBRATION_BATCH = 64


def _write(export: Export, directory: Path) -> None:
    quantization = require_extra("onnxruntime.quantization", "onnx", "exporting to int8")
    onnx = require_extra("onnx", "onnx", "exporting to int8")
    with tempfile.TemporaryDirectory() as folder:
        source, target = directory / fp32.FILE, Path(folder) / FILE
        if not source.is_file():
            fp32.RUNTIME.write(export, Path(folder))
            source = Path(folder) / fp32.FILE
        metadata = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
        # It recommends a preparation that PyTorch's exporter has done.
        logging.getLogger().addFilter(_not_a_recommendation)
        try:
            quantization.quantize_static(
                source,
                target,
                _reader(quantization, export.calibration),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                # Seven bits for weights: processors without VNNI add two products in 16 bits, which eight overflow.
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                # onnxruntime quantises biases when it loads the file; in the file they would take thrice the bytes.
                extra_options={"QuantizeBias": False},
            )
        finally:
            logging.getLogger().removeFilter(_not_a_recommendation)
        model = onnx.load(target)
    _simplify(model, onnx)
    fp32.save(model, directory / FILE, {**metadata, "quantizer": f"onnxruntime {_version()}"})


def _not_a_recommendation(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()


def _version() -> str:
    return str(require_extra("onnxruntime", "onnx", "exporting to int8").__version__)


def _reader(quantization: Any, images: Batch) -> Any:
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = self._batches()

        def _batches(self) -> Iterator[dict[str, Batch]]:
            for start in range(0, len(images), _CALIBRATION_BATCH):
                yield {"images": images[start : start + _CALIBRATION_BATCH]}

        def get_next(self) -> dict[str, Batch] | None:
            return next(self.batches, None)

    return Reader()


def _simplify(model: Any, onnx: Any) -> None:
    """Leave the logits in fp32, which keeps their order, and leave out zero points of zero, which is the default."""
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output}
    dequantise = maker["logits"]
    if dequantise.op_type == "DequantizeLinear":
        quantise = maker[dequantise.input[0]]
        maker[quantise.input[0]].output[:] = ["logits"]
        graph.node.remove(quantise)
        graph.node.remove(dequantise)
    zero = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and not np.any(onnx.numpy_helper.to_array(tensor))
    }
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[2] in zero:
            del node.input[2]
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


RUNTIME = Runtime(
    name="int8",
    engine="onnxruntime",
    files=(FILE,),
    extra="onnx",
    needs=fp32.NEEDS,
    write=_write,
    open=lambda directory, threads: fp32.open_file(directory / FILE, threads),
    exact="onnx",
)
