"""A connection that cannot be held for nothing: limits that uvicorn leaves to a proxy in front."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 512  # open at a time; each is a file, and as many as gRPC's and the models' must stay free
HEAD_SECONDS = 10.0  # for the head of a request, from its first byte or the connection's; and for what nobody reads
HEAD_BYTES = 32 * 1024
KEEP_ALIVE_SECONDS = 75  # longer than balancers keep idle connections, so that they end them and not we
UNREAD_SECONDS = 30  # that a peer may leave sent bytes unread
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b'content-length: 72\r\n\r\n{"error": "too many connections. Try again.", "code": "UNAVAILABLE"}    '
)


class HttpConnection(H11Protocol):
    """uvicorn's connection, bounded in number, and in time while no request is being answered."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take it, unless there are too many."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
        if len(self.connections) > CONNECTIONS:
            transport.write(FULL)
            transport.close()
            return
        raw: socket.socket | None = transport.get_extra_info("socket")
        if raw is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
        self._bound()

    def data_received(self, data: bytes) -> None:
        """Let uvicorn read, then see whether this is still getting somewhere."""
        if not self.transport.is_closing():
            super().data_received(data)
            self._bound()

    def on_response_complete(self) -> None:
        """The answer is out; what comes now is another request, or a body that nobody reads."""
        super().on_response_complete()
        self._bound()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._unbound()
        super().connection_lost(exc)

    def _bound(self) -> None:
        """Time runs while no request is being answered and one has begun to come, or the first is due."""
        answering = self.cycle is not None and not self.cycle.response_complete
        between = self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if answering or between or self.transport.is_closing():  # between two, uvicorn's keep-alive time runs
            self._unbound()
        elif self._limit is None:
            self._limit = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _unbound(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
