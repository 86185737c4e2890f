"""RNN, GRU, LSTM: back-propagation through time as one Scan; everything that can be is computed for all steps at once.

Layout inside: sequences (T, B, ...), states (B, H); gradients have S streams in the place of B. A recurrent op that
runs backwards in time is one that runs forwards over the turned sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.builder import Builder
from onnxplain.graph.node import Node, dims, ints
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.lengths import END, joined
from onnxplain.vjp.registry import case, vjp

Values = Sequence[ir.Value]
Step = Callable[[Builder, ir.Value, Values, Values], tuple[Values, Values]]
DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


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
class Sent:
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


def nothing_like(op: Backward, value: ir.Value) -> ir.Value:
    """Zeros in the shape of a tensor."""
    return op.reshaped(op.Expand(op.constant(0.0, value.dtype), op.shape(value)), dims(value))  # type: ignore[arg-type]


def recurrent(op: Backward, node: Node, gs: Sequence[Gradient]) -> list[Gradient]:
    """Gradients of x, of the initial states, and of the weights that the model computes."""
    given: list[Gradient] = [*gs, None, None, None][:3]
    batch_first = node.attr("layout", 0) == 1
    check(node)
    if batch_first:  # to (T, D, B, H), (D, B, H)
        perms = [[1, 2, 0, 3], [1, 0, 2], [1, 0, 2]]
        given = [None if g is None else op.Transpose(g, perm=perm) for g, perm in zip(given, perms, strict=True)]
    count = 2 if node.attr("direction", "forward") == "bidirectional" else 1
    parts: dict[int, list[ir.Value]] = {}
    to_x = []
    for index in range(count):
        reverse = index == 1 or node.attr("direction", "forward") == "reverse"
        view = _direction(op, node, given, index, count, reverse, batch_first)
        sent = STEPS[node.op_type](op, node, view)
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


def gradients(op: Backward, d: Direction, sent: Sent) -> dict[int, Callable[[], ir.Value]]:
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


def time_first(op: Backward, value: ir.Value, perm: list[int]) -> ir.Value:
    """A forward tensor of layout 1 in layout 0."""
    return op.once(("time first", value), lambda: op.Transpose(value, perm=perm))


def _direction(
    op: Backward, node: Node, given: Sequence[Gradient], index: int, count: int, reverse: bool, batch_first: bool
) -> Direction:
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
    first = op.Unsqueeze(start_h, [0]) if start_h is not None else nothing_like(op, op.Slice(h, [0], [1], [0]))
    earlier = op.reshaped(op.Concat(first, op.Slice(h, [0], [-1], [0]), axis=0), dims(h))
    if node.op_type == "LSTM" and start_c is None:
        start_c = nothing_like(op, op.Squeeze(op.Slice(h, [0], [1], [0]), [0]))
    g, g_h, g_c = (
        None if v is None else of_direction(op, v, index, count, axis) for v, axis in zip(given, (1, 0, 0), strict=True)
    )
    if g is not None and reverse:
        g = turned(op, g)
    if g_h is None:
        like = g_c if g_c is not None else op.Squeeze(op.Slice(g, [0], [1], [0]), [0])
        g_h = nothing_like(op, like)
    bias = None if bias is None else of_direction(op, bias, index, count, 0)
    peephole = None if peephole is None else of_direction(op, peephole, index, count, 0)
    names = [name.lower() for name in node.attr("activations") or DEFAULTS[node.op_type] * count]
    per = len(DEFAULTS[node.op_type])
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


def backwards(
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


@vjp(
    "RNN",
    kind="other",
    silent=(4,),
    all_outputs=True,
    streams=streams.recurrent,
    cases=[
        case(x=(4, 2, 3), w=(1, 5, 3), r=(1, 5, 5), b=(1, 10), hidden_size=5, sample="unit"),
        case(
            x=(4, 2, 3),
            w=(2, 5, 3),
            r=(2, 5, 5),
            b=None,
            lengths=None,
            h=(2, 2, 5),
            hidden_size=5,
            direction="bidirectional",
            activations=["Tanh", "Sigmoid"],
            sample="unit",
        ),
    ],
)
@vjp(
    "GRU",
    kind="other",
    silent=(4,),
    all_outputs=True,
    streams=streams.recurrent,
    cases=[
        case(x=(4, 2, 3), w=(1, 15, 3), r=(1, 15, 5), b=(1, 30), hidden_size=5, sample="unit"),
        case(
            x=(4, 2, 3),
            w=(1, 15, 3),
            r=(1, 15, 5),
            b=(1, 30),
            lengths=None,
            h=(1, 2, 5),
            hidden_size=5,
            linear_before_reset=1,
            sample="unit",
        ),
        case(
            x=(4, 2, 3),
            w=(1, 15, 3),
            r=(1, 15, 5),
            b=None,
            lengths=np.array([4, 4], np.int32),
            hidden_size=5,
            direction="reverse",
            sample="unit",
        ),
        case(
            x=(3, 1, 3),
            w=(2, 15, 3),
            r=(2, 15, 5),
            b=(2, 30),
            lengths=None,
            h=(2, 1, 5),
            hidden_size=5,
            direction="bidirectional",
            linear_before_reset=1,
            outputs=2,
            sample="unit",
        ),
    ],
)
@vjp(
    "LSTM",
    kind="other",
    silent=(4,),
    all_outputs=True,
    streams=streams.recurrent,
    cases=[
        case(x=(4, 2, 3), w=(1, 20, 3), r=(1, 20, 5), b=(1, 40), hidden_size=5, sample="unit"),
        case(
            x=(4, 2, 3),
            w=(1, 20, 3),
            r=(1, 20, 5),
            b=None,
            lengths=None,
            h=(1, 2, 5),
            c=(1, 2, 5),
            hidden_size=5,
            direction="reverse",
            sample="unit",
        ),
        case(
            x=(3, 2, 3),
            w=(2, 20, 3),
            r=(2, 20, 5),
            b=(2, 40),
            lengths=None,
            h=(2, 2, 5),
            c=(2, 2, 5),
            p=(2, 15),
            hidden_size=5,
            direction="bidirectional",
            outputs=3,
            sample="unit",
        ),
        case(
            x=(3, 1, 3),
            w=(1, 20, 3),
            r=(1, 20, 5),
            b=(1, 40),
            lengths=None,
            h=None,
            c=None,
            p=(1, 15),
            hidden_size=5,
            input_forget=1,
            sample="unit",
        ),
        case(
            x=np.linspace(-1, 1, 18).reshape(2, 3, 3),
            w=np.linspace(-1, 1, 120).reshape(2, 20, 3),
            r=(2, 20, 5),
            b=(2, 40),
            lengths=None,
            h=(2, 2, 5),
            c=None,
            p=(2, 15),
            hidden_size=5,
            direction="bidirectional",
            layout=1,
            sample="unit",
        ),
    ],
)
def through_time(op: Backward, node: Node, gs: list[Gradient]) -> list[Gradient]:
    """Back-propagation through time (Werbos 1990); hidden states come from the forward node's own first output."""
    return recurrent(op, node, gs)


def rnn(op: Backward, node: Node, d: Direction) -> Sent:
    """h_t = f(x W^T + h_{t-1} R^T + b)."""

    def step(inner: Builder, g: ir.Value, states: Values, factors: Values) -> tuple[Values, Values]:
        gate = inner.Mul(g, factors[0])
        return [inner.MatMul(gate, d.r)], [gate]

    (h,), (gates,) = backwards(op, d, [d.g_h], [slope(op, d.activations[0], d.h)], step)
    return Sent(gates, h, lambda: [(gates, d.before)])


def gru(op: Backward, node: Node, d: Direction) -> Sent:
    """h_t = (1 - z) n + z h_{t-1}; z and r gates, n the candidate, which sees h_{t-1} through r.

    n = g(x W^T + (r h) R^T + b), or with linear_before_reset n = g(x W^T + b_w + r (h R^T + b_r)).
    """
    f, tanh = d.activations
    r_gates, r_n = op.Slice(d.r, [0], [-_hidden(d)], [0]), piece(op, d.r, 2, 3, 0)
    forward = added(op, product(op, d.x, d.w), d.bias_w)
    from_x, from_n = _cut(op, forward)
    bias, bias_n = (None, None) if d.bias_r is None else _cut(op, d.bias_r)
    both = activate(op, f, added(op, from_x, product(op, d.before, r_gates), bias))
    z, r = op.Split(both, axis=-1, num_outputs=2, outputs=2)
    linear = node.attr("linear_before_reset", 0)
    if linear:
        inside = added(op, product(op, d.before, r_n), bias_n)
        n = activate(op, tanh, added(op, from_n, r * inside))
    else:
        n = activate(op, tanh, added(op, from_n, product(op, r * d.before, r_n), bias_n))
    to_z, to_n = (d.before - n) * slope(op, f, z), (1.0 - z) * slope(op, tanh, n)
    if linear:
        to_r = to_n * inside * slope(op, f, r)
        factors = [op.Concat(to_z, to_r, to_n * r, axis=-1), z]

        def step(inner: Builder, g: ir.Value, states: Values, factors: Values) -> tuple[Values, Values]:
            gates = inner.Mul(inner.Concat(g, g, g, axis=-1), factors[0])
            return [inner.Add(inner.MatMul(gates, d.r), inner.Mul(g, factors[1]))], [g]

        (h,), (g,) = backwards(op, d, [d.g_h], factors, step)
        gates = op.Concat(g * to_z, g * to_r, g * to_n, axis=-1)
        return Sent(gates, h, lambda: [(op.Mul(op.Concat(g, g, g, axis=-1), factors[0]), d.before)])

    def step_inside(inner: Builder, g: ir.Value, states: Values, factors: Values) -> tuple[Values, Values]:
        to_z, to_n, to_r, z, r = factors
        candidate = inner.Mul(g, to_n)
        passed = inner.MatMul(candidate, r_n)
        gates = inner.Concat(inner.Mul(g, to_z), inner.Mul(passed, to_r), axis=-1)
        h = inner.Add(inner.MatMul(gates, r_gates), inner.Add(inner.Mul(passed, r), inner.Mul(g, z)))
        return [h], [inner.Concat(gates, candidate, axis=-1)]

    factors = [to_z, to_n, d.before * slope(op, f, r), z, r]
    (h,), (gates,) = backwards(op, d, [d.g_h], factors, step_inside)

    def pairs() -> list[tuple[ir.Value, ir.Value]]:
        first, candidate = _cut(op, gates)
        return [(first, d.before), (candidate, op.Mul(r, d.before))]

    return Sent(gates, h, pairs)


def _hidden(d: Direction) -> int:
    size = dims(d.r)[-1]
    assert isinstance(size, int)
    return size


def _cut(op: Backward, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The last of three equal parts of the last axis taken off."""
    whole = dims(value)[-1]
    assert isinstance(whole, int)
    at = whole // 3 * 2
    first, last = op.Split(value, [at, whole - at], axis=-1, outputs=2)
    return first, last


def lstm(op: Backward, node: Node, d: Direction) -> Sent:
    """c_t = f c_{t-1} + i n; h_t = o tanh(c_t). Gates i, o, f see c through the peepholes, o the new one.

    The cell states are no output for every step: a first Scan computes them again.
    """
    sigmoid, tanh, squash = d.activations
    coupled = node.attr("input_forget", 0)
    raw = added(op, product(op, d.x, d.w), product(op, d.before, d.r), d.bias_w, d.bias_r)
    to_i, to_o, to_f, to_n = op.Split(raw, axis=-1, num_outputs=4, outputs=4)
    n = activate(op, tanh, to_n)
    peep = d.peepholes
    assert d.start_c is not None

    def cells(inner: Builder, states: Values, entries: Values) -> tuple[Values, Values]:
        (c,), (i, f, n) = states, entries
        i = activate(inner, sigmoid, inner.Add(i, inner.Mul(c, peep[0])) if peep else i)
        f = activate(inner, sigmoid, inner.Add(f, inner.Mul(c, peep[2])) if peep else f)
        kept = inner.Sub(1.0, i) if coupled else f
        c = inner.reshaped(inner.Add(inner.Mul(kept, c), inner.Mul(i, n)), dims(c))
        return [c], [c]

    _, (c,) = op.scan([d.start_c], [to_i, to_f, n], cells)
    before = op.reshaped(op.Concat(op.Unsqueeze(d.start_c, [0]), op.Slice(c, [0], [-1], [0]), axis=0), dims(c))
    if peep is not None:
        to_i, to_o, to_f = to_i + before * peep[0], to_o + c * peep[1], to_f + before * peep[2]
    i, o = activate(op, sigmoid, to_i), activate(op, sigmoid, to_o)
    squashed = activate(op, squash, c)
    di = (n - before if coupled else n) * slope(op, sigmoid, i)
    do = squashed * slope(op, sigmoid, o)
    dn = i * slope(op, tanh, n)
    if coupled:
        f, df = 1.0 - i, nothing_like(op, i)
    else:
        f = activate(op, sigmoid, to_f)
        df = before * slope(op, sigmoid, f)

    def step(inner: Builder, g: ir.Value, states: Values, factors: Values) -> tuple[Values, Values]:
        to_c, do, others, f = factors
        out = inner.Mul(g, do)
        c = inner.Add(states[0], inner.Mul(g, to_c))
        c = inner.Add(c, inner.Mul(out, peep[1])) if peep else c
        i_gate, f_gate, n_gate = inner.Split(
            inner.Mul(inner.Concat(c, c, c, axis=-1), others), axis=-1, num_outputs=3, outputs=3
        )
        gates = inner.Concat(i_gate, out, f_gate, n_gate, axis=-1)
        earlier = inner.Mul(c, f)
        if peep:
            earlier = inner.Add(earlier, inner.Add(inner.Mul(i_gate, peep[0]), inner.Mul(f_gate, peep[2])))
        return [inner.MatMul(gates, d.r), earlier], [gates]

    g_c = d.g_c if d.g_c is not None else nothing_like(op, d.g_h)
    factors = [o * slope(op, squash, squashed), do, op.Concat(di, df, dn, axis=-1), f]
    (h, c_start), (gates,) = backwards(op, d, [d.g_h, g_c], factors, step)
    return Sent(gates, h, lambda: [(gates, d.before)], c_start, (before, c))


STEPS = {"RNN": rnn, "GRU": gru, "LSTM": lstm}
