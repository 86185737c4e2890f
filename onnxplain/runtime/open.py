"""A compiled graph in onnxruntime: what it takes in memory, and its session."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxplain import environment
from onnxplain.compile import provenance
from onnxplain.compile.save import INLINE_LIMIT
from onnxplain.graph.outline import in_parts
from onnxplain.graph.stored_graph import DeferredModel, StoredGraph
from onnxplain.graph.weight_files import on_disk
from onnxplain.runtime import chunking
from onnxplain.runtime.session import Array, Session

Graph = ir.Model | DeferredModel

NODE_BYTES = 20_000  # of a node with its values and what is known of them: 16 to 19 kB in small nets


def bytes_per_stream(graph: Graph) -> int:
    """Upper estimate of the memory one more stream of a compiled graph takes, or one more row of a model, in bytes."""
    if isinstance(graph, StoredGraph):
        return graph.stream_bytes
    model = _read(graph)
    about = provenance.read(model)
    added = list(model.graph)[0 if about is None else about["forward_nodes"] :]
    sizes = [
        chunking.nbytes([d if isinstance(d, int) else None for d in value.shape])
        for node in added
        for value in node.outputs
        if value.shape is not None
    ]
    return sum(sizes) // 3 + 1  # onnxruntime reuses buffers; a third is what large networks were seen to take


def open_session(graph: Graph, provider: str = "auto", threads: int = 0, sparing: bool = False) -> Session:
    """A model in onnxruntime; weights that are large or lie in other files go beside it. sparing: see `Session`."""
    content, weights = session_parts(graph)
    return Session(content, provider, threads, weights, sparing)


def session_parts(graph: Graph) -> tuple[bytes, dict[str, Array]]:
    """A model as `Session` takes it: its bytes, and the weights that these only declare."""
    if isinstance(graph, StoredGraph):
        return graph.parts()
    model = _read(graph)
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    if sum(t.nbytes for t in tensors) < INLINE_LIMIT and not any(isinstance(t, ir.ExternalTensor) for t in tensors):
        return serialised(model), {}
    return in_parts(model)


def nbytes_of_session(graph: Graph, rows: int) -> int:
    """Bytes of an open session, about: weights; and what runs of so many rows leave, where its arena is its own."""
    runs = rows * bytes_per_stream(graph) if rows and environment.begun() is None else 0
    return nbytes_of_weights(graph) + runs


def nbytes_of_weights(graph: Graph) -> int:
    """Bytes of a model's initializers."""
    if isinstance(graph, StoredGraph):
        return graph.nbytes
    return sum(v.const_value.nbytes for v in _read(graph).graph.initializers.values() if v.const_value is not None)


def nbytes_of_graphs(graphs: Iterable[Graph]) -> int:
    """Bytes that models hold, about: their nodes, and each weight once, however many of them share it."""
    weights: dict[int, int] = {}
    nodes = 0
    for graph in {id(graph): graph for graph in graphs}.values():
        if isinstance(graph, StoredGraph):  # weights of its model are read from its stores each time
            weights |= {id(store): store.size for store in graph.stores}
        model = graph.read if isinstance(graph, DeferredModel) else graph
        if model is None:
            continue
        nodes += len(model.graph)
        for value in model.graph.initializers.values():
            if value.const_value is not None and not on_disk(value.const_value):
                weights[id(value.const_value)] = value.const_value.nbytes
    return sum(weights.values()) + NODE_BYTES * nodes


def serialised(graph: Graph) -> bytes:
    """A model as onnxruntime takes it in memory, up to 2 GB."""
    if isinstance(graph, StoredGraph) and not graph.beside:
        return graph.content()
    content: bytes = ir.to_proto(_read(graph)).SerializeToString()
    return content


def _read(graph: Graph) -> ir.Model:
    return graph.model if isinstance(graph, DeferredModel) else graph
