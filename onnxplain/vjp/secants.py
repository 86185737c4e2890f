"""Secants: what stands in the place of a derivative between two points, the input and a reference.

A secant has the form of a derivative, `(op, node, m) -> [multiplier per input or None]`: m multiplies the difference of
the output, and the sum of multiplier times difference over all inputs is the same (summation to delta). These are the
multipliers of DeepLIFT (Shrikumar et al. 2017, section 3). What an op has by its kind is `secant_of`; `@secant` says
what it has of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import factorial
from typing import Any

import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims, is_float
from onnxplain.graph.walk import Derivative, Gradient
from onnxplain.vjp.registry import lookup

NEAR = 1e-6  # in the unit of the tensor: a smaller difference is none, and the derivative counts; shap's
OPERANDS = 4  # of one node that may differ at once: each more doubles the evaluations
SECANTS: dict[str, Derivative] = {}


def secant(*op_types: str) -> Callable[[Derivative], Derivative]:
    """Register the secant of op types."""

    def register(function: Derivative) -> Derivative:
        for op_type in op_types:
            if op_type in SECANTS:
                raise ValueError(f"the secant of {op_type} is registered twice")
            SECANTS[op_type] = function
        return function

    return register


def secant_of(node: Node) -> Derivative:
    """The secant of a node, its own or its kind's. Raises UnsupportedOp where there is none."""
    entry = lookup(node)
    found = SECANTS.get(node.op_type)
    if found is None and (entry.linear or entry.kind in ("sum", "mean")):
        found = chord
    if found is None and entry.kind == "activation":
        found = rescaled
    if found is None or node.attr("reduction", "none") not in ("none", "add"):
        raise UnsupportedOp(
            f"{node}: no rule for the difference of {node.op_type} from a reference. Use another method "
            f"(integrated_gradients compares with a baseline through any op), or attribute to its output "
            f"(--attribute-to {node.y.name})."
        )
    return found


def differing(op: Backward, node: Node) -> list[int]:
    """The float inputs that may have another value on the reference."""
    return [i for i, value in enumerate(node.inputs) if value is not None and is_float(value) and op.differs(value)]


def only_first(op: Backward, node: Node) -> None:
    """Raise UnsupportedOp where another input than the first differs: a scale or limit that the model computes."""
    for i in differing(op, node):
        if i:
            value = node.inputs[i]
            assert value is not None
            raise UnsupportedOp(
                f"{node}: {value.name}, its input {i}, differs from the reference too, and the rule for its "
                f"difference holds where the first input alone does. Attribute to its output (--attribute-to "
                f"{node.y.name})."
            )


@secant("Mul", "Where", "OneHot", "FeatureVectorizer")
def chord(op: Backward, node: Node, m: Any) -> list[Gradient]:
    """What is linear in each input: the derivative, taken half way where two of them differ, which is exact.

    delta(a b) = delta a (b + b') / 2 + delta b (a + a') / 2: each factor's part is its Shapley value.
    """
    entry = lookup(node)
    if len(differing(op, node)) > 1:
        if entry.kind in ("linear", "product"):
            node = node.with_inputs(*(v if v is None or not is_float(v) else op.midpoint(v) for v in node.inputs))
        elif entry.kind == "normalisation":
            only_first(op, node)
    return list(entry.vjp(op, node, m))


@secant("Div")
def quotient(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """a times 1 / b, as in `chord`: m (1/b + 1/b') / 2 to a, -m (a + a') / 2 / (b b') to b."""
    a, b = node.x, node.inputs[1]
    assert b is not None
    other = op.reference(b)
    inverse = op.once(("inverse", b), lambda: op.Reciprocal(op.real(b)))
    inverse_other = inverse if other is b else op.once(("inverse", other), lambda: op.Reciprocal(op.real(other)))
    to_a = m * (inverse if other is b else (inverse + inverse_other) * 0.5)
    return [to_a, None if op.is_constant(b) else -(m * op.midpoint(a) * inverse * inverse_other)]


@secant("Max", "Min", "Pow", "Mod", "Imputer", "Exp", "Log", "Sqrt", "Reciprocal", "Abs")
@secant("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh")
def rescaled(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """Elementwise functions: m (y - y') / (x - x'), the derivative where |x - x'| < NEAR. Shrikumar, section 3.5.2.

    Where several operands differ, each one's part of y - y' is its Shapley value over their 2^n mixtures. Where the
    derivative is infinite (a square root that stays 0) an input that does not move gets 0.
    """
    given = differing(op, node)
    slopes = list(lookup(node).vjp(op, node, m))
    for i in given:
        slope, value = slopes[i], node.inputs[i]
        if slope is None or value is None:
            continue
        if lookup(node).unbounded:
            slope = op.Where(op.Less(op.Abs(slope), float("inf")), slope, 0.0)
        moved = m * ratio(op, node, given, i)
        slopes[i] = op.reshaped(op.Where(near(op, value), slope, moved), dims(m))
    return slopes


def near(op: Backward, value: ir.Value) -> ir.Value:
    """|x - x'| < NEAR, once for all users."""
    return op.once(("near", value), lambda: op.Less(op.Abs(op.difference(value)), NEAR))


def ratio(op: Backward, node: Node, given: list[int], index: int) -> ir.Value:
    """(y - y') / (x - x') for an operand, with its part of y - y'; y - y' where these are near."""
    value = node.inputs[index]
    assert value is not None

    def make() -> ir.Value:
        step = op.Where(near(op, value), 1.0, op.difference(value))
        return op.Div(part(op, node, given, index), step)  # type: ignore[no-any-return]

    return op.once(("ratio", node.y, index), make)


def part(op: Backward, node: Node, given: list[int], index: int) -> ir.Value:
    """An operand's part of y - y': its mean effect over the orders in which operands leave the reference."""
    if len(given) == 1:
        return op.difference(node.y)
    if len(given) > OPERANDS:
        raise UnsupportedOp(
            f"{node}: {len(given)} of its operands differ from the reference, and their parts are counted for up to "
            f"{OPERANDS}. Attribute to its output (--attribute-to {node.y.name})."
        )
    others, total = [i for i in given if i != index], None
    for size in range(len(given)):
        weight = factorial(size) * factorial(len(given) - size - 1) / factorial(len(given))
        for chosen in combinations(others, size):
            step = (mixture(op, node, (*chosen, index)) - mixture(op, node, chosen)) * weight
            total = step if total is None else total + step
    assert total is not None
    return total  # type: ignore[no-any-return]


def mixture(op: Backward, node: Node, own: tuple[int, ...]) -> ir.Value:
    """The node's output where these operands have their value and the others that of the reference."""
    kept = frozenset(own)
    inputs = [value if value is None or i in kept else op.reference(value) for i, value in enumerate(node.inputs)]
    return op.once(("mixture", node.y, kept), lambda: op.real(op.again(node, *inputs)))


@secant("MaxPool", "GlobalMaxPool", "ReduceMax")
def largest(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """A maximum that rose rose by its winner, one that fell fell by the reference's: captum's and shap's rule.

    m max(y - y', 0) goes to the winner of x and m min(y - y', 0) to that of x', each divided by its difference, which
    is at least as large: multipliers of a maximum lie between 0 and 1.
    """
    return extreme(op, node, m, rising=op.Max(op.difference(node.y), 0.0), falling=op.Min(op.difference(node.y), 0.0))


@secant("ReduceMin")
def smallest(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """A minimum that fell fell by its winner, one that rose rose by the reference's."""
    return extreme(op, node, m, rising=op.Min(op.difference(node.y), 0.0), falling=op.Max(op.difference(node.y), 0.0))


def extreme(op: Backward, node: Node, m: ir.Value, rising: ir.Value, falling: ir.Value) -> list[Gradient]:
    """rising: the change of y that belongs to the winner of x. falling: that of the winner of x'."""
    vjp = lookup(node).vjp
    own, *rest = vjp(op, node, op.reshaped(m * rising, dims(m)))
    others = vjp(op, op.on_reference(node), op.reshaped(m * falling, dims(m)))[0]
    assert own is not None and others is not None
    difference = op.difference(node.x)
    step = op.Where(op.Equal(difference, 0.0), 1.0, difference)
    return [op.Div(op.Add(own, others), step), *rest]
