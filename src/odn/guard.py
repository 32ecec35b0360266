"""What stands between the network and clients: limits on size, time and number of requests. No torch here."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from odn.config import require

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes on.

    Attributes:
        request_bytes: largest body of a request.
        images: most images in one request.
        pixels: largest image, in pixels, judged by its header before it is decoded.
        queue: images that may wait for the network.
        requests: that may be answered at the same time.
        seconds: for a request to arrive whole, and again for it to be answered.
    """

    request_bytes: int = 16 * 1024**2
    images: int = 64
    pixels: int = 25_000_000
    queue: int = 1024
    requests: int = 256
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("request_bytes", "images", "pixels", "queue", "requests"):
            require(getattr(self, name) >= 1, f"the limit on {name} is {getattr(self, name)}; allowed: 1 or more")
        require(self.seconds > 0, f"the limit on seconds is {self.seconds}; allowed: above 0")


class Refused(Exception):
    """A request that is not answered with a prediction.

    Attributes:
        status: of HTTP.
        code: a word for programs.
        message: a sentence for people.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


@final
class Guard:
    """Holds every request to the limits before the application sees it.

    Args:
        app: the application.
        limits: as above.
        hosts: names under which the server may be addressed; none means any. A page on the web that makes a browser
            resolve its own name to this machine is thus refused.
    """

    def __init__(self, app: "ASGIApp", limits: Limits, hosts: Sequence[str] = ()) -> None:
        self.app, self.limits, self.hosts = app, limits, hosts
        self.active = 0

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def sending(message: "Message") -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = {name.lower() for name, _ in message["headers"]}
                extra = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in given]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        incoming = _Incoming(receive, self.limits)
        self.active += 1
        try:
            self._check(scope)
            async with asyncio.timeout(2 * self.limits.seconds):
                await self.app(scope, incoming.receive, sending)
        except Refused as refused:
            if refused.status == 413:
                await incoming.drain()
            await refusal(refused)(scope, receive, sending)
        except TimeoutError:
            if not started:
                await refusal(Refused(503, "timeout", "the answer took too long; try again"))(scope, receive, sending)
        finally:
            self.active -= 1

    def _check(self, scope: "Scope") -> None:
        if self.active > self.limits.requests:
            raise Refused(503, "overloaded", f"{self.limits.requests} requests are being answered; try again")
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].strip("[]").lower()
        if self.hosts and host not in self.hosts:
            raise Refused(421, "wrong_host", f"this server answers to {', '.join(self.hosts)} alone")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.limits.request_bytes:
            raise _too_large(self.limits)


@final
class _Incoming:
    """The body of a request: bounded in size and in time."""

    def __init__(self, receive: "Receive", limits: Limits) -> None:
        self._receive, self.limits = receive, limits
        self.size, self.whole = 0, False
        self.deadline = asyncio.get_running_loop().time() + limits.seconds

    async def receive(self) -> "Message":
        if self.whole:  # what comes now is the news that the client has gone
            return await self._receive()
        try:
            async with asyncio.timeout_at(self.deadline):
                message = await self._receive()
        except TimeoutError as error:
            seconds = f"{self.limits.seconds:g} seconds"
            raise Refused(408, "too_slow", f"the request did not arrive within {seconds}") from error
        self.size += len(message.get("body", b""))
        self.whole = not message.get("more_body", False)
        if self.size > self.limits.request_bytes:
            raise _too_large(self.limits)
        return message

    async def drain(self) -> None:
        """Let the client finish within reason: many do not look for an answer before they have sent everything."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(2.0, self.limits.seconds)):
                while not self.whole and self.size < 4 * self.limits.request_bytes:
                    message = await self._receive()
                    self.size += len(message.get("body", b""))
                    self.whole = not message.get("more_body", False)


def _too_large(limits: Limits) -> Refused:
    return Refused(413, "request_too_large", f"allowed: requests of up to {limits.request_bytes:,} bytes")


def refusal(refused: Refused) -> "ASGIApp":
    """Put a refusal into an answer.

    Args:
        refused: why.

    Returns:
        The answer: JSON with ``error.status``, ``error.code`` and ``error.message``.
    """
    from starlette.responses import JSONResponse

    headers = {"retry-after": "1"} if refused.status == 503 else {}
    if refused.status in (408, 413):
        headers["connection"] = "close"  # the rest of the request is not read
    error = {"status": refused.status, "code": refused.code, "message": refused.message}
    return JSONResponse({"error": error}, status_code=refused.status, headers=headers)
