"""GET /metrics: a listener of its own, by TLS and for a token where asked, with few connections and little patience."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from onnxplain.errors import InputError, OnnxplainError, Unauthenticated, Unavailable
from onnxplain.server.tokens import Tokens

LOG = logging.getLogger("onnxplain.server")
CONNECTIONS = 16  # at a time; those beyond are closed
SILENCE = 5.0  # seconds without a byte
SECONDS = 15.0  # for all of a connection
Admit = Callable[[Iterable[str]], None]
Pair = tuple[Path, Path, Path | None]  # certificate, key, authority of clients


def scrapers_token(tokens: Tokens) -> Admit:
    """Asks for a token with the scope `metrics` as long as the file has one; else anybody may read."""

    def admit(authorization: Iterable[str]) -> None:
        if tokens.grants("metrics"):
            tokens.caller(authorization).require("metrics")

    return admit


class MetricsEndpoint(ThreadingMixIn, WSGIServer):
    """Answers from a registry in threads. admit: raises an error of ours for a wrong `authorization` header.

    tls: files in PEM, read again when they change. Raises Unavailable where the port is taken, InputError for TLS files
    that are wrong.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, registry: CollectorRegistry, host: str, port: int, tls: Pair | None = None, admit: Admit | None = None
    ):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._tls, self._admit, self._stamp = tls, admit, _stamp(tls)
        self._context = None if tls is None else _context(tls)
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise Unavailable(
                f"the metrics cannot listen on {host}:{port} ({error}). Choose --metrics-port."
            ) from error
        self._app: Any = make_wsgi_app(registry)
        self.set_app(self._answer)
        self._thread = threading.Thread(target=self.serve_forever, name="onnxplain-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, connections included."""
        self.shutdown()
        self.server_close()
        self._thread.join()
        with self._lock:
            left = list(self._open)
        for connection in left:
            _hang_up(connection)

    def get_request(self) -> tuple[socket.socket, Any]:
        """A new connection; its handshake happens in its own thread."""
        connection, address = super().get_request()
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more."""
        with self._lock:
            room = len(self._open) < CONNECTIONS
            if room:
                self._open[request] = time.monotonic()
        return room

    def service_actions(self) -> None:
        """Twice a second: end who is slow, see whether the certificate is another one."""
        now = time.monotonic()
        with self._lock:
            late = [connection for connection, begun in self._open.items() if now - begun > SECONDS]
        for connection in late:
            _hang_up(connection)
        stamp = _stamp(self._tls)
        if self._tls is not None and stamp != self._stamp:
            self._stamp = stamp
            try:
                self._context = _context(self._tls)
            except InputError as error:
                LOG.warning("the metrics' TLS certificate stays as it was: %s", error)

    def shutdown_request(self, request: Any) -> None:
        """The connection has ended."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hangs up, or speaks no TLS, is no news."""
        LOG.debug("a connection for metrics failed", exc_info=True)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self._admit is not None:
            given = environ.get("HTTP_AUTHORIZATION")
            try:
                self._admit([] if given is None else [given])
            except OnnxplainError as error:
                status = "401 Unauthorized" if isinstance(error, Unauthenticated) else "403 Forbidden"
                start_response(status, [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")])
                return [f"{error}\n".encode()]
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer


class _Handler(WSGIRequestHandler):
    timeout = SILENCE

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not logged."""


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _context(tls: Pair) -> ssl.SSLContext:
    certificate, key, authority = tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
        if authority is not None:
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        raise InputError(f"{certificate}, {key}: no TLS pair for the metrics ({error}).") from error
    return context


def _stamp(tls: Pair | None) -> list[tuple[int, int] | None]:
    """Another value whenever one of the files was replaced or written."""
    stamps: list[tuple[int, int] | None] = []
    for file in tls or ():
        try:
            status = None if file is None else file.stat()
        except OSError:
            status = None
        stamps.append(None if status is None else (status.st_mtime_ns, status.st_ino))
    return stamps
