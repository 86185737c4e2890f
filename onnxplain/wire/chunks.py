"""Tensors too large for one message: left out of it, sent behind it in pieces, put in again."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxplain.errors import InputError
from onnxplain.v1 import tensor_pb2
from onnxplain.wire.tensors import INPUTS, Array, converted, datatype_of, quoted, size_of, to_raw

PIECE = 1 << 20  # bytes of a chunk; more gains nothing, less costs a message each
INLINE = 16 << 20  # bytes of tensors that stay in the message


def pieces(data: bytes | memoryview, key: str = "") -> Iterator[tensor_pb2.Chunk]:
    """A file or a tensor's bytes as chunks."""
    for offset in range(0, len(data), PIECE):
        yield tensor_pb2.Chunk(key=key, offset=offset, data=bytes(data[offset : offset + PIECE]))


@dataclass
class Outgoing:
    """Makes the tensors of one message; what does not fit in is kept for `chunks`. inline: bytes that fit in."""

    inline: int = INLINE
    _kept: list[tuple[str, memoryview]] = field(default_factory=list)

    def tensor(self, name: str, array: Array, datatype: str = "") -> tensor_pb2.Tensor:
        """As `v1_tensor`, but only announced where the message would grow beyond `inline` bytes."""
        array = converted(array, datatype)
        data = _memory(array)
        tensor = tensor_pb2.Tensor(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        if len(data) <= self.inline:
            self.inline -= len(data)
            tensor.raw = bytes(data)
            return tensor
        key = str(len(self._kept))  # names can be the same: an output that is the explained tensor as well
        self._kept.append((key, data))
        tensor.chunked.byte_size, tensor.chunked.crc32, tensor.chunked.key = len(data), zlib.crc32(data), key
        return tensor

    def take(self, tensor: tensor_pb2.Tensor) -> None:
        """The same for a tensor that is in a message already."""
        size = len(tensor.raw)
        if size <= self.inline:
            self.inline -= size
            return
        key, data = str(len(self._kept)), memoryview(tensor.raw)
        self._kept.append((key, data))
        tensor.chunked.byte_size, tensor.chunked.crc32, tensor.chunked.key = size, zlib.crc32(data), key

    def chunks(self) -> Iterator[tensor_pb2.Chunk]:
        """What was left out, in order; each tensor is let go when it is sent."""
        while self._kept:
            key, data = self._kept.pop(0)
            yield from pieces(data, key)


@dataclass
class _Part:
    """A tensor on its way. path: of the tensor in its message."""

    path: str
    tensor: tensor_pb2.Tensor
    data: bytearray = field(default_factory=bytearray)  # not a list of pieces: a million of one byte cost far more

    @property
    def arrived(self) -> int:
        return len(self.data)

    @property
    def size(self) -> int:
        return self.tensor.chunked.byte_size


class Incoming:
    """Collects the chunks of one message's tensors and fills them in. Raises InputError for whatever does not fit.

    message: with tensors marked ChunkedRef, at any depth. limit: bytes of all of them together. Memory grows with what
    has arrived, not with what was announced; grown: told by how much before it does, and may refuse by raising.
    """

    def __init__(self, message: Any, limit: int, grown: Callable[[int], None] = lambda nbytes: None):
        self._grown = grown
        self._parts: dict[str, _Part] = {}
        announced = 0
        for path, tensor in tensors(message):
            if tensor.WhichOneof("content") != "chunked":
                continue
            where, claimed = f"{path}.chunked.byte_size", tensor.chunked.byte_size
            _, size = size_of(tensor.datatype, tensor.shape, path)
            if claimed < size or (claimed > size and tensor.datatype != "BYTES"):
                shape = list(tensor.shape)
                raise InputError(f"{where}: {claimed}, {tensor.datatype} of shape {shape} takes {size}.").at(where)
            announced += claimed
            if announced > limit:
                raise InputError(f"{where}: {announced} bytes in all, {limit} are taken. Send fewer rows.").at(where)
            key = tensor.chunked.key or tensor.name
            if key in self._parts:
                where = f"{path}.chunked.key"
                raise InputError(f"{where}: {quoted(key)} is the key of another tensor, too.").at(where)
            if len(self._parts) == INPUTS:
                raise InputError(f"{path}: tensors beyond {INPUTS} in chunks are not taken.").at(path)
            self._parts[key] = _Part(path, tensor)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing; then `fill` succeeds, unless a checksum is wrong."""
        return all(part.arrived == part.size for part in self._parts.values())

    def add(self, chunk: tensor_pb2.Chunk) -> None:
        """The next piece of one of the tensors."""
        if chunk.key not in self._parts:
            raise InputError(f"chunk.key: no tensor with the key {quoted(chunk.key)} is awaited.").at("chunk.key")
        part = self._parts[chunk.key]
        if chunk.offset != part.arrived:
            message = f"chunk.offset: {chunk.offset} of {quoted(chunk.key)}, {part.arrived} comes next."
            raise InputError(message).at("chunk.offset")
        data, left = chunk.data, part.size - part.arrived
        if not 1 <= len(data) <= left:
            message = f"chunk.data: {len(data)} bytes of {quoted(chunk.key)}, 1 to {left} can come."
            raise InputError(message).at("chunk.data")
        self._grown(len(data))
        part.data += data

    def fill(self) -> None:
        """Put the bytes into the message's tensors, as `raw`."""
        while self._parts:
            _, part = self._parts.popitem()
            where, reference = f"{part.path}.chunked", part.tensor.chunked
            if part.arrived != part.size:
                raise InputError(f"{where}: {part.arrived} of {part.size} bytes arrived.").at(where)
            if reference.HasField("crc32") and zlib.crc32(part.data) != reference.crc32:
                where = f"{where}.crc32"
                raise InputError(f"{where}: what arrived has another checksum. Send it again.").at(where)
            part.tensor.raw = bytes(part.data)


def tensors(message: Any, path: str = "") -> Iterator[tuple[str, tensor_pb2.Tensor]]:
    """(path, tensor) of every tensor in a message of ours, such as ("inputs[0]", ...)."""
    for described, value in message.ListFields():
        inner = described.message_type
        if inner is None or inner.file.package != "onnxplain.v1":
            continue
        here = f"{path}.{described.name}" if path else described.name
        single = hasattr(value, "ListFields")
        for number, part in enumerate([value] if single else value):
            place = here if single else f"{here}[{number}]"
            if isinstance(part, tensor_pb2.Tensor):
                yield place, part
            else:
                yield from tensors(part, place)


def _memory(array: Array) -> memoryview:
    """The bytes of an array, not copied where they are numbers that lie in order already."""
    if datatype_of(array.dtype) == "BYTES":
        return memoryview(to_raw(array))
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data
