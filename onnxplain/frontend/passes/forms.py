"""Forms of nodes that onnxruntime computes alike whether it optimises or not.

Two of its optimisers (1.31) read a node wrongly beside a Transpose: the transpose optimiser takes the pads of a Pad as
if there were no `axes`, past their end where these are few, and the fusion into FusedMatMul takes a vector on the right
for a matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxplain.frontend.passes.names import Names, initializer
from onnxplain.graph.node import ints
from onnxplain.graph.pads import places_of_pads


def rewrite_forms(model: ir.Model, permits: Callable[[str], bool] = lambda rewrite: True) -> list[str]:
    """Give a model's own nodes these forms. Shapes must be inferred. permits: whether a rewrite may be made, by name.

    Returns a line for each change.
    """
    changes = []
    names = Names(model.graph)
    for node in list(model.graph):
        name = f"{node.name or node.outputs[0].name} ({node.op_type})"
        if node.domain != "" or node.op_type not in FORMS or not permits(name):
            continue
        settle, text = FORMS[node.op_type]
        if settle(node, names):
            changes.append(f"{name} {text}")
    return changes


def _pad_every_axis(node: ir.Node, names: Names) -> bool:
    x, pads, *others = node.inputs
    axes = ints(others[1]) if len(others) > 1 else None
    if axes is None or x is None or x.shape is None or pads is None:
        return False
    places, known, name = places_of_pads(axes, len(x.shape)), ints(pads), node.outputs[0].name
    if known is not None:
        numbers = np.array([0 if place is None else known[place] for place in places], np.int64)
        every = initializer(names, f"{name}.pads", numbers, ir.DataType.INT64)
    else:
        zero = initializer(names, f"{name}.zero", np.zeros(1, np.int64), ir.DataType.INT64)
        order = np.array([0 if place is None else place + 1 for place in places], np.int64)
        order_value = initializer(names, f"{name}.order", order, ir.DataType.INT64)
        joined = ir.node("Concat", [zero, pads], {"axis": 0})
        picked = ir.node("Gather", [joined.outputs[0], order_value])
        node.graph.insert_before(node, [joined, picked])  # type: ignore[union-attr]
        every = picked.outputs[0]
    node.replace_input_with(1, every)
    node.resize_inputs(3 if others[0] is not None else 2)
    return True


def _column(node: ir.Node, names: Names) -> bool:
    (x, vector), graph = node.inputs, node.graph
    assert graph is not None
    if x is None or vector is None or x.shape is None or vector.shape is None:
        return False
    if len(x.shape) < 2 or len(vector.shape) != 1:
        return False
    last = initializer(names, f"{node.outputs[0].name}.last", np.array([-1]), ir.DataType.INT64)
    column = ir.node("Unsqueeze", [vector, last])
    product = ir.node("MatMul", [x, column.outputs[0]], name=node.name)
    squeezed = ir.node("Squeeze", [product.outputs[0], last])
    out, result = node.outputs[0], squeezed.outputs[0]
    result.shape, result.type, name = out.shape, out.type, out.name
    graph.insert_before(node, [column, product, squeezed])
    ir.convenience.replace_all_uses_with(out, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = name
    return True


FORMS: dict[str, tuple[Callable[[ir.Node, Names], bool], str]] = {
    "Pad": (_pad_every_axis, "names every axis"),
    "MatMul": (_column, "has a column for its vector"),
}
