"""Bodies of requests: read under limits, unpacked under the same, and read as JSON."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any, Final

from starlette.types import Receive

from onnxplain.errors import Cancelled, InputError
from onnxplain.server.http.errors import TooLarge, UnknownMediaType
from onnxplain.server.memory_ledger import Booking

JSON_GROWTH = 8  # bytes of Python's objects for one of JSON with numbers in it
JSON_SHARE = 4  # so a fourth of the bytes that are taken otherwise
HEAD_LENGTH = "inference-header-content-length"  # bytes of JSON in front of binary data
WINDOW: Final = zlib.MAX_WBITS | 32  # gzip's header or zlib's
PIECE = 1 << 20  # bytes unpacked at a time: each is booked before there is more
BEGINS: Final = re.compile(rb"[ \t\r\n]*[{\[]")  # what may have numbers in it, as JSON


async def read_body(
    receive: Receive, headers: Mapping[str, str], most: int, held: Booking, headed: bool = False
) -> bytes:
    """The whole body, unpacked; the caller bounds the time. most: bytes, before and after unpacking. held: grows.

    headed: HEAD_LENGTH says how much of it is JSON.
    """
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
        if part:
            held.grow(len(part))
            parts.append(part)
        if not message.get("more_body"):
            break
    body = b"".join(parts)
    if packing:
        body = await asyncio.to_thread(_unpacked, body, most, held)
    if BEGINS.match(body):
        head = headers.get(HEAD_LENGTH, "") if headed else ""
        size = int(head) if head.isascii() and head.isdecimal() and len(head) < 19 else len(body)
        held.grow(JSON_GROWTH * min(size, len(body)))
    return body


def _packing(headers: Mapping[str, str]) -> bool:
    """Whether the body is packed. Raises UnknownMediaType for what nobody here unpacks."""
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity", "gzip", "deflate"):
        raise UnknownMediaType(f"content-encoding {coding[:40]!r}: gzip, deflate or none.").at("content-encoding")
    return coding in ("gzip", "deflate")


def _unpacked(body: bytes, most: int, held: Booking) -> bytes:
    """What was packed by gzip or deflate, if it is no more than `most` bytes. held: grows with it."""
    unpacking = zlib.decompressobj(WINDOW)
    parts: list[bytes] = []
    size, at, packed = 0, 0, b""
    while not unpacking.eof:
        if not packed:
            packed, at = body[at : at + PIECE], at + PIECE
        try:
            part = unpacking.decompress(packed, PIECE)
        except zlib.error as error:
            raise InputError(f"the body is not what content-encoding says ({error}).").at("content-encoding") from error
        packed = unpacking.unconsumed_tail
        size += len(part)
        if size > most:
            raise _too_large(most)
        if not part and not packed and at >= len(body):
            break
        held.grow(len(part))
        parts.append(part)
    if not unpacking.eof or unpacking.unused_data or at < len(body):
        what = "has more behind its end" if unpacking.eof else "is cut short"
        raise InputError(f"the packed body {what}.").at("content-encoding")
    return b"".join(parts)


def read_json(body: bytes | memoryview, most: int) -> Any:
    """A body of JSON, in UTF-8. NaN, Infinity and -Infinity, which Python's clients write, become strings."""
    if len(body) > most // JSON_SHARE:
        raise TooLarge(
            f"{len(body)} bytes of JSON, at most {most // JSON_SHARE} are taken (a quarter of --max-message-bytes): "
            "send tensors as binary data (binary_data_size), or over gRPC."
        )
    try:
        return json.loads(str(body, "utf-8"), parse_constant=str, object_pairs_hook=_object)
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
