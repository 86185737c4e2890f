"""Bodies of requests: read under limits, unpacked under the same, and read as JSON."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from starlette.types import Receive

from onnxplain.errors import Busy, Cancelled, InputError
from onnxplain.server.http.errors import TooLarge, UnknownMediaType

JSON_SHARE = 4  # numbers as JSON take some eight times their text as Python's objects: so much less of it is taken
WINDOW: Final = zlib.MAX_WBITS | 32  # gzip's header or zlib's


class BodyBudget:
    """Bytes of all bodies that are held at a time, so that many that come slowly do not fill the memory."""

    def __init__(self, most: int):
        self.most, self.held = most, 0

    @contextmanager
    def share(self) -> Iterator[BodyShare]:
        """One request's part, given back at the end."""
        share = BodyShare(self)
        try:
            yield share
        finally:
            share.take(-share.bytes)


class BodyShare:
    """What one request holds of the budget."""

    def __init__(self, budget: BodyBudget):
        self._budget, self.bytes = budget, 0

    def take(self, more: int) -> None:
        """Hold so many bytes more. Raises Busy where the budget is used up."""
        if more > 0 and self._budget.held + more > self._budget.most:
            raise Busy("requests that are being received fill this server's memory for them. Try again.", 1.0)
        self._budget.held += more
        self.bytes += more


async def read_body(receive: Receive, headers: Mapping[str, str], most: int, share: BodyShare) -> bytes:
    """The whole body, unpacked. most: bytes, before and after unpacking. The caller bounds the time."""
    length = headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and (len(length) > 18 or int(length) > most):
        raise _too_large(most)
    packing = _packing(headers)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client went away before its request was complete.")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > most:
            raise _too_large(most)
        share.take(len(part))
        if part:
            parts.append(part)
        if not message.get("more_body"):
            break
    body = b"".join(parts)
    if packing:
        body = await asyncio.to_thread(_unpacked, body, most)
        share.take(len(body))
    return body


def _packing(headers: Mapping[str, str]) -> bool:
    """Whether the body is packed. Raises UnknownMediaType for what nobody here unpacks."""
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity", "gzip", "deflate"):
        raise UnknownMediaType(f"content-encoding {coding[:40]!r}: gzip, deflate or none.").at("content-encoding")
    return coding in ("gzip", "deflate")


def _unpacked(body: bytes, most: int) -> bytes:
    """What was packed by gzip or deflate, if it is no more than `most` bytes."""
    unpacking = zlib.decompressobj(WINDOW)
    try:
        plain = unpacking.decompress(body, most + 1)
    except zlib.error as error:
        raise InputError(f"the body is not what content-encoding says ({error}).").at("content-encoding") from error
    if len(plain) > most:
        raise _too_large(most)
    if not unpacking.eof or unpacking.unused_data:
        what = "has more behind its end" if unpacking.eof else "is cut short"
        raise InputError(f"the packed body {what}.").at("content-encoding")
    return plain


def read_json(body: bytes | memoryview, most: int) -> Any:
    """A body of JSON. NaN, Infinity and -Infinity, which Python's clients write, become these words as strings."""
    if len(body) > most // JSON_SHARE:
        raise TooLarge(
            f"{len(body)} bytes of JSON, at most {most // JSON_SHARE} are taken (a quarter of --max-message-bytes): "
            "send tensors as binary data (binary_data_size), or over gRPC."
        )
    try:
        return json.loads(bytes(body), parse_constant=str, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"the body is not JSON: {why}.") from error


def json_object(body: bytes | memoryview, most: int) -> dict[str, Any]:
    """A body that is one JSON object; an empty one is {}."""
    found = read_json(body, most) if len(body) else {}
    if not isinstance(found, dict):
        raise InputError(f"the body is {kind_of(found)}, expected an object.")
    return found


def kind_of(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "an array"}
    return "null" if value is None else kinds.get(type(value), "an object")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:100]!r} is given twice in one object")
    return found


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"the body is larger than {most} bytes, this server's --max-message-bytes.")
