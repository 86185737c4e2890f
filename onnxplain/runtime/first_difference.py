"""The node from which on onnxruntime's optimisation changes a graph's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedModel
from onnxplain.graph.outline import runtime

SEARCHED = 1 << 28  # bytes of weights; in larger models the node is not searched for

Same = Callable[[np.ndarray, np.ndarray], bool]


def first_difference(model: ir.Model, feeds: Mapping[str, np.ndarray], name: str, same: Same) -> str | None:
    """The first node on the way to an output whose own output is not the same; None where none can be found.

    Graphs that end at inner tensors are bisected: a tensor that is looked at inside a graph is optimised otherwise. Two
    sessions a try, one after the other.
    """
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    path = [node for node in _above(model, name) if node.outputs[0].name]
    if weights > SEARCHED or not path:
        return None
    good, bad = -1, len(path) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        found = _same(model, feeds, str(path[middle].outputs[0].name), same)
        if found is None:
            return None
        good, bad = (middle, bad) if found else (good, middle)
    return f"{path[bad].name or path[bad].outputs[0].name} ({path[bad].op_type})"


def _above(model: ir.Model, name: str) -> list[ir.Node]:
    """The nodes a tensor is made of, in order."""
    found: set[ir.Node] = set()
    pending = [node for node in model.graph if any(value.name == name for value in node.outputs)]
    while pending:
        node = pending.pop()
        if node in found:
            continue
        found.add(node)
        for read in (node, *_inside(node)):
            pending += [maker for v in read.inputs if v is not None and (maker := v.producer()) is not None]
    return [node for node in model.graph if node in found]


def _inside(node: ir.Node) -> list[ir.Node]:
    """The nodes of its bodies, which may read what is around them."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.as_graphs())
    return [inner for graph in graphs for inner in graph.all_nodes()]


def _same(model: ir.Model, feeds: Mapping[str, np.ndarray], name: str, same: Same) -> bool | None:
    """Whether the graph that ends at a tensor answers alike with and without optimisation; None: it does not run."""
    cut = model.clone()
    kept = {node.outputs[0].name for node in _above(cut, name)}
    cut.graph.outputs.clear()
    cut.graph.outputs.append(next(v for node in cut.graph for v in node.outputs if v.name == name))
    for node in reversed(list(cut.graph)):
        if node.outputs[0].name not in kept:
            cut.graph.remove(node, safe=True)
    try:
        plain = runtime(cut).run(feeds)[name]
    except UnsupportedModel:
        return None
    try:
        users = runtime(cut, optimise=True).run(feeds)[name]
    except UnsupportedModel:
        return False
    return same(np.asarray(users), np.asarray(plain))
