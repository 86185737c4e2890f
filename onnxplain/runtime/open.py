"""A compiled graph in onnxruntime: what it takes in memory, and its session."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxplain.compile import provenance
from onnxplain.compile.save import INLINE_LIMIT
from onnxplain.graph.outline import in_parts
from onnxplain.runtime import chunking
from onnxplain.runtime.session import Session

NODE_BYTES = 20_000  # of a node with its values and what is known of them: 16 to 19 kB in small nets


def bytes_per_stream(model: ir.Model) -> int:
    """Upper estimate of the memory one more stream of a compiled graph takes, in bytes."""
    about = provenance.read(model)
    added = list(model.graph)[about["forward_nodes"] :] if about is not None else []
    sizes = [
        chunking.nbytes([d if isinstance(d, int) else None for d in value.shape])
        for node in added
        for value in node.outputs
        if value.shape is not None
    ]
    return sum(sizes) // 3 + 1  # onnxruntime reuses buffers; a third is what large networks were seen to take


def open_session(model: ir.Model, provider: str = "auto", threads: int = 0) -> Session:
    """A model in onnxruntime; weights that are large or lie in other files go beside it."""
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    if sum(t.nbytes for t in tensors) < INLINE_LIMIT and not any(isinstance(t, ir.ExternalTensor) for t in tensors):
        return Session(serialised(model), provider, threads)
    content, weights = in_parts(model)
    return Session(content, provider, threads, weights)


def nbytes_of_weights(model: ir.Model) -> int:
    """Bytes of a model's initializers."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def nbytes_of_graphs(models: Iterable[ir.Model]) -> int:
    """Bytes that models hold, about: their nodes, and each weight once, however many of them share it."""
    weights: dict[int, int] = {}
    nodes = 0
    for model in {id(model): model for model in models}.values():
        nodes += len(model.graph)
        for value in model.graph.initializers.values():
            if value.const_value is not None:
                weights[id(value.const_value)] = value.const_value.nbytes
    return sum(weights.values()) + NODE_BYTES * nodes


def serialised(model: ir.Model) -> bytes:
    """A model as onnxruntime takes it in memory, up to 2 GB."""
    content: bytes = ir.to_proto(model).SerializeToString()
    return content
