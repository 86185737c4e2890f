"""What an endpoint answers, and its way to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope, Send

JSON = "application/json"
PIECE = 256 * 1024  # bytes handed to the connection at a time: a reader that stops is noticed between two
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


@dataclass(frozen=True)
class Reply:
    """One answer. headers: in lower case, beside those of every answer; they win over these."""

    body: bytes
    status: int = 200
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


async def deliver(reply: Reply, scope: Scope, send: Send, request_id: str, seconds: float) -> None:
    """Send an answer; a client that does not take it within so many seconds is cut off."""
    headers = {**HEADERS, "content-type": reply.media_type, "content-length": str(len(reply.body)), **reply.headers}
    if request_id:
        headers["x-request-id"] = request_id
    raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    try:
        async with asyncio.timeout(seconds):
            await send({"type": "http.response.start", "status": reply.status, "headers": raw})
            rest = memoryview(reply.body)
            while len(rest) > PIECE:
                await send({"type": "http.response.body", "body": bytes(rest[:PIECE]), "more_body": True})
                rest = rest[PIECE:]
            await send({"type": "http.response.body", "body": bytes(rest)})
    except TimeoutError:
        transport: Any = scope.get("state", {}).get("transport")
        if transport is not None:
            transport.abort()
