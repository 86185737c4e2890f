"""Matrix products: Gemm, MatMul."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.graph import signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, rank
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.facts import Weights, either
from onnxplain.vjp.registry import case, vjp


def gemm_sign(node: Node, known: Sequence[bool]) -> bool:
    """When all inputs are and no factor turns them round."""
    return node.attr("alpha", 1.0) >= 0 and node.attr("beta", 1.0) >= 0 and signs.every(node, known)


def gemm_features(node: Node, index: int) -> int:
    """The axis of A or B that is summed over."""
    turned = node.attr("transA", 0) if index == 0 else 1 - node.attr("transB", 0)
    return 0 if turned else 1


WEIGHTS_GEMM = Weights("dense", either, "broadcast", gemm_features, factors=("alpha", "beta"))


@vjp(
    "Gemm",
    kind="linear",
    weights=WEIGHTS_GEMM,
    linear=True,
    broadcasts=True,
    streams=streams.gemm,
    sign=gemm_sign,
    cases=[
        case(x=(2, 4), w=(5, 4), b=(5,), transB=1),
        case(x=(2, 4), w=(4, 5), alpha=0.5),
        case(x=(4, 2), w=(4, 5), b=(1, 5), transA=1, beta=0.3),
        case(x=(4, 2), w=(5, 4), b=(2, 1), transA=1, transB=1, alpha=2.0),
        case(x=(2, 4), w=(4, 5), b=(5,), alpha=-0.5),
        case(x=(2, 4), w=(4, 5), b=(5,), beta=-2.0),
        case(x=(2, 4), w=(5, 4), b=(), transB=1, alpha=-0.5, beta=-2.0),
        case(x=(2, 4), w=(4, 5), b=(2, 5), beta=-1.0),
        case(x=np.linspace(-1, 1, 8).reshape(4, 2), w=(4, 5), b=(1,), transA=1, alpha=-1.5),
        case(x=np.linspace(-1, 1, 8).reshape(2, 4), w=np.linspace(-1, 1, 20).reshape(4, 5), b=(5,), beta=0.5),
    ],
)
def gemm(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = alpha A B + beta C with A, B transposed as asked. g (S, N) -> (S, K)."""
    a, b, *c = (None if value is None else op.real(value) for value in node.inputs)
    turned_a, turned_b, alpha = node.attr("transA", 0), node.attr("transB", 0), node.attr("alpha", 1.0)
    to_a: Gradient = (
        op.Gemm(b, g, transA=turned_b, transB=1, alpha=alpha)
        if turned_a
        else op.Gemm(g, b, transB=1 - turned_b, alpha=alpha)
    )
    to_b: Gradient = None
    if not op.is_constant(b):
        to_b = (
            op.Gemm(g, a, transA=1, transB=turned_a, alpha=alpha)
            if turned_b
            else op.Gemm(a, g, transA=1 - turned_a, alpha=alpha)
        )
    beta = node.attr("beta", 1.0)
    to_c: list[Gradient] = [None if v is None or op.is_constant(v) else g * beta if beta != 1.0 else g for v in c]
    return [to_a, to_b, *to_c]


def transposed(op: Backward, w: ir.Value) -> ir.Value:
    """The last two axes exchanged, once for all users."""
    perm = [*range(rank(w) - 2), rank(w) - 1, rank(w) - 2]
    return op.once(("transposed", w), lambda: op.Transpose(w, perm=perm))


def matmul_features(node: Node, index: int) -> int:
    """The axis of A or B that is summed over."""
    value = node.inputs[index]
    assert value is not None
    return rank(value) - 1 if index == 0 or rank(value) < 2 else rank(value) - 2


WEIGHTS_MATMUL = Weights("dense", either, "behind", matmul_features, stretched=True)


@vjp(
    "MatMul",
    kind="linear",
    weights=WEIGHTS_MATMUL,
    linear=True,
    broadcasts=True,
    streams=streams.matmul,
    sign=signs.every,
    cases=[
        case(x=(2, 3, 4), w=(4, 5)),
        case(x=(2, 4), w=(4, 5)),
        case(x=(2, 3, 4, 5), w=(2, 3, 5, 4)),
        case(x=(3, 4, 5), w=(2, 1, 5, 4)),
        case(x=(4,), w=(4, 3)),
        case(x=(3, 4), w=(4,)),
        case(x=(4,), w=(4,)),
        case(x=(2, 3, 4), w=(4,)),
        case(x=(4,), w=(2, 4, 3)),
    ],
)
def matmul(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = A B over the last two axes, numpy broadcasting before them. g (S, …, M, N) -> (S, …, M, K)."""
    a, b = node.x, node.inputs[1]
    assert b is not None
    a, b = op.real(a), op.real(b)
    if rank(a) == 1 or rank(b) == 1:
        return [*_vector(op, a, b, g), *[None] * (len(node.inputs) - 2)]
    to_a = None if op.is_constant(a) else op.MatMul(g, transposed(op, b))
    to_b = None if op.is_constant(b) else op.MatMul(transposed(op, a), g)
    bias = node.input(2)
    rest = [] if len(node.inputs) < 3 else [None if op.is_constant(bias) else g]
    return [to_a, to_b, *rest]


def _vector(op: Backward, a: ir.Value, b: ir.Value, g: ir.Value) -> list[Gradient]:
    """A vector counts as a row on the left, a column on the right; the axis is not in y, so put it back into g."""
    row, column = rank(a) == 1, rank(b) == 1
    if row and column:
        return [op.Mul(b, g), op.Mul(a, g)]
    if column:  # (…, M, K) (K) -> (…, M)
        wide = op.Unsqueeze(g, [-1])
        return [op.Mul(wide, b), op.ReduceSum(op.Mul(wide, a), list(range(rank(a) - 1)), keepdims=0)]
    wide = op.Unsqueeze(g, [-2])  # (K) (…, K, N) -> (…, N)
    product = op.MatMul(wide, transposed(op, b))
    to_a = op.ReduceSum(product, list(range(rank(b) - 1)), keepdims=0)
    return [to_a, op.Mul(op.Unsqueeze(a, [-1]), wide)]
