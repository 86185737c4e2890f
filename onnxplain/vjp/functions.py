"""Functions of one tensor that are no activations: powers, exponentials, trigonometry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.graph import signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, constant, is_float
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.registry import case, vjp


@vjp("Exp", kind="other", streams=streams.elementwise, sign=signs.always, cases=[case(x=(2, 5))])
def exp(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = y."""
    return [g * op.real(node.y)]


@vjp("Log", kind="other", unbounded=True, streams=streams.elementwise, cases=[case(x=(2, 5), sample="positive")])
def log(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = 1 / x."""
    return [g / op.real(node.x)]


@vjp(
    "Sqrt",
    kind="other",
    unbounded=True,
    streams=streams.elementwise,
    sign=signs.always,
    cases=[case(x=(2, 5), sample="positive")],
)
def sqrt(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = 1 / (2 y): infinite at 0, as in torch."""
    return [g * 0.5 / op.real(node.y)]


@vjp(
    "Reciprocal",
    kind="other",
    unbounded=True,
    streams=streams.elementwise,
    sign=signs.first,
    cases=[case(x=(2, 5), sample="away")],
)
def reciprocal(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = -y^2."""
    y = op.real(node.y)
    return [-(g * y * y)]


@vjp("Abs", kind="other", streams=streams.elementwise, sign=signs.always, cases=[case(x=(2, 5), sample="away")])
def absolute(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g with the sign of x, 0 at 0."""
    return [g * op.Sign(op.real(node.x))]


def power_sign(node: Node, known: Sequence[bool]) -> bool:
    """Of a base that is not negative, or to an even power."""
    exponent = constant(node.input(1))
    return known[0] or (exponent is not None and bool(np.all(np.asarray(exponent) % 2 == 0)))


@vjp(
    "Pow",
    kind="other",
    unbounded=True,
    broadcasts=True,
    streams=streams.elementwise,
    sign=power_sign,
    cases=[
        *(case(x=(2, 5), exponent=np.array(p)) for p in (0.0, 1.0, 2.0, 3.0)),
        *(case(x=(2, 5), exponent=np.array(p), sample="positive") for p in (0.5, -1.5)),
        case(x=(2, 5), exponent=np.array([2], dtype=np.int64)),
        case(x=(2, 1), exponent=np.array([0.0, 1.0, 2.0, 0.3]), sample="positive"),
        case(x=(2, 3, 1), exponent=(3, 2), sample="positive"),
    ],
)
def power(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = x^p: g p x^(p-1) to x, 0 where p is; g y ln x to p, 0 where x is not positive (as torch at 0)."""
    x, p = op.real(node.x), node.inputs[1]
    assert p is not None
    to_p = None
    if is_float(p) and not op.is_constant(p):
        above = op.Greater(x, 0.0)
        to_p = op.Where(above, g * op.real(node.y) * op.Log(op.Where(above, x, 1.0)), 0.0)
    known = constant(p)
    if known is None or known.size != 1:
        p = p if p.dtype == x.dtype else op.Cast(p, to=int(x.dtype or ir.DataType.FLOAT))
        zero = op.Equal(p, 0.0)
        lower = op.Pow(x, op.Where(zero, 1.0, p - 1.0))
        return [op.Where(zero, 0.0, g * p * lower), to_p]
    exponent = float(known.item())
    if exponent == 0.5:
        return [g * 0.5 / op.real(node.y), to_p]
    if exponent == 0.0:
        return [op.zeros(g, node.x), to_p]
    lowered = {1.0: g, 2.0: g * 2.0 * x, 3.0: g * 3.0 * (x * x)}
    return [lowered[exponent] if exponent in lowered else g * exponent * op.Pow(x, exponent - 1.0), to_p]


# The derivatives below use no Tan, Cosh and the like: onnxruntime has none of them for CUDA.


@vjp("Sin", kind="other", streams=streams.elementwise, cases=[case(x=(2, 5))])
def sin(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = cos x."""
    return [g * op.Cos(op.real(node.x))]


@vjp("Cos", kind="other", streams=streams.elementwise, cases=[case(x=(2, 5))])
def cos(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = -sin x."""
    return [-(g * op.Sin(op.real(node.x)))]


@vjp("Tan", kind="other", streams=streams.elementwise, cases=[case(x=(2, 5), sample="unit")])
def tan(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = 1 + y^2."""
    y = op.real(node.y)
    return [g * (1.0 + y * y)]


@vjp(
    "Asin",
    kind="other",
    unbounded=True,
    streams=streams.elementwise,
    sign=signs.first,
    cases=[case(x=(2, 5), sample="unit")],
)
def asin(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = 1 / sqrt(1 - x^2)."""
    x = op.real(node.x)
    return [g / op.Sqrt(1.0 - x * x)]


@vjp(
    "Acos",
    kind="other",
    unbounded=True,
    streams=streams.elementwise,
    sign=signs.always,
    cases=[case(x=(2, 5), sample="unit")],
)
def acos(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = -1 / sqrt(1 - x^2)."""
    x = op.real(node.x)
    return [-(g / op.Sqrt(1.0 - x * x))]


@vjp("Atan", kind="other", streams=streams.elementwise, sign=signs.first, cases=[case(x=(2, 5))])
def atan(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = 1 / (1 + x^2)."""
    x = op.real(node.x)
    return [g / (1.0 + x * x)]


@vjp("Sinh", kind="other", streams=streams.elementwise, sign=signs.first, cases=[case(x=(2, 5))])
def sinh(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = cosh x = sqrt(1 + y^2)."""
    y = op.real(node.y)
    return [g * op.Sqrt(1.0 + y * y)]


@vjp("Cosh", kind="other", streams=streams.elementwise, sign=signs.always, cases=[case(x=(2, 5))])
def cosh(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = sinh x = (e^x - e^-x) / 2."""
    x = op.real(node.x)
    return [g * 0.5 * (op.Exp(x) - op.Exp(-x))]


@vjp("Asinh", kind="other", streams=streams.elementwise, sign=signs.first, cases=[case(x=(2, 5))])
def asinh(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = 1 / sqrt(1 + x^2)."""
    x = op.real(node.x)
    return [g / op.Sqrt(1.0 + x * x)]


@vjp(
    "Acosh",
    kind="other",
    unbounded=True,
    streams=streams.elementwise,
    sign=signs.always,
    cases=[case(x=(2, 5), sample="above")],
)
def acosh(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = 1 / sqrt(x^2 - 1)."""
    x = op.real(node.x)
    return [g / op.Sqrt((x - 1.0) * (x + 1.0))]


@vjp(
    "Atanh",
    kind="other",
    unbounded=True,
    streams=streams.elementwise,
    sign=signs.first,
    cases=[case(x=(2, 5), sample="unit")],
)
def atanh(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = 1 / (1 - x^2)."""
    x = op.real(node.x)
    return [g / ((1.0 - x) * (1.0 + x))]
