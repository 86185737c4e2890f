"""RNN, GRU, LSTM: back-propagation through time as one Scan; everything that can be is computed for all steps at once.

Layout inside: sequences (T, B, ...), states (B, H); gradients have S streams in the place of B. A recurrent op that
runs backwards in time is one that runs forwards over the turned sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims, ints
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.lengths import joined
from onnxplain.vjp.recurrent.direction import Direction, DirectionGradients, added, direction_of, turned

Cell = Callable[[Backward, Node, Direction], DirectionGradients]


def through_time(
    op: Backward, node: Node, gs: Sequence[Gradient], cell: Cell, activations: Sequence[str]
) -> list[Gradient]:
    """Gradients of x, of the initial states, and of the weights that the model computes.

    activations: those of one direction where the node names none.
    """
    arrived: list[Gradient] = [*gs, None, None, None][:3]
    batch_first = node.attr("layout", 0) == 1
    check(node)
    if batch_first:  # to (T, D, B, H), (D, B, H)
        perms = [[1, 2, 0, 3], [1, 0, 2], [1, 0, 2]]
        arrived = [None if g is None else op.Transpose(g, perm=perm) for g, perm in zip(arrived, perms, strict=True)]
    count = 2 if node.attr("direction", "forward") == "bidirectional" else 1
    parts: dict[int, list[ir.Value]] = {}
    to_x = []
    for index in range(count):
        reverse = index == 1 or node.attr("direction", "forward") == "reverse"
        view = direction_of(op, node, arrived, activations, index, count, reverse, batch_first)
        sent = cell(op, node, view)
        if not op.is_constant(node.x):
            x = op.MatMul(sent.gates, view.w)
            to_x.append(turned(op, x) if reverse else x)
        for i, make in gradients(op, view, sent).items():
            if not op.is_constant(node.input(i)):
                parts.setdefault(i, []).append(op.Unsqueeze(make(), [0]))
    result: list[Gradient] = [None] * len(node.inputs)
    result[0] = added(op, *to_x) if to_x else None
    for i, directions in parts.items():
        result[i] = directions[0] if count == 1 else op.Concat(*directions, axis=0)
    if batch_first:
        for i in (0, 5, 6):
            result[i : i + 1] = [None if r is None else op.Transpose(r, perm=[1, 0, 2]) for r in result[i : i + 1]]
    return result


def gradients(op: Backward, d: Direction, sent: DirectionGradients) -> dict[int, Callable[[], ir.Value]]:
    """By place among the inputs, what makes one direction's gradient of w, r, b, first states and peepholes."""

    def bias() -> ir.Value:
        through_r = [over_time(op, gates) for gates, _ in sent.recurrent()]
        return op.Concat(over_time(op, sent.gates), *through_r, axis=0)  # type: ignore[no-any-return]

    def recurrent_weight() -> ir.Value:
        rows = [outer(op, gates, states) for gates, states in sent.recurrent()]
        return rows[0] if len(rows) == 1 else op.Concat(*rows, axis=0)

    def peepholes() -> ir.Value:
        assert sent.cells is not None
        before, after = sent.cells
        i, o, f, _ = op.Split(sent.gates, axis=-1, num_outputs=4, outputs=4)
        return op.Concat(*(over_time(op, p) for p in (i * before, o * after, f * before)), axis=0)  # type: ignore[no-any-return]

    makers: dict[int, Callable[[], ir.Value]] = {
        1: lambda: outer(op, sent.gates, d.x),
        2: recurrent_weight,
        3: bias,
        5: lambda: sent.h,
        7: peepholes,
    }
    if sent.c is not None:
        cell = sent.c
        makers[6] = lambda: cell
    return makers


def outer(op: Backward, gates: ir.Value, seen: ir.Value) -> ir.Value:
    """(T, S, G), (T, B, K) -> (G, K): summed over time and batch, which streams are where weights are computed."""
    flat = [op.Reshape(value, joined(op, [op.ints([-1]), op.size(value, 2)])) for value in (gates, seen)]
    return op.Gemm(flat[0], flat[1], transA=1)  # type: ignore[no-any-return]


def over_time(op: Backward, gates: ir.Value) -> ir.Value:
    """(T, S, G) -> (G)."""
    return op.ReduceSum(gates, [0, 1], keepdims=0)  # type: ignore[no-any-return]


def check(node: Node) -> None:
    """Refuse what the derivative does not cover."""
    length = dims(node.x)[1 if node.attr("layout", 0) else 0]
    lengths = ints(node.input(4))
    if node.input(4) is not None and (lengths is None or any(n != length for n in lengths)):
        raise UnsupportedOp(
            f"{node}: sequence_lens that differ or are known at run time only have no derivative here. Remove the "
            f"input where all sequences are whole, or attribute to a tensor above this node (--attribute-to)."
        )
    if node.attr("clip") is not None:
        raise UnsupportedOp(f"{node}: no derivative for the attribute clip.")
    names = node.attr("activations") or []
    unknown = [name for name in names if name.lower() not in ("sigmoid", "tanh", "relu")]
    if unknown or node.attr("activation_alpha") or node.attr("activation_beta"):
        raise UnsupportedOp(f"{node}: of activations only plain Sigmoid, Tanh and Relu have a derivative here.")
    if any(not isinstance(length, int) for i in (1, 2) for length in dims(node.inputs[i])):  # type: ignore[arg-type]
        raise UnsupportedOp(f"{node}: the weights' shapes must be known at compile time.")
