"""ExecuTorch with the XNNPACK backend, for phones and boards; fp32 and int8."""

import dataclasses
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from odn.errors import OdnError, require_extra
from odn.runtimes.parts import Export, Logits, Runtime, Session, cannot_express
from odn.texts import Batch

_MAX_BATCH = 64  # memory is planned ahead for the largest batch
_CALIBRATION_BATCH = 64


def _write_fp32(export: Export, directory: Path) -> None:
    _write("executorch", export.network, export, directory / "model.pte")


def _write_int8(export: Export, directory: Path) -> None:
    import torch

    name = "executorch-int8"
    # While it is imported it warns of what torch will do in its next version.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    pt2e = require_extra("torchao.quantization.pt2e.quantize_pt2e", "executorch", f"exporting to {name}")
    xnnpack = require_extra(
        "executorch.backends.xnnpack.quantizer.xnnpack_quantizer", "executorch", f"exporting to {name}"
    )
    quantizer = xnnpack.XNNPACKQuantizer().set_global(
        xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    )
    try:
        prepared = pt2e.prepare_pt2e(_program(export.network, export).module(), quantizer)
        for images in torch.from_numpy(export.calibration).split(_CALIBRATION_BATCH):
            prepared(images)
        quantised = pt2e.convert_pt2e(prepared)
    except Exception as error:
        raise cannot_express(name, error) from error
    _write(name, quantised, export, directory / "model.int8.pte")


def _program(network: Any, export: Export) -> Any:
    import torch

    # Its memory planning does not go by the declared maximum: the batch that is traced has to be that large.
    images = torch.from_numpy(np.resize(export.calibration, (_MAX_BATCH, *export.calibration.shape[1:])))
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=_MAX_BATCH)}}
    return torch.export.export(network, (images,), dynamic_shapes=batch)


def _write(name: str, network: Any, export: Export, path: Path) -> None:
    exir = require_extra("executorch.exir", "executorch", f"exporting to {name}")
    partitioner = require_extra(
        "executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch", f"exporting to {name}"
    )
    try:
        lowered = exir.to_edge_transform_and_lower(
            _program(network, export), partitioner=[partitioner.XnnpackPartitioner()]
        )
        program = lowered.to_executorch()
    except Exception as error:
        raise cannot_express(name, error) from error
    path.write_bytes(program.buffer)


def _open(path: Path) -> Session:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This API is experimental")
        runtime = require_extra("executorch.runtime", "executorch", f"running {path.name}")
    try:
        method = runtime.Runtime.get().load_program(path).load_method("forward")
    except RuntimeError as error:
        raise OdnError(f"{path} cannot be run by ExecuTorch ({error}); export the network again") from error

    def run(images: Batch) -> Logits:
        logits: Logits = method.execute([torch.from_numpy(np.ascontiguousarray(images))])[0].numpy()
        return logits.copy()

    return run


_FP32 = Runtime(
    name="executorch",
    engine="executorch",
    files=("model.pte",),
    extra="executorch",
    needs=("executorch",),
    write=_write_fp32,
    open=lambda directory, _threads: _open(directory / "model.pte"),
    max_batch=_MAX_BATCH,
    own_threads=True,
)
RUNTIMES = (
    _FP32,
    dataclasses.replace(
        _FP32,
        name="executorch-int8",
        files=("model.int8.pte",),
        needs=("executorch", "torchao"),
        write=_write_int8,
        open=lambda directory, _threads: _open(directory / "model.int8.pte"),
        exact="executorch",
    ),
)
