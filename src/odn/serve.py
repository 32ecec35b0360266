"""An artifact as a web service. It reads artifacts only, and imports no torch where the artifact has an ONNX file."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odn.errors import OdnError, require_extra
from odn.guard import Guard, Limits, Refused, refusal
from odn.service import Service, files_of_request
from odn.webpage import PAGE, PAGE_POLICY

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = logging.getLogger("odn")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_GRACE_SECONDS = 10
_KEEP_ALIVE_SECONDS = 20  # longer than clients keep theirs, or they would be cut off while they ask again
_REQUEST = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["files"],
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}}},
                    "required": ["images"],
                }
            },
        },
    }
}


def build_app(
    directory: str | Path,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    limits: Limits | None = None,
    hosts: Sequence[str] = (),
) -> "FastAPI":
    """Make the web application of an artifact.

    Args:
        directory: the artifact.
        runtime: ``onnx``, ``int8`` or ``torch``; None takes the first that the artifact has a file for.
        threads: to compute with; None takes one per processor.
        limits: on requests; None takes the defaults.
        hosts: names under which the server may be addressed; none means any.

    Returns:
        An ASGI application with ``/predict``, ``/healthz``, ``/metadata``, ``/openapi.json`` and a page at ``/``.
    """
    for module in ("fastapi", "python_multipart"):
        require_extra(module, "serve", "odn serve")
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    limits = limits or Limits()
    service = Service(Path(directory), runtime, threads, limits)
    app = FastAPI(
        title="odn",
        version=service.manifest.versions["odn"],
        lifespan=service.life,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Guard, limits=limits, hosts=hosts)

    async def predict(request: Request) -> Any:
        async with files_of_request(request, limits) as files:
            return JSONResponse({"predictions": await service.predict(files)})

    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    async def metadata() -> dict[str, Any]:
        return service.metadata()

    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers={"content-security-policy": PAGE_POLICY})

    app.post("/predict", summary="Classify images", openapi_extra=_REQUEST)(predict)
    app.get("/healthz", summary="Tell that the server is up")(healthz)
    app.get("/metadata", summary="Describe the network")(metadata)
    app.get("/", include_in_schema=False, response_model=None)(page)

    async def failed(request: Any, error: Exception) -> Any:
        if isinstance(error, HTTPException):
            return refusal(Refused(error.status_code, "http", str(error.detail)))
        if isinstance(error, ClientDisconnect):
            return refusal(Refused(400, "gone", "the request was not complete"))
        _log.error("an answer failed: %s: %s", type(error).__name__, error)
        return refusal(Refused(500, "internal", "the server failed; its log says why"))

    for kind in (HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, failed)
    return app


def serve(
    directory: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    runtime: str | None = None,
    threads: int | None = None,
    limits: Limits | None = None,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve an artifact until SIGINT or SIGTERM; requests that are being answered then are finished.

    Args:
        directory: the artifact.
        host: address to listen on; anything but loopback can be reached by others.
        port: to listen on; 0 takes a free one.
        runtime: ``onnx``, ``int8`` or ``torch``; None takes the first that the artifact has a file for.
        threads: to compute with; None takes one per processor.
        limits: on requests; None takes the defaults.
        ready: told the address once connections are accepted.

    Raises:
        OdnError: when the address cannot be listened on.
    """
    uvicorn = require_extra("uvicorn", "serve", "odn serve")
    limits = limits or Limits()
    local = host in _LOOPBACK
    app = build_app(directory, runtime=runtime, threads=threads, limits=limits, hosts=_LOOPBACK if local else ())
    if not local:
        _log.warning("%s can be reached by others, and nobody is asked for a password", host)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise OdnError(f"cannot listen on {host}:{port} ({error}); choose another --host or --port") from error
    config = uvicorn.Config(
        app,
        http=_protocol(limits.seconds),
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=4 * limits.requests + 1024,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    # The server raises the signal that ended it once more when it has stopped; by then it has had its effect.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with listening:
            port = listening.getsockname()[1]
            ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with a limit on how long the head of a request may take; it has none of its own."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Patient(H11Protocol):
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.timer = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.timer is not None and self.conn.their_state is not h11.IDLE:
                self.timer.cancel()
                self.timer = None
            elif self.timer is None and self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
                self.timer = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.timer is not None:
                self.timer.cancel()
            super().connection_lost(exc)

    return Patient
