"""A receiver of MLflow's webhooks: a signed hint that something changed, and nothing more. Polling is the truth."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from onnxplain.errors import Unavailable, UsageError

TOLERANCE = 300  # seconds between the sender's clock and ours
SECONDS = 5.0  # for one request, from its first byte to the answer
BODY = 256 * 1024  # bytes; MLflow sends a few hundred
HEAD = 16 * 1024  # bytes of request line and headers
AT_ONCE = 16  # connections
REMEMBERED = 4096  # delivery ids
SIGNATURE, DELIVERY, TIMESTAMP = "x-mlflow-signature", "x-mlflow-delivery-id", "x-mlflow-timestamp"
REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    503: "Service Unavailable",
}


class DeliveryRefused(Exception):
    """A request that is not believed; code: of the HTTP answer."""

    def __init__(self, code: int):
        super().__init__(REASONS[code])
        self.code = code


class Webhooks:
    """Believes a delivery that is signed with the secret, recent and new; `accept` says so.

    secret: as given to MLflow's `create_webhook`. clock: seconds since 1970.
    """

    def __init__(self, secret: str, clock: Callable[[], float] = time.time):
        if not secret:
            raise UsageError("webhooks need a secret: give the one that MLflow's create_webhook was given.")
        self._secret, self._clock = secret.encode(), clock
        self._seen: OrderedDict[str, None] = OrderedDict()

    def accept(self, headers: Mapping[str, str], body: bytes) -> bool:
        """True for a new delivery, False for one seen before. headers: by lower-case name. Raises DeliveryRefused."""
        delivery, timestamp = headers.get(DELIVERY, ""), headers.get(TIMESTAMP, "")
        if not hmac.compare_digest(self.signature(delivery, timestamp, body), headers.get(SIGNATURE, "").encode()):
            raise DeliveryRefused(401)
        recent = timestamp.isdecimal() and len(timestamp) < 16 and abs(self._clock() - int(timestamp)) <= TOLERANCE
        if not delivery or not recent:
            raise DeliveryRefused(401)
        if delivery in self._seen:
            return False
        self._seen[delivery] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return True

    def signature(self, delivery: str, timestamp: str, body: bytes) -> bytes:
        """`v1,<base64(HMAC-SHA256(secret, "<delivery>.<timestamp>.<body>"))>`."""
        signed = b".".join([delivery.encode(), timestamp.encode(), body])
        return b"v1," + base64.b64encode(hmac.new(self._secret, signed, hashlib.sha256).digest())


class WebhookReceiver:
    """A small HTTP server that calls `wake` on every new authentic delivery: `POST <path>`.

    It runs in the event loop that calls `start`. wake: takes nothing, returns at once. MLflow itself only calls https
    addresses; put what ends TLS in front.
    """

    def __init__(
        self, secret: str, wake: Callable[[], None], host: str = "127.0.0.1", port: int = 0, path: str = "/mlflow"
    ):
        self.webhooks, self.host, self.port, self.path = Webhooks(secret), host, port, path
        self._wake = wake
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self) -> int:
        """Listen; returns the port. Raises Unavailable."""
        try:
            self._server = await asyncio.start_server(self._serve, self.host, self.port, limit=HEAD)
        except OSError as error:
            raise Unavailable(
                f"webhooks: cannot listen on {self.host}:{self.port} ({error.strerror or error}). Choose another port."
            ) from error
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    async def stop(self) -> None:
        """Close the port; requests that run get their answer."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            code = 503 if self._open > AT_ONCE else await self._answer(reader)
            writer.write(f"HTTP/1.1 {code} {REASONS[code]}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            async with asyncio.timeout(SECONDS):
                await writer.drain()
        except (OSError, TimeoutError):
            pass  # the sender went away
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader) -> int:
        try:
            async with asyncio.timeout(SECONDS):
                if self.webhooks.accept(*await self._read(reader)):
                    self._wake()
                return 200
        except DeliveryRefused as refused:
            return refused.code
        except TimeoutError:
            return 408
        except (asyncio.IncompleteReadError, ValueError):
            return 400

    async def _read(self, reader: asyncio.StreamReader) -> tuple[dict[str, str], bytes]:
        """Headers by lower-case name, and the body."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.LimitOverrunError as error:
            raise DeliveryRefused(413) from error
        first, *lines = head[:-4].split("\r\n")
        verb, target, _ = f"{first}  ".split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if target.partition("?")[0] != self.path:
            raise DeliveryRefused(404)
        if verb != "POST":
            raise DeliveryRefused(405)
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdecimal()) or "transfer-encoding" in headers:
            raise DeliveryRefused(411)
        if len(length) > 9 or int(length) > BODY:
            raise DeliveryRefused(413)
        return headers, await reader.readexactly(int(length))
