"""A model that is read when somebody looks into it: its bytes in pieces, what goes in and out known before."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.graph.weight_files import Content, StoredTensor
from onnxplain.graph.weightless import weightless


@dataclass(frozen=True)
class Ports:
    """What goes in (initializers left out) and what comes out."""

    inputs: Sequence[ir.Value]
    outputs: Sequence[ir.Value]

    @classmethod
    def of(cls, model: ir.Model) -> Ports:
        """Those of a model."""
        graph = model.graph
        return cls([v for v in graph.inputs if v.name not in graph.initializers], list(graph.outputs))


class DeferredModel:
    """A model that `read` makes when it is first asked for; once, however many ask. nodes: how many it has."""

    def __init__(self, ports: Ports, nodes: int, read: Callable[[], ir.Model]):
        self.ports, self.nodes = ports, nodes
        self._read, self._lock = read, threading.Lock()
        self._model: ir.Model | None = None

    @property
    def read(self) -> ir.Model | None:
        """The model, if it was asked for before."""
        return self._model

    @property
    def model(self) -> ir.Model:
        """The model."""
        with self._lock:
            if self._model is None:
                self._model = self._read()
            return self._model


class WeightPiece(NamedTuple):
    """Bytes of a weight: which store has them, where in it, and where in the skeleton they are missing."""

    store: str
    offset: int
    length: int
    position: int


class WeightBeside(NamedTuple):
    """A weight that the model only declares, for onnxruntime to be given: where its numbers are, and of what kind."""

    store: str
    offset: int
    dtype: str
    shape: tuple[int, ...]


class StoredGraph(DeferredModel):
    """A graph as onnxruntime takes it: a skeleton whose large weights lie in stores of bytes.

    skeleton: the model's bytes without these. pieces: in the order of the skeleton. beside: as `Session` takes
    weights. nbytes: of the weights; stream_bytes: what one more row takes, see `runtime.open.bytes_per_stream`.
    """

    def __init__(
        self,
        skeleton: bytes,
        pieces: Sequence[WeightPiece],
        beside: Mapping[str, WeightBeside],
        stores: Mapping[str, Content],
        ports: Ports,
        nodes: int,
        nbytes: int,
        stream_bytes: int,
    ):
        super().__init__(ports, nodes, self.parse)
        self.nbytes, self.stream_bytes = nbytes, stream_bytes
        self.beside = beside
        self._skeleton, self._pieces, self._stores = skeleton, pieces, stores

    @property
    def stores(self) -> list[Content]:
        """Those that its weights lie in."""
        used = {piece.store for piece in self._pieces} | {weight.store for weight in self.beside.values()}
        return [self._stores[name] for name in sorted(used)]

    def content(self) -> bytes:
        """The model's bytes, the very ones it was stored from."""
        parts: list[bytes | memoryview] = []
        skeleton, at = memoryview(self._skeleton), 0
        for piece in self._pieces:
            parts += [skeleton[at : piece.position], self._stores[piece.store].view(piece.offset, piece.length)]
            at = piece.position
        return b"".join([*parts, skeleton[at:]])

    def parts(self) -> tuple[bytes, dict[str, np.ndarray]]:
        """The model, and the weights that it only declares."""
        return self.content(), {name: self._array(weight) for name, weight in self.beside.items()}

    def _array(self, weight: WeightBeside) -> np.ndarray:
        dtype = np.dtype(weight.dtype)
        nbytes = dtype.itemsize * int(np.prod(weight.shape, dtype=np.int64))
        return np.frombuffer(self._stores[weight.store].view(weight.offset, nbytes), dtype).reshape(weight.shape)

    def parse(self) -> ir.Model:
        """The model anew, nobody else's. Weights are read from their stores when their numbers are asked for."""
        mark = f"onnxplain.{secrets.token_hex(16)}"
        proto = onnx.ModelProto()
        proto.ParseFromString(weightless(Content(self.content()), mark))
        model = ir.from_proto(proto)
        places, missing = {}, 0
        for piece in self._pieces:
            places[piece.position + missing] = piece
            missing += piece.length
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            where = self.beside[name] if name in self.beside else places[tensor.offset or 0]
            value.const_value = StoredTensor(self._stores[where.store], where.offset, tensor.dtype, tensor.shape, name)
        return model


class _ModelField:
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            raise AttributeError  # so that a dataclass takes it for a field without a default
        found = instance.held
        return found.model if isinstance(found, DeferredModel) else found

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)["held"] = value


class HoldsModel:
    """Of a dataclass with a field `model: ir.Model`: it may be given a DeferredModel, read when somebody looks."""

    model: Any = _ModelField()
    held: ir.Model | DeferredModel  # what it was given

    @property
    def ports(self) -> Ports:
        """What goes in and out, without reading the model."""
        return ports_of(self.held)


def nodes_of(model: ir.Model | DeferredModel) -> int:
    """How many nodes a model has, without reading it."""
    return model.nodes if isinstance(model, DeferredModel) else len(model.graph)


def ports_of(model: ir.Model | DeferredModel) -> Ports:
    """What goes in and out of a model, without reading it."""
    return model.ports if isinstance(model, DeferredModel) else Ports.of(model)
