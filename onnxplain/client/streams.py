"""Streams: an explanation whose tensors are too large for one message, and a compiled graph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from onnxplain.client.errors import stream_error
from onnxplain.errors import InputError, Unavailable
from onnxplain.runtime.session import Array
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.chunks import INLINE, PIECE, Incoming, Outgoing

Progress = Callable[[str, int, int], object]
LIMIT = 1 << 36  # bytes of a reply's tensors: as many as fit in the memory of any client
ROOM = 1 << 16  # bytes of a message besides its tensors


def messages(
    request: v1.ExplainRequest, feeds: Mapping[str, Array], limit: int, progress: Progress | None
) -> Iterator[v1.ExplainStreamRequest]:
    """One explanation on a stream. request: without its inputs. limit: bytes that the server takes in one message."""
    outgoing = Outgoing(max(0, min(INLINE, limit) - ROOM))
    opening = v1.ExplainStreamRequest(request=request)
    for name, array in feeds.items():
        opening.request.inputs.append(outgoing.tensor(name, array))
    total = sum(t.chunked.byte_size for t in opening.request.inputs if t.WhichOneof("content") == "chunked")
    yield opening
    sent = 0
    for chunk in outgoing.chunks():
        yield v1.ExplainStreamRequest(chunk=chunk)
        sent += len(chunk.data)
        if progress is not None:
            progress("send", sent, total)


def streamed(size: int, limit: int) -> bool:
    """Whether so many bytes of tensors go through the stream; a server that takes no whole piece gets no pieces."""
    return size > min(INLINE, max(0, limit - ROOM)) and limit >= PIECE + ROOM


class OneReply:
    """Takes the replies of a stream with one request: progress, the response, its chunks."""

    def __init__(self, progress: Progress | None):
        self._progress = progress
        self._response: v1.ExplainResponse | None = None
        self._incoming: Incoming | None = None
        self._arrived = self._total = 0

    def take(self, message: v1.ExplainStreamResponse) -> None:
        """The next message."""
        kind = message.WhichOneof("message")
        if kind == "error":
            raise stream_error(message.error.code, message.error.text, message.error.field)
        if kind == "progress" and self._progress is not None:
            self._progress(message.progress.stage, message.progress.completed, message.progress.total)
        elif kind == "response":
            self._response = message.response
            self._incoming = Incoming(self._response, LIMIT)
        elif kind == "chunk":
            if self._incoming is None:
                raise InputError("the server sent a piece of a tensor before the response it belongs to.")
            self._incoming.add(message.chunk)
            self._arrived += len(message.chunk.data)
            if self._progress is not None:
                self._progress("receive", self._arrived, 0)

    def result(self) -> v1.ExplainResponse:
        """The response with its tensors."""
        if self._response is None or self._incoming is None:
            raise Unavailable("the stream ended without an answer; try again.")
        self._incoming.fill()
        return self._response


class OneFile:
    """Takes the replies of CompileGraph: what is coming, then the file in order."""

    def __init__(self, progress: Progress | None):
        self._progress = progress
        self._graph: v1.CompiledGraph | None = None
        self._data = bytearray()

    def take(self, message: Any) -> None:
        """The next message."""
        if message.WhichOneof("message") == "graph":
            self._graph = message.graph
            return
        if message.chunk.offset != len(self._data):
            raise InputError(f"the file came in disorder: byte {message.chunk.offset} behind {len(self._data)}.")
        self._data += message.chunk.data
        if self._progress is not None:
            self._progress("receive", len(self._data), self._graph.byte_size if self._graph else 0)

    def result(self) -> bytes:
        """The file, whose digest is right."""
        content = bytes(self._data)
        if self._graph is None or hashlib.sha256(content).hexdigest() != self._graph.graph_digest:
            raise InputError(f"the file arrived damaged: {len(content)} bytes have another digest. Ask again.")
        return content
