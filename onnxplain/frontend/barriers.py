"""Tensors that somebody asked for, kept apart from their equals while a graph is rewritten.

Rewrites make one tensor of two that are equal: by an Identity, a Reshape that changes nothing, two nodes that do the
same. Then the one that was asked for answers for both. A node that no rewrite looks through stands between such a
tensor and its readers meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import onnx_ir as ir

from onnxplain.frontend.passes.names import Names
from onnxplain.frontend.passes.replacement import Replacement

DOMAIN, OP_TYPE = "onnxplain", "Barrier"


@contextmanager
def kept_apart(model: ir.Model, names: Collection[str]) -> Iterator[None]:
    """Inside, the readers of these tensors are theirs alone; afterwards an Identity stays where an equal was found."""
    graph = model.graph
    made = {value.name: value for node in graph for value in node.outputs}
    kept = [made[name] for name in dict.fromkeys(names) if name in made]
    if not kept:
        yield
        return
    model.opset_imports[DOMAIN] = 1
    free, replacement = Names(graph), Replacement(graph)
    for value in kept:
        _insert_barrier(value, free, replacement)
    try:
        yield
    finally:
        replacement = Replacement(graph)
        for node in list(graph):
            if node.domain == DOMAIN and node.op_type == OP_TYPE:
                _remove_barrier(node, replacement)
        replacement.finish()
        del model.opset_imports[DOMAIN]


def _insert_barrier(value: ir.Value, names: Names, replacement: Replacement) -> None:
    """A node between a tensor and its readers; what it makes has the tensor's name."""
    maker, name = value.producer(), str(value.name)
    assert maker is not None and maker.graph is not None
    barrier = ir.node(OP_TYPE, [value], domain=DOMAIN, name=names.free(f"{name}.asked"))
    out = barrier.outputs[0]
    replacement.replace(value, out)
    barrier.replace_input_with(0, value)
    maker.graph.insert_after(maker, barrier)
    value.name = names.free(f"{name}.made")
    out.name, out.shape, out.type = name, value.shape, value.type


def _remove_barrier(barrier: ir.Node, replacement: Replacement) -> None:
    """The tensor before it takes its name, where nobody else reads that one; else an Identity stays."""
    x, out, graph = barrier.inputs[0], barrier.outputs[0], barrier.graph
    assert x is not None and graph is not None
    name, maker = out.name, x.producer()
    alone = maker is not None and maker.graph is graph and len(x.uses()) == 1 and not x.is_graph_output()
    if alone:
        replacement.replace(out, x)
        replacement.detach(barrier)
        x.name = name
        return
    same = ir.node("Identity", [x], name=barrier.name)
    result = same.outputs[0]
    result.shape, result.type = out.shape or x.shape, out.type or x.type
    graph.insert_before(barrier, same)
    replacement.replace(out, result)
    replacement.detach(barrier)
    result.name = name
