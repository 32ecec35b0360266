"""PyTorch's own exchange format, written by torch.export: a graph that needs no code of ours."""

import os
import re
import zipfile
from pathlib import Path

from odn.errors import OdnError
from odn.runtimes.parts import EXPORT_BATCH, Export, Runtime, Session, cannot_express, torch_session

_FILE = "model.pt2"
# Everything else that such an archive can hold may run code when it is loaded.
_HARMLESS = re.compile(
    r"[^/]+/(archive_format|archive_version|version|byteorder|\.data/(version|serialization_id)|\.format_version"
    r"|models/model\.json|data/(weights|constants)/(model_\w+\.json|weight_\d+|tensor_\d+)"
    r"|data/sample_inputs/model\.pt)"
)


def _write(export: Export, directory: Path) -> None:
    import torch

    inputs = torch.from_numpy(export.calibration[:EXPORT_BATCH])
    batch = ({0: torch.export.Dim("batch", min=1)},)
    try:
        program = torch.export.export(export.network, (inputs,), dynamic_shapes=batch)
    except Exception as error:
        raise cannot_express("pt2", error) from error
    torch.export.save(program, directory / _FILE)


def _open(directory: Path, threads: int) -> Session:
    path = directory / _FILE
    # torch.export.load may unpickle; this makes every torch.load in it read weights alone.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with zipfile.ZipFile(path) as archive:
            odd = [name for name in archive.namelist() if not _HARMLESS.fullmatch(name)]
    except (OSError, zipfile.BadZipFile) as error:
        raise OdnError(f"{path} is damaged ({error}); export the network again") from error
    if odd:
        raise OdnError(f"{path} holds '{odd[0]}', which may run code; export the network again")
    import torch

    return torch_session(torch.export.load(path).module(), threads)


RUNTIME = Runtime(
    name="pt2", engine="torch.export", files=(_FILE,), extra=None, needs=(), write=_write, open=_open, texts=True
)
