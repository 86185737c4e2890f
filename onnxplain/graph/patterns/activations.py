"""GELU, SiLU, Mish, hard-swish and hard-sigmoid, written as arithmetic."""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

import onnx_ir as ir

from onnxplain.graph.node import Node
from onnxplain.graph.patterns.view import Group, View
from onnxplain.graph.polynomial import Polynomial, polynomial, same, scalar


def activation(view: View, node: Node) -> Group | None:
    """GELU (erf and tanh), SiLU, Mish, hard-swish, hard-sigmoid, in any algebraic order."""
    if node.op_type not in ("Mul", "Div", "Add"):
        return None
    outer = polynomial(node.y, view.maker, view.inner)
    if outer is None or not 1 <= len(outer.leaves) <= 2:
        return None
    for f in outer.leaves.values():
        inside = view.made_by(f, "Erf", "Tanh", "Sigmoid", "Clip", "HardSigmoid", "Min", "Relu")
        if inside is None or not view.inner(f):
            continue
        others = [value for value in outer.leaves.values() if value is not f]
        match = _hard_sigmoid(view, node, f, inside) if not others else _gated(view, outer, others[0], f, inside)
        if match is not None:
            group_members = [*outer.members, inside, *match[2]]
            return Group(match[0], (match[3],), group_members, match[1])
    return None


Match = tuple[str, dict[str, Any], list[Node], ir.Value]


def _gated(view: View, outer: Polynomial, x: ir.Value, f: ir.Value, inside: Node) -> Match | None:
    """x times a function of x."""
    op_type = inside.op_type
    if op_type == "Tanh" and outer.is_close({(x, f): 1.0}):
        soft = view.made_by(inside.x, "Softplus")
        if soft is not None and soft.x is x and view.inner(inside.x):
            return "Mish", {}, [soft], x
    arms = _clip_bounds(view, inside)
    argument = polynomial(inside.x, view.maker, lambda v: v is not x and view.inner(v)) if inside.x is not x else None
    members = argument.members if argument is not None and view.inner(inside.x) else []
    if argument is None:
        if op_type == "Sigmoid" and outer.is_close({(x, f): 1.0}):
            return "Swish", {"alpha": 1.0}, [], x
        if op_type == "HardSigmoid" and outer.is_close({(x, f): 1.0}):
            a, b = inside.attr("alpha", 0.2), inside.attr("beta", 0.5)
            return ("HardSwish", {}, [], x) if same(a, 1 / 6) and same(b, 0.5) else None
        return None
    if not view.inner(inside.x):
        return None
    half = outer.is_close({(x,): 0.5, (x, f): 0.5})
    if op_type == "Erf" and half and argument.is_close({(x,): 1 / sqrt(2)}):
        return "Gelu", {"approximate": "none"}, members, x
    k = sqrt(2 / pi)
    if op_type == "Tanh" and half and argument.is_close({(x,): k, (x, x, x): k * 0.044715}):
        return "Gelu", {"approximate": "tanh"}, members, x
    linear = argument.linear()
    if linear is None or linear[0] is not x:
        return None
    _, a, b = linear
    if op_type == "Sigmoid" and b == 0 and outer.is_close({(x, f): 1.0}):
        return "Swish", {"alpha": a}, members, x
    if arms is not None:
        low, high, more = arms
        scale = outer.terms.get(tuple(sorted((id(x), id(f)))), 0.0)
        shape = (same(low, 0.0), same(high * scale, 1.0), same(a * scale, 1 / 6), same(b * scale, 0.5))
        if len([c for c in outer.terms.values() if abs(c) > 1e-9]) == 1 and all(shape):
            return "HardSwish", {}, [*members, *more], x
    return None


def _hard_sigmoid(view: View, node: Node, f: ir.Value, inside: Node) -> Match | None:
    """Clip(a x + b, 0, 1 / s) s."""
    outer = polynomial(node.y, view.maker, view.inner)
    arms = _clip_bounds(view, inside)
    if outer is None or arms is None or not view.inner(inside.x):
        return None
    line, argument = outer.linear(), polynomial(inside.x, view.maker, view.inner, affine=True)
    bottom = argument.linear() if argument is not None else None
    if line is None or bottom is None or argument is None or line[2] != 0 or not argument.members:
        return None
    low, high, more = arms
    if not (same(low, 0.0) and same(high * line[1], 1.0)):
        return None
    attributes = {"alpha": bottom[1] * line[1], "beta": bottom[2] * line[1]}
    return "HardSigmoid", attributes, [*argument.members, *more], bottom[0]


def _clip_bounds(view: View, node: Node) -> tuple[float, float, list[Node]] | None:
    """Constant bounds of a Clip."""
    if node.op_type != "Clip":
        return None
    low, high = scalar(node.input(1)), scalar(node.input(2))
    return None if low is None or high is None else (low, high, [])


def clipped_hard_sigmoid(view: View, node: Node) -> Group | None:
    """Clip(x / 6 + 1/2, 0, 1): the division comes first."""
    arms = _clip_bounds(view, node)
    if arms is None or not (same(arms[0], 0.0) and same(arms[1], 1.0)) or not view.inner(node.x):
        return None
    argument = polynomial(node.x, view.maker, view.inner, affine=True)
    line = argument.linear() if argument is not None else None
    if argument is None or line is None or not argument.members or not line[1]:
        return None
    return Group("HardSigmoid", (line[0],), [node, *argument.members], {"alpha": line[1], "beta": line[2]})
