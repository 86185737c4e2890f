"""A matrix product with a bias becomes one Gemm, so that the bias is seen as the layer's own."""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir

from onnxplain.frontend.passes.affine import depends_on_input
from onnxplain.graph.node import FLOATS, constant


def fuse_bias(
    model: ir.Model,
    keep: Collection[str] = (),
    notes: list[str] | None = None,
    permits: Callable[[str], bool] = lambda rewrite: True,
) -> list[str]:
    """MatMul(x of rank 2, constant W) + constant vector -> Gemm. Returns a line for each; `permits` is asked by it."""
    graph, changes = model.graph, []
    live = depends_on_input(graph)
    for node in list(graph):
        if node.op_type != "MatMul" or node.domain != "":
            continue
        x, weight = node.inputs
        product = node.outputs[0]
        if x is None or weight is None or weight in live or weight.dtype not in FLOATS:
            continue
        if any(value.shape is None or len(value.shape) != 2 for value in (x, weight)):
            continue
        uses = product.uses()
        if len(uses) != 1:
            continue
        ((add, index),) = uses
        if add.op_type != "Add" or add.domain != "" or add.graph is not graph:
            continue
        bias = add.inputs[1 - index]
        array = constant(bias)
        assert weight.shape is not None
        if array is None or array.ndim > 2 or array.size not in (1, weight.shape[1]):
            continue
        if array.ndim == 2 and array.shape[0] != 1:
            continue
        if product.is_graph_output():
            if product.name in keep and notes is not None:
                notes.append(
                    f"{add.name} (Add) is not joined with {node.name} (MatMul), because {product.name} is kept"
                )
            continue
        join = f"{node.name} (MatMul) and {add.name} (Add) are one Gemm"
        if not permits(join):
            continue
        out = add.outputs[0]
        gemm = ir.node("Gemm", [x, weight, bias], name=node.name)
        result, name = gemm.outputs[0], out.name
        result.shape, result.type = out.shape, out.type
        graph.insert_before(add, gemm)
        ir.convenience.replace_all_uses_with(out, result, replace_graph_outputs=True)
        graph.remove([add, node], safe=True)
        result.name = name
        changes.append(join)
    return changes
