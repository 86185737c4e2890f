"""The HTTP port: uvicorn in the event loop of the gRPC server, with its limits, its TLS and its end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from onnxplain.errors import InputError
from onnxplain.server.guard import Guard
from onnxplain.server.http.application import application
from onnxplain.server.http.connection import HEAD_BYTES, HEAD_SECONDS, KEEP_ALIVE_SECONDS, HttpConnection
from onnxplain.server.http.endpoint import Doors
from onnxplain.server.http.services import THREADS, Services
from onnxplain.server.http.tls import server_context
from onnxplain.server.memory_ledger import MemoryLedger
from onnxplain.server.models.repository import ModelRepository
from onnxplain.server.options import ServerOptions
from onnxplain.server.rpc.explainer_service import ExplainerService
from onnxplain.server.rpc.inference_service import InferenceService
from onnxplain.server.telemetry.logs import event

LOG = logging.getLogger("onnxplain.server")
BACKLOG = 512
SOON = 0.5  # seconds that calls which are cut off have to say so


class HttpServer:
    """REST over the models of a repository, behind the same guard as gRPC. Does nothing where http_port is None."""

    def __init__(
        self,
        options: ServerOptions,
        guard: Guard,
        repository: ModelRepository,
        memory: MemoryLedger,
        roots: Sequence[str | Path] = (),
    ):
        self.port = 0
        self._options = options
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="onnxplain-http")
        inference = InferenceService(repository, options.max_request_seconds, memory)
        services = Services(inference, ExplainerService(repository, options, memory), self._threads, memory)
        doors = Doors(
            guard,
            memory,
            options.max_message_bytes,
            options.max_request_seconds,
            roots,
            frozenset(options.http_cors),
        )
        self._application = partial(application, services, doors)
        self._server: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind and answer. Raises InputError where the port is taken."""
        options = self._options
        if options.http_port is None or options.socket is not None:
            return
        listening = _listen(options.host, options.http_port)
        self.port = listening.getsockname()[1]
        cert, key, ca = options.tls_cert, options.tls_key, options.tls_ca
        secure = None if cert is None or key is None else (lambda *_: server_context(cert, key, ca))
        config = uvicorn.Config(
            self._application(), http=HttpConnection, ws="none", lifespan="off", interface="asgi3", log_config=None,
            log_level="error", access_log=False, proxy_headers=False, server_header=False, backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS, h11_max_incomplete_event_size=HEAD_BYTES,
            ssl_context_factory=secure,
        )  # fmt: skip
        config.load()
        self._server = _Uvicorn(config, options.max_connections)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        began = asyncio.create_task(self._server.began.wait())
        await asyncio.wait({self._serving, began}, return_when=asyncio.FIRST_COMPLETED)
        began.cancel()
        if self._serving.done():
            self._serving.result()  # raises why it did not begin
        event(LOG, logging.INFO, "http", address=f"{options.host}:{self.port}", tls=secure is not None)

    @property
    def connections(self) -> int:
        """Open now."""
        return 0 if self._server is None else len(self._server.server_state.connections)

    async def stop(self, grace: float) -> None:
        """Take no more connections, give requests so many seconds to end, cut the rest off. 0 ends a stop at once."""
        server, serving = self._server, self._serving
        if server is not None and serving is not None:
            server.end(grace)
            await asyncio.wait({serving})
            for connection in list(server.server_state.connections):
                connection.transport.abort()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, and with a time limit for TLS handshakes. most: connections."""

    def __init__(self, config: uvicorn.Config, most: int):
        super().__init__(config)
        self._most = most
        self.began = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the whole server's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the sockets."""
        await self.lifespan.startup()
        loop, config = asyncio.get_running_loop(), self.config

        def connection() -> Any:
            made = HttpConnection(config, self.server_state, self.lifespan.state, loop)
            made.most = self._most
            return made

        self.servers = [
            await loop.create_server(
                connection, sock=listening, ssl=config.ssl, backlog=config.backlog,
                ssl_handshake_timeout=HEAD_SECONDS if config.ssl else None,
            )
            for listening in sockets or ()
        ]  # fmt: skip
        self.started = True
        self.began.set()

    def end(self, grace: float) -> None:
        """Begin to stop; again with a shorter grace: stop sooner."""
        self.should_exit = True
        self.config.timeout_graceful_shutdown = max(grace, SOON)  # type: ignore[assignment]  # a float will do
        if not grace:
            self.force_exit = True
            for task in self.server_state.tasks:
                task.cancel()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound. Raises InputError with what to do instead."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        # By its protocol's number asyncio knows it as TCP, and sends small answers at once: else each takes 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and host in ("", "::"):
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port} for HTTP ({error.strerror}). Choose another --http-port, or 0 for none."
        ) from error
    listening.setblocking(False)
    return listening
