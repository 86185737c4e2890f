"""Shape arithmetic that is known by now, taken out.

Exporters compute shapes in the graph: Shape, Gather, Concat, Reshape. Where the numbers are known they become constants
(and an `If` that asks for them folds); a Reshape into [N, L, 12, 32] says [0, 0, 12, 32].
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain.frontend.passes.names import Names, initializer
from onnxplain.frontend.passes.shapes import refine
from onnxplain.frontend.passes.symbolic_dims import Entry, Product

INTEGERS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


def fold_shape_arithmetic(model: ir.Model) -> bool:
    """Replace known shape arithmetic by constants; returns whether anything changed. Shapes must be inferred."""
    contents, changed, names = refine(model), False, Names(model.graph)
    for node in list(model.graph):
        if node.op_type == "Reshape" and node.domain == "":
            changed = _target(node, contents.get(node.inputs[1]), names) or changed  # type: ignore[arg-type]
        y = node.outputs[0]
        if y in contents and len(node.outputs) == 1 and not y.is_graph_output() and y.uses():
            changed = _replace(node, contents[y], names) or changed
    return changed


def _replace(node: ir.Node, content: list[Entry], names: Names) -> bool:
    """The node's result as a constant, where every number is known."""
    y = node.outputs[0]
    numbers = [entry.number for entry in content if entry is not None and not entry.symbols]
    if len(numbers) != len(content) or y.dtype not in INTEGERS or y.shape is None or len(y.shape) > 1:
        return False
    array = np.asarray(numbers).reshape(() if len(y.shape) == 0 else (-1,))
    if len(y.shape) == 0 and len(numbers) != 1:
        return False
    constant = initializer(names, f"{y.name}.known", array, y.dtype)
    y.replace_all_uses_with(constant)
    return True


def _target(node: ir.Node, content: list[Entry] | None, names: Names) -> bool:
    """A computed target as numbers: 0 copies the input's length, -1 is the one axis that is left."""
    x = node.inputs[0]
    if content is None or x is None or x.shape is None or any(entry is None for entry in content):
        return False
    before = [Product.of(dim if isinstance(dim, int) else dim.value) for dim in x.shape]
    target = []
    for i, entry in enumerate(content):
        assert entry is not None
        if not entry.symbols:
            target.append(entry.number)
        elif i < len(before) and before[i] == entry:
            target.append(0)
        else:
            target.append(-1)
    zeros = any(entry == Product(0) for entry in content)
    if target.count(-1) > 1 or zeros or all(entry is not None and not entry.symbols for entry in content):
        return False
    node.replace_input_with(
        1, initializer(names, f"{node.outputs[0].name}.shape", np.asarray(target), ir.DataType.INT64)
    )
    if "allowzero" in node.attributes:
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
    return True
