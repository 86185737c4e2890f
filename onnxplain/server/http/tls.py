"""TLS of the HTTP port: the certificate of the gRPC port, replaced while the server runs."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxplain.server.rpc.tls import Rotation

LOG = logging.getLogger(__name__)


def server_context(cert: Path, key: Path, ca: Path | None = None) -> ssl.SSLContext:
    """A context that follows its files. ca: clients must show a certificate that it signed.

    Raises InputError for files that are missing, do not belong together or are out of date. Each handshake looks at the
    files; connections that are open keep what they began with.
    """
    rotation = Rotation(cert, key, ca)
    newest = [_context(cert, key, ca)]

    def choose(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
        if rotation.newer() is not None:
            try:
                newest[0] = _context(cert, key, ca)
            except (OSError, ssl.SSLError) as error:  # replaced again meanwhile: the next handshake looks anew
                LOG.warning("the TLS certificate of the HTTP port stays as it was: %s", error)
        connection.context = newest[0]

    listening = _context(cert, key, ca)
    listening.sni_callback = choose  # called for clients that name no server too
    return listening


def peer_names(transport: Any) -> Sequence[str]:
    """The subject alternative names of the client's certificate; () without one."""
    connection = None if transport is None else transport.get_extra_info("ssl_object")
    shown: Any = None if connection is None else connection.getpeercert()
    return tuple(str(name) for _, name in (shown or {}).get("subjectAltName", ()))


def _context(cert: Path, key: Path, ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(cert, key, password=lambda: "")
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ca)
    return context
