"""The last resort against a client that reads nothing: its connection is closed."""

from __future__ import annotations

import logging
import os
import socket
import stat
from contextlib import suppress
from urllib.parse import unquote

from onnxplain.server.telemetry.logs import event

LOG = logging.getLogger("onnxplain.server")
LAST_WORD = 5.0  # seconds for a status to be read, once its call has ended
FILES = "/dev/fd"  # a folder with an entry for each open file of this process, on Linux and macOS


def hang_up(peer: str) -> None:
    """Close the connection of a peer, as gRPC names it: "ipv4:127.0.0.1:1234", "ipv6:%5B::1%5D:1234".

    gRPC gives a server no way to end one call whose reply is stuck in flow control: it would hold the reply for as long
    as its client keeps the connection.
    """
    kind, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return
    for name in os.listdir(FILES):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if _named(connection) == (host.strip("[]"), int(port)):
                    event(LOG, logging.WARNING, "hung up", peer=peer, reason="it reads nothing of a reply")
                    connection.shutdown(socket.SHUT_RDWR)


def _named(connection: socket.socket) -> tuple[str, int] | None:
    """The other end's address and port; IPv4 as such where a socket of IPv6 carries it. None: of another family."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    host, port = connection.getpeername()[:2]
    return str(host).removeprefix("::ffff:"), int(port)
