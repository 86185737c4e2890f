"""One direction of a recurrent node, and what its gradients are made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.builder import Builder
from onnxplain.graph.node import Node, dims
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.lengths import END

Values = Sequence[ir.Value]
Step = Callable[[Builder, ir.Value, Values, Values], tuple[Values, Values]]


@dataclass
class Direction:
    """One direction of a recurrent node, its forward sequences turned so that time runs forwards.

    x (T, B, I), h (T, B, H) hidden states, before (T, B, H) those of the step before, start (1, B, H). w (G, I),
    r (G, H), bias_w and bias_r (G,) or None, peepholes (H,) i, o, f or None; G = gates times H.
    g (T, S, H), g_h and g_c (S, H): what arrives at the sequence and at the last states.
    """

    x: ir.Value
    h: ir.Value
    before: ir.Value
    w: ir.Value
    r: ir.Value
    bias_w: ir.Value | None
    bias_r: ir.Value | None
    peepholes: list[ir.Value] | None
    start_c: ir.Value | None
    activations: list[str]
    g: Gradient
    g_h: ir.Value
    g_c: Gradient


@dataclass(frozen=True)
class DirectionGradients:
    """What one direction sends back: to the gates (T, S, G), to the first hidden state and cell state (S, H).

    recurrent: makes (gates, states) pairs (T, S, part of G) and (T, B, H), one below the other what multiplies r.
    cells: c_{t-1} and c_t (T, B, H), what peepholes see.
    """

    gates: ir.Value
    h: ir.Value
    recurrent: Callable[[], list[tuple[ir.Value, ir.Value]]]
    c: Gradient = None
    cells: tuple[ir.Value, ir.Value] | None = None


def activate(op: Builder, name: str, a: ir.Value) -> ir.Value:
    """Sigmoid, Tanh or Relu."""
    value: ir.Value = op.emit({"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu"}[name], [a])
    return value


def slope(op: Builder, name: str, y: ir.Value) -> ir.Value:
    """The activation's derivative, from its value."""
    if name == "relu":
        return op.Cast(op.Greater(y, 0.0), to=int(y.dtype))  # type: ignore[no-any-return, arg-type]
    value: ir.Value = op.Mul(y, op.Sub(1.0, y)) if name == "sigmoid" else op.Sub(1.0, op.Mul(y, y))
    return value


def turned(op: Backward, value: ir.Value) -> ir.Value:
    """Time reversed."""
    return op.reshaped(op.Slice(value, [-1], [-END], [0], [-1]), dims(value))


def product(op: Backward, x: ir.Value, w: ir.Value) -> ir.Value:
    """x w^T, for weights as ONNX stores them."""
    return op.MatMul(x, op.once(("transposed", w), lambda: op.Transpose(w, perm=[1, 0])))  # type: ignore[no-any-return]


def added(op: Backward, *terms: Gradient) -> ir.Value:
    """Sum of what there is."""
    total, *others = [term for term in terms if term is not None]
    for term in others:
        total = op.Add(total, term)
    return total


def piece(op: Backward, value: ir.Value, index: int, count: int, axis: int) -> ir.Value:
    """Part `index` of `count` equal parts along an axis."""

    def make() -> ir.Value:
        whole = dims(value)[axis]
        assert isinstance(whole, int)
        part = whole // count
        return op.Slice(value, [index * part], [(index + 1) * part], [axis])  # type: ignore[no-any-return]

    return value if count == 1 else op.once(("piece", value, index, count, axis), make)


def of_direction(op: Backward, value: ir.Value, index: int, count: int, axis: int) -> ir.Value:
    """Entry `index` of the direction axis, the axis removed."""

    def make() -> ir.Value:
        return op.Squeeze(piece(op, value, index, count, axis), [axis])  # type: ignore[no-any-return]

    return op.once(("direction", value, index, axis), make)


def zeros_like(op: Backward, value: ir.Value) -> ir.Value:
    """Zeros in the shape of a tensor."""
    return op.reshaped(op.Expand(op.constant(0.0, value.dtype), op.shape(value)), dims(value))  # type: ignore[arg-type]


def time_first(op: Backward, value: ir.Value, perm: list[int]) -> ir.Value:
    """A forward tensor of layout 1 in layout 0."""
    return op.once(("time first", value), lambda: op.Transpose(value, perm=perm))


def direction_of(
    op: Backward,
    node: Node,
    arrived: Sequence[Gradient],
    activations: Sequence[str],
    index: int,
    count: int,
    reverse: bool,
    batch_first: bool,
) -> Direction:
    """Direction `index` of `count`, `reverse` turned; arrived: at the sequence and the last states, all directions."""
    w, r, bias, start_h, start_c, peephole = (
        None if value is None else op.real(value) for value in (node.input(i) for i in (1, 2, 3, 5, 6, 7))
    )
    assert w is not None and r is not None
    x, h = op.real(node.x), op.real(op.forward_output(node.outputs[0], 0))
    states = [start_h, start_c]
    if batch_first:
        x, h = time_first(op, x, [1, 0, 2]), time_first(op, h, [1, 2, 0, 3])
        states = [None if state is None else time_first(op, state, [1, 0, 2]) for state in states]
    h = of_direction(op, h, index, count, 1)
    start_h, start_c = [None if s is None else of_direction(op, s, index, count, 0) for s in states]
    if reverse:
        x, h = turned(op, x), turned(op, h)
    first = op.Unsqueeze(start_h, [0]) if start_h is not None else zeros_like(op, op.Slice(h, [0], [1], [0]))
    earlier = op.reshaped(op.Concat(first, op.Slice(h, [0], [-1], [0]), axis=0), dims(h))
    if node.op_type == "LSTM" and start_c is None:
        start_c = zeros_like(op, op.Squeeze(op.Slice(h, [0], [1], [0]), [0]))
    g, g_h, g_c = (
        None if v is None else of_direction(op, v, index, count, axis)
        for v, axis in zip(arrived, (1, 0, 0), strict=True)
    )
    if g is not None and reverse:
        g = turned(op, g)
    if g_h is None:
        like = g_c if g_c is not None else op.Squeeze(op.Slice(g, [0], [1], [0]), [0])
        g_h = zeros_like(op, like)
    bias = None if bias is None else of_direction(op, bias, index, count, 0)
    peephole = None if peephole is None else of_direction(op, peephole, index, count, 0)
    names = [name.lower() for name in node.attr("activations") or [*activations] * count]
    per = len(activations)
    return Direction(
        x=x,
        h=h,
        before=earlier,
        w=of_direction(op, w, index, count, 0),
        r=of_direction(op, r, index, count, 0),
        bias_w=None if bias is None else piece(op, bias, 0, 2, 0),
        bias_r=None if bias is None else piece(op, bias, 1, 2, 0),
        peepholes=None if peephole is None else [piece(op, peephole, i, 3, 0) for i in range(3)],
        start_c=start_c,
        activations=names[per * index : per * (index + 1)],
        g=g,
        g_h=g_h,
        g_c=g_c,
    )


def scan_back(
    op: Backward, d: Direction, states: Sequence[ir.Value], factors: Sequence[ir.Value], step: Step
) -> tuple[list[ir.Value], list[ir.Value]]:
    """Scan from the last step to the first: step(op, g at h_t, states but the first, factors) -> (states, results)."""
    sequences = [turned(op, value) for value in ([d.g] if d.g is not None else []) + list(factors)]

    def body(inner: Builder, before: Values, entries: Values) -> tuple[Values, Values]:
        arrived = before[0]
        if d.g is not None:
            arrived, entries = inner.Add(before[0], entries[0]), entries[1:]
        after, results = step(inner, arrived, before[1:], entries)
        kept = [inner.reshaped(a, dims(b)) for a, b in zip(after, before, strict=True)]  # from step to step
        return kept, results

    last, results = op.scan(states, sequences, body)
    return last, [turned(op, result) for result in results]
