"""Weights that stay in the file they came in, read when somebody asks for their numbers."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxplain.cpu_session import give_back
from onnxplain.errors import InputError

CHUNK = 1 << 20  # bytes read at once


class Store(ABC):
    """Bytes that can be read from any place on."""

    size: int

    @abstractmethod
    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with the bytes from `offset` on. Raises InputError where they are not as they were."""

    def take(self, start: int, end: int) -> bytes:
        """The bytes between two places."""
        buffer = bytearray(end - start)
        self.read_into(start, memoryview(buffer))
        return bytes(buffer)


class File(Store):
    """A file held open: put aside or deleted it can still be read; written over in place, reading it is refused."""

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()  # the place read from is the file's
        self._state = self._stat()
        self.size = self._state[0]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """As in `Store`."""
        with self._lock:
            self._file.seek(offset)
            filled = 0
            while filled < len(buffer) and (count := self._file.readinto(buffer[filled:])):
                filled += count
            if filled < len(buffer) or self._stat() != self._state:
                raise InputError(f"{self._path}: was changed after it was loaded; load it again")

    def _stat(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns


class Content(Store):
    """Bytes that are in memory: of a model that came so, of a file that is kept as it was."""

    def __init__(self, content: bytes | memoryview):
        self._content = content
        self.size = len(content)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """As in `Store`."""
        buffer[:] = memoryview(self._content)[offset : offset + len(buffer)]

    def view(self, offset: int, length: int) -> memoryview:
        """Bytes without a copy of them."""
        return memoryview(self._content)[offset : offset + length]


class StoredTensor(ir.LazyTensor):
    """A weight of a numpy type, little-endian in a store from `offset` on.

    Whoever asks for the numbers gets the same array as all who still hold it, so that a model and its sessions have
    them once; when nobody does, they are not in memory. Asking raises InputError where the file is another now.
    """

    def __init__(self, store: Store, offset: int, dtype: ir.DataType, shape: ir.Shape, name: str):
        held: list[weakref.ref[np.ndarray]] = []
        lock = threading.Lock()

        def read() -> ir.Tensor[np.ndarray]:
            with lock:
                array = held[0]() if held else None
                if array is None:
                    array = np.empty(shape.numpy(), dtype.numpy().newbyteorder("<"))
                    store.read_into(offset, memoryview(array.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
                    array = array.astype(array.dtype.newbyteorder("="), copy=False)
                    array.flags.writeable = False
                    held[:] = [weakref.ref(array)]
                return ir.Tensor(array, dtype=dtype, name=name)

        super().__init__(read, dtype, shape, name=name)


def put_aside(models: Iterable[ir.Model], store: Store, places: Mapping[str, int]) -> None:
    """Read weights from a store instead of holding them. places: where each begins there, by its name in the first."""
    stored: dict[int, StoredTensor] = {}
    held = []  # while they are compared by identity
    for i, model in enumerate(models):
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or on_disk(tensor):
                continue
            if not i and name in places:
                held.append(tensor)
                shape = ir.Shape(tensor.shape.numpy())
                stored[id(tensor)] = StoredTensor(store, places[name], tensor.dtype, shape, name)
            value.const_value = stored.get(id(tensor), tensor)
    held.clear()
    gc.collect()  # clones of the graphs hold the weights too, and are cycles
    give_back()


def sha256(store: Store) -> str:
    """Of all the bytes, in hex."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    for start in range(0, store.size, CHUNK):
        part = buffer[: min(CHUNK, store.size - start)]
        store.read_into(start, part)
        digest.update(part)
    return digest.hexdigest()


def on_disk(tensor: ir.TensorProtocol | None) -> bool:
    """Whether a weight's numbers are read from a file each time."""
    return isinstance(tensor, (StoredTensor, ir.ExternalTensor))
