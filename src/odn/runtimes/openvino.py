"""OpenVINO's intermediate representation, made from the ONNX file."""

import tempfile
from pathlib import Path

import numpy as np

from odn.errors import OdnError, require_extra
from odn.runtimes import onnx
from odn.runtimes.parts import Export, Logits, Runtime, Session, cannot_express
from odn.texts import Batch

_FILES = ("model.xml", "model.bin")


def _write(export: Export, directory: Path) -> None:
    openvino = require_extra("openvino", "openvino", "exporting to openvino")
    with tempfile.TemporaryDirectory() as folder:
        source = directory / onnx.FILE
        if not source.is_file():
            onnx.RUNTIME.write(export, Path(folder))
            source = Path(folder) / onnx.FILE
        try:
            # Not convert_model: that one reports its use over the network.
            model = openvino.Core().read_model(source)
        except RuntimeError as error:
            raise cannot_express("openvino", error) from error
        openvino.save_model(model, directory / _FILES[0], compress_to_fp16=False)


def _open(directory: Path, threads: int) -> Session:
    openvino = require_extra("openvino", "openvino", "running model.xml")
    # Its default on newer processors is bf16, which changes logits by several hundredths.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    try:
        network = openvino.Core().compile_model(directory / _FILES[0], "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise OdnError(f"{directory / _FILES[0]} cannot be run by OpenVINO ({reason}); export it again") from error

    def run(images: Batch) -> Logits:
        return np.array(network(images)[0], dtype=np.float32)

    return run


RUNTIME = Runtime(
    name="openvino",
    engine="openvino",
    files=_FILES,
    extra="openvino",
    needs=("openvino", "onnx", "onnxscript"),
    write=_write,
    open=_open,
)
