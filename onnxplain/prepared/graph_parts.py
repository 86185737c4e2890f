"""A graph cut into a skeleton and its large weights, of which those that lie somewhere already are not kept again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.graph.stored_graph import DeferredModel, Ports, StoredGraph, WeightBeside, WeightPiece, nodes_of
from onnxplain.graph.weight_files import Content
from onnxplain.graph.weightless import weightless
from onnxplain.prepared.entry import ALIGNED, Buffer, CacheEntry
from onnxplain.runtime.open import bytes_per_stream, nbytes_of_weights, session_parts

MARK = "onnxplain.large"  # graphs that come here are our own serialisation: no weight of theirs lies at such a place
Graph = ir.Model | DeferredModel


@dataclass
class WeightIndex:
    """Where large weights lie, by the digest of their bytes. own: the store for those that lie nowhere yet."""

    own: str
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    parts: list[Buffer] = field(default_factory=list)
    size: int = 0

    def add_model(self, store: str, content: Content) -> None:
        """The weights inside a model file."""
        for offset, length, _ in _large(content):
            self.add(store, offset, content.view(offset, length))

    def add(self, store: str, offset: int, weight: Buffer) -> None:
        """A weight in a store."""
        self.places.setdefault(_digest(weight), (store, offset))

    def place(self, weight: Buffer) -> tuple[str, int]:
        """Store and offset of a weight, which goes to our own store if it lies nowhere."""
        digest = _digest(weight)
        if digest not in self.places:
            padding = -self.size % ALIGNED
            self.places[digest] = (self.own, self.size + padding)
            self.parts += [bytes(padding), weight]
            self.size += padding + len(weight)
        return self.places[digest]

    def listing(self) -> list[list[Any]]:
        """As JSON, for `listed`."""
        return [[digest, *place] for digest, place in self.places.items()]

    @classmethod
    def listed(cls, own: str, listing: Iterable[tuple[str, str, int]]) -> WeightIndex:
        """What is known already, for graphs that are kept beside it."""
        return cls(own, {digest: (store, offset) for digest, store, offset in listing})


def take_apart(name: str, graph: Graph, index: WeightIndex) -> tuple[dict[str, Any], dict[str, list[Buffer]]]:
    """What `put_together` needs: JSON, and sections under names that begin with `name`."""
    content, weights = session_parts(graph)
    store, at, pieces = Content(content), 0, []
    skeleton: list[Buffer] = []
    position = 0
    proto = onnx.ModelProto()
    proto.ParseFromString(weightless(store, MARK))
    for offset, length, _ in sorted(_declared(proto)):
        skeleton.append(store.view(at, offset - at))
        position += offset - at
        pieces.append([*index.place(store.view(offset, length)), length, position])
        at = offset + length
    skeleton.append(store.view(at, len(content) - at))
    beside = {}
    for weight, array in weights.items():
        numbers = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        beside[weight] = [*index.place(numbers), array.dtype.str, list(array.shape)]
    about = {
        "pieces": pieces,
        "beside": beside,
        "nodes": nodes_of(graph),
        "nbytes": nbytes_of_weights(graph),
        "stream_bytes": bytes_per_stream(graph),
    }
    given = {tensor.name for tensor in proto.graph.initializer}
    ports = onnx.GraphProto(input=[v for v in proto.graph.input if v.name not in given], output=proto.graph.output)
    return about, {f"{name}.skeleton": skeleton, f"{name}.ports": [ports.SerializeToString()]}


def put_together(name: str, about: Mapping[str, Any], entry: CacheEntry, stores: Mapping[str, Content]) -> StoredGraph:
    """The graph that `take_apart` was given, read when it is asked for."""
    proto = onnx.GraphProto()
    proto.ParseFromString(entry.section(f"{name}.ports"))
    inputs, outputs = (
        [ir.serde.deserialize_value_info_proto(value, None) for value in values]
        for values in (proto.input, proto.output)
    )
    return StoredGraph(
        entry.section(f"{name}.skeleton"),
        [WeightPiece(*piece) for piece in about["pieces"]],
        {
            key: WeightBeside(store, at, dtype, tuple(shape))
            for key, (store, at, dtype, shape) in about["beside"].items()
        },
        stores,
        Ports(inputs, outputs),
        about["nodes"],
        about["nbytes"],
        about["stream_bytes"],
    )


def _large(content: Content) -> Iterator[tuple[int, int, str]]:
    proto = onnx.ModelProto()
    proto.ParseFromString(weightless(content, MARK))
    return _declared(proto)


def _declared(proto: onnx.ModelProto) -> Iterator[tuple[int, int, str]]:
    """Offset, length and name of what `weightless` left out."""
    for tensor in proto.graph.initializer:
        entry = {item.key: item.value for item in tensor.external_data}
        if entry.get("location") == MARK:
            yield int(entry["offset"]), int(entry["length"]), tensor.name


def _digest(weight: Buffer) -> str:
    return hashlib.sha256(weight).hexdigest()
