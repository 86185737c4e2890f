"""The bytes of a model file without its large weights: protobuf need not hold what is only passed on.

A walk over the wire format, field by field: model, graph, initializer. What it does not know it leaves as it is, so
that protobuf judges it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnxplain.graph.weight_files import CHUNK, Store

LARGE = 1 << 14  # bytes; smaller weights stay inside, because checks and inference look at them
MANY = 200_000  # fields of one message; what is behind them is left to protobuf, which is faster
GRAPH, INITIALIZER = 7, 5  # fields of a model, of a graph
DIMS, DATA_TYPE, FLOATS, NAME, RAW, DOUBLES, DOC, EXTERNAL_DATA, LOCATION, PROPERTIES = (
    1,
    2,
    4,
    8,
    9,
    10,
    12,
    13,
    14,
    16,
)
PAYLOAD = {RAW: None, FLOATS: 1, DOUBLES: 11}  # field -> the type whose packed numbers are the bytes of raw data
NATIVE = {1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13}  # types that numpy has as ONNX stores them
PLAIN = {DIMS, DATA_TYPE, NAME, DOC, PROPERTIES}  # what a tensor may have besides
BYTES = 2  # the wire type of strings, messages and packed numbers


class Strange(Exception):
    """Not the wire format, or not as anybody writes it."""


@dataclass(frozen=True)
class Field:
    """One field of a message: where it begins, where its content does (its length said before it), where it ends."""

    number: int
    kind: int
    start: int
    body: int
    end: int


class Bytes:
    """A store read through a window."""

    def __init__(self, store: Store):
        self._store = store
        self._start, self._window = 0, b""

    def take(self, start: int, end: int) -> bytes:
        """The bytes between two places."""
        if end - start > CHUNK:
            return self._store.take(start, end)
        if not self._start <= start <= end <= self._start + len(self._window):
            self._start, self._window = start, self._store.take(start, min(start + CHUNK, self._store.size))
        return self._window[start - self._start : end - self._start]

    def varint(self, place: int, end: int) -> tuple[int, int]:
        """A number, and where it ends."""
        content = self.take(place, min(place + 10, end))
        number = 0
        for i, byte in enumerate(content):
            number |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                return number, place + i + 1
        raise Strange

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of a message. Raises Strange, also for more of them than any model has that is not refused."""
        place, count = start, 0
        while place < end:
            count += 1
            if count > MANY:
                raise Strange
            tag, body = self.varint(place, end)
            number, kind = tag >> 3, tag & 7
            if kind == BYTES:
                length, body = self.varint(body, end)
                after = body + length
            elif kind == 0:
                after = self.varint(body, end)[1]
            elif kind in (1, 5):
                after = body + (8 if kind == 1 else 4)
            else:
                raise Strange
            if after > end or not number:
                raise Strange
            yield Field(number, kind, place, body, after)
            place = after


def weightless(store: Store, mark: str) -> bytes:
    """The model's bytes, each large initializer of its graph declared as external data at the location `mark`.

    Offset and length of a declared one are its bytes in the store.
    """
    return b"".join(_message(Bytes(store), 0, store.size, (GRAPH, INITIALIZER), mark))


def _message(data: Bytes, start: int, end: int, path: tuple[int, ...], mark: str) -> list[bytes]:
    """A message, the large weights down the path of fields replaced. What is strange is copied up to the end."""
    if not path:
        try:
            return [_declared(data, start, end, mark)]
        except Strange:
            return [data.take(start, end)]
    parts: list[bytes] = []
    copied = start
    try:
        for field in data.fields(start, end):
            if field.number == path[0] and field.kind == BYTES and field.end - field.body > LARGE:
                inner = _message(data, field.body, field.end, path[1:], mark)
                parts.append(data.take(copied, field.start))
                parts += [opening(field.number, sum(map(len, inner))), *inner]
                copied = field.end
    except Strange:
        pass
    return [*parts, data.take(copied, end)]


def _declared(data: Bytes, start: int, end: int, mark: str) -> bytes:
    """A tensor without its numbers. Raises Strange for one that is not plain, or small."""
    parts: list[bytes] = []
    numbers: Field | None = None
    kind = None
    for field in data.fields(start, end):
        if field.number in PAYLOAD and field.kind == BYTES and numbers is None:
            numbers = field
            continue
        if field.number not in PLAIN:
            raise Strange
        if field.number == DATA_TYPE:
            kind = data.varint(field.body, field.end)[0]
        parts.append(data.take(field.start, field.end))
    if numbers is None or numbers.end - numbers.body < LARGE:
        raise Strange
    if kind not in NATIVE or PAYLOAD[numbers.number] not in (None, kind):
        raise Strange
    place = {"location": mark, "offset": str(numbers.body), "length": str(numbers.end - numbers.body)}
    for key, value in place.items():
        entry = _text(1, key) + _text(2, value)
        parts.append(opening(EXTERNAL_DATA, len(entry)) + entry)
    parts.append(_number(LOCATION << 3) + _number(1))
    return b"".join(parts)


def opening(number: int, length: int) -> bytes:
    """What stands before the content of a field of bytes: its number, and how many there are."""
    return _number(number << 3 | BYTES) + _number(length)


def _text(number: int, text: str) -> bytes:
    content = text.encode()
    return opening(number, len(content)) + content


def _number(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
