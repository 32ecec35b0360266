"""What a served artifact does with a request: read its images, decode them, let the network classify them."""

import asyncio
import base64
import binascii
import contextlib
import io
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, final

import numpy as np

from odn.batching import Batcher, Overloaded
from odn.errors import UsageError
from odn.guard import Limits, Refused
from odn.images import BadImage, Pixels, Preprocessing, decode, image_warnings
from odn.manifest import Manifest, read_manifest
from odn.predicting import cpu_count
from odn.sessions import choose_runtime, open_answer

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_MAX_BATCH = 64
_STATUS = {"unknown": (415, "unknown_format"), "damaged": (422, "damaged_image"), "too large": (413, "image_too_large")}


@final
class Service:
    """The network, and how the bytes of a request become its input.

    Args:
        directory: the artifact.
        runtime: its name; None takes the first that the artifact has a file for.
        threads: to compute with; None takes one per processor.
        limits: on requests.
    """

    def __init__(self, directory: Path, runtime: str | None, threads: int | None, limits: Limits) -> None:
        self.manifest: Manifest = read_manifest(directory)
        if self.manifest.texts:
            raise UsageError(f"{directory} reads texts, odn serve answers with images alone; use odn predict --text")
        self.runtime = choose_runtime(self.manifest, runtime)
        self.limits = limits
        network = open_answer(directory, self.manifest, self.runtime, threads or cpu_count())
        self.batcher = Batcher(network, _MAX_BATCH, limits.queue)
        self.decoders = ThreadPoolExecutor(min(4, cpu_count()), thread_name_prefix="decode")

    @contextlib.asynccontextmanager
    async def life(self, _: "FastAPI") -> AsyncIterator[None]:
        """Work as long as the application lives.

        Yields:
            Nothing.
        """
        with image_warnings():
            self.batcher.start()
            yield
            await self.batcher.stop()
            self.decoders.shutdown()

    async def predict(self, files: Sequence[IO[bytes]]) -> list[dict[str, Any]]:
        """Classify the images of one request.

        Args:
            files: their encoded content.

        Returns:
            ``label``, ``probability`` and ``values`` of each; of a routed network ``depth``, at which the image left.

        Raises:
            Refused: when there are none or too many, one cannot be decoded, or too many images wait.
        """
        if not files:
            raise Refused(422, "no_image", "the request holds no image; send files=... or images=[base64, ...]")
        if len(files) > self.limits.images:
            raise Refused(413, "too_many_images", f"{len(files)} images; allowed: {self.limits.images} per request")
        images = await asyncio.get_running_loop().run_in_executor(self.decoders, self._decode, files)
        try:
            answered = await self.batcher.run(images)
        except Overloaded as error:
            raise Refused(503, "overloaded", f"{self.limits.queue} images are waiting; try again") from error
        return [
            {"label": p.label, "probability": p.probability, "values": dict(p.values)}
            | ({} if p.depth is None else {"depth": p.depth})
            for p in self.manifest.predictions(*answered)
        ]

    def _decode(self, files: Sequence[IO[bytes]]) -> Pixels:
        preprocessing = self.manifest.preprocessing
        assert isinstance(preprocessing, Preprocessing)
        shape = preprocessing.input_shape
        images = []
        for number, content in enumerate(files, 1):
            name = Path(f"image {number}")
            try:
                images.append(decode(name, shape, content=content, formats=_FORMATS, max_pixels=self.limits.pixels))
            except BadImage as error:
                status, code = _STATUS[error.fault]
                allowed = f"; allowed: {', '.join(_FORMATS)}" if status == 415 else ""
                raise Refused(status, code, f"{name} is not usable: {error.reason}{allowed}") from error
        return np.stack(images)

    def metadata(self) -> dict[str, Any]:
        """Describe the network, and what may be sent to it."""
        return {
            "labels": list(self.manifest.labels),
            "input_shape": list(self.manifest.preprocessing.input_shape),
            "runtime": self.runtime,
            "dataset": {"name": self.manifest.dataset.name, "train": self.manifest.dataset.train},
            "versions": self.manifest.versions,
            "limits": {
                "request_bytes": self.limits.request_bytes,
                "images": self.limits.images,
                "pixels": self.limits.pixels,
                "formats": list(_FORMATS),
            },
        }


@contextlib.asynccontextmanager
async def files_of_request(request: "Request", limits: Limits) -> AsyncIterator[list[IO[bytes]]]:
    """Find the images in a request.

    Args:
        request: a form with files, or JSON with base64 texts.
        limits: on their number.

    Yields:
        Their encoded content; temporary files are removed afterwards.

    Raises:
        Refused: when the request is of another type or damaged.
    """
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException

    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        yield _from_json(await request.body())
    elif kind == "multipart/form-data":
        try:
            form = await request.form(max_files=limits.images, max_fields=8)
        except HTTPException as error:
            status, code = (413, "too_many_images") if "Too many" in error.detail else (422, "damaged_form")
            raise Refused(status, code, f"{error.detail}") from error
        try:
            yield [part.file for _, part in form.multi_items() if isinstance(part, UploadFile)]
        finally:
            await form.close()
    else:
        raise Refused(
            415, "unknown_type", f"the content type is '{kind}'; allowed: multipart/form-data, application/json"
        )


def _from_json(body: bytes) -> list[IO[bytes]]:
    try:
        table = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(422, "damaged_json", "the body is not JSON") from error
    texts = table.get("images") if isinstance(table, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(422, "no_image", "the body must be an object with 'images', a list of base64 texts")
    try:
        return [io.BytesIO(base64.b64decode(text, validate=True)) for text in texts]
    except (binascii.Error, ValueError) as error:
        raise Refused(422, "damaged_base64", "an entry of 'images' is not base64") from error
