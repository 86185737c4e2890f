"""A gRPC call by hand over a socket, for what a gRPC library would not do: RFC 9113, as little of it as is needed."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from types import TracebackType
from typing import Self

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INITIAL_WINDOW = 4  # the setting's number
PIECE = 16_384  # bytes of a frame at most


class Connection:
    """One connection with one call on stream 1. window: bytes of answer that the server may send unasked."""

    def __init__(self, port: int, window: int = 65_535):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, window)))
        self._credit = 65_535  # bytes that we may send, until the server says otherwise
        self._read = b""
        self.trailers = b""

    def begin(self, path: str, size: int, encoding: str = "") -> Self:
        """Headers, and the prefix of a message of `size` bytes."""
        headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
        headers += [("te", "trailers"), ("content-type", "application/grpc")]
        headers += [("grpc-encoding", encoding)] if encoding else []
        self._socket.sendall(frame(HEADERS, END_HEADERS, 1, b"".join(literal(*pair) for pair in headers)))
        self._socket.sendall(frame(DATA, 0, 1, struct.pack(">BI", bool(encoding), size)))
        self._credit -= 5
        return self

    def send(self, content: bytes, last: bool = False) -> None:
        """Bytes of the message, as fast as the server takes them."""
        view = memoryview(content)
        until = time.monotonic() + 30
        while view and time.monotonic() < until:
            count = min(PIECE, self._credit, len(view))
            if count <= 0:
                if not self._frames(0.5):
                    return
                continue
            self._credit -= count
            done = last and count == len(view)
            self._socket.sendall(frame(DATA, END_STREAM if done else 0, 1, bytes(view[:count])))
            view = view[count:]

    def dribble(self, content: bytes) -> None:
        """Bytes of the message if the connection still stands."""
        with contextlib.suppress(OSError):
            self._socket.sendall(frame(DATA, 0, 1, content))

    def call(self, path: str, content: bytes, encoding: str = "", timeout: float = 30) -> str:
        """Send a message and read what the call ends with: the number of its status, "" if it was cut off."""
        with contextlib.suppress(OSError):
            self.begin(path, len(content), encoding).send(content, last=True)
        return self.end(timeout) or ""

    def end(self, timeout: float) -> str | None:
        """What the call ends with: the number of its status, "" if it was cut off, None if it has not ended in time."""
        until, cut_off = time.monotonic() + timeout, False
        while time.monotonic() < until and not cut_off and b"grpc-status" not in self.trailers:
            cut_off = not self._frames(0.2)
        _, found, rest = self.trailers.partition(b"grpc-status")
        if found:
            return rest[1 : 1 + (rest[0] & 0x7F)].decode("ascii", "replace")
        return "" if cut_off else None

    def close(self) -> None:
        """Hang up without a word."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _frames(self, seconds: float) -> bool:
        """Take in what has come; False when the connection has ended."""
        self._socket.settimeout(seconds)
        try:
            got = self._socket.recv(1 << 16)
        except TimeoutError:
            return True
        except OSError:
            return False
        self._read += got
        while len(self._read) >= 9:
            size = int.from_bytes(self._read[:3], "big")
            if len(self._read) < 9 + size:
                break
            kind, flags = self._read[3], self._read[4]
            stream = int.from_bytes(self._read[5:9], "big")
            payload, self._read = self._read[9 : 9 + size], self._read[9 + size :]
            if kind == HEADERS:
                self.trailers += payload
            elif kind == WINDOW_UPDATE and stream == 1:
                self._credit += int.from_bytes(payload, "big")
            elif kind == SETTINGS and not flags & ACK:
                for at in range(0, len(payload), 6):
                    name, value = struct.unpack_from(">HI", payload, at)
                    if name == INITIAL_WINDOW:
                        self._credit += value - 65_535
                self._socket.sendall(frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                self._socket.sendall(frame(PING, ACK, 0, payload))
            elif kind in (RST_STREAM, GOAWAY):
                return False
        return bool(got)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def literal(name: str, value: str) -> bytes:
    """A header as HPACK's literal without indexing, uncompressed."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
