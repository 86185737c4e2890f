"""DeepLIFT's RevealCancel: what speaks for a unit and what speaks against it go through its activation apart.

Shrikumar, Greenside and Kundaje 2017, section 3.5.3, in each layer with weights that an activation follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims
from onnxplain.graph.relevance import Activated, Portion, Relevance
from onnxplain.graph.walk import Arrived
from onnxplain.rules.difference import DIFFERENCE_RULES, DifferenceRule, rescale
from onnxplain.rules.linear import Layer, minus, plus
from onnxplain.vjp import lookup, weight_and_bias
from onnxplain.vjp.secants import NEAR, differing, rescaled, secant_of


def reveal_cancel(op: Backward, node: Node, r: Arrived) -> Sequence[Portion]:
    """In a layer that one activation alone follows, by halves; everywhere else by `rescale`."""
    if isinstance(r, list):
        return rescale(op, node, r)
    if secant_of(node) is rescaled and differing(op, node) == [0]:
        above = Activated(node, r.value)
        sent = secant_of(node)(op, node, r.value)
        return [None if m is None else Relevance(m, activated=above) for m in sent]
    layer = r.activated is not None and lookup(node).kind == "linear" and weight_and_bias(op, node) is not None
    if not layer or not op.differs(node.y):
        return rescale(op, node, r)
    return halves(op, Layer.of(op, node, "reveal_cancel"), r)


def halves(op: Backward, layer: Layer, r: Relevance) -> list[Portion]:
    """m_i = sum_j w_ij M_j^+ where w_ij delta x_i > 0, w_ij M_j^- where it is < 0, half of both where delta x_i = 0.

    delta z^+ and delta z^- are the sums of the positive and of the negative w_ij delta x_i, and M^+ = m delta y^+ /
    delta z^+ with delta y^+ = (f(z' + delta z^+) - f(z') + f(z) - f(z' + delta z^-)) / 2, its mean effect before and
    after the other; delta y^- likewise.
    """
    difference = op.difference(layer.node.inputs[layer.position])  # type: ignore[arg-type]
    up, down = op.Max(difference, 0.0), op.Min(difference, 0.0)
    positive, negative = plus(op, layer.w), minus(op, layer.w)
    steps = (
        op.Add(layer.forward(op, up, positive, None), layer.forward(op, down, negative, None)),
        op.Add(layer.forward(op, up, negative, None), layer.forward(op, down, positive, None)),
    )
    for_it, against = effects(op, r, layer.node.y, steps)
    rising = op.Add(layer.back(op, positive, for_it), layer.back(op, negative, against))
    falling = op.Add(layer.back(op, negative, for_it), layer.back(op, positive, against))
    still = op.Mul(op.Add(rising, falling), 0.5)
    chosen = op.Where(op.Greater(difference, 0.0), rising, op.Where(op.Less(difference, 0.0), falling, still))
    return layer.portions(chosen, zero_with_x=False)


def effects(op: Backward, r: Relevance, z: ir.Value, steps: tuple[ir.Value, ir.Value]) -> list[ir.Value]:
    """M^+ and M^-; where a step is near 0, what Rescale gives."""
    assert r.activated is not None
    activation, m = r.activated.node, r.activated.relevance
    other = op.real(op.reference(z))
    alone = [again(op, activation, op.Add(other, step)) for step in steps]
    whole, base = op.real(activation.y), op.real(op.reference(activation.y))
    result = []
    for step, own, rest in ((steps[0], *alone), (steps[1], *alone[::-1])):
        effect = op.Mul(op.Add(op.Sub(own, base), op.Sub(whole, rest)), 0.5)
        near = op.Less(op.Abs(step), NEAR)
        ratio = op.Div(effect, op.Where(near, 1.0, step))
        result.append(op.reshaped(op.Where(near, r.value, op.Mul(m, ratio)), dims(r.value)))
    return result


def again(op: Backward, node: Node, x: ir.Value) -> ir.Value:
    """The activation of another input: its members' steps, where it is a recognised pattern."""
    if node.x.dtype is not None and node.x.dtype != x.dtype:
        x = op.Cast(x, to=int(node.x.dtype))
    if not node.members:
        return op.real(op.again(node, x, *node.inputs[1:]))
    made: dict[ir.Value | None, ir.Value] = {node.x: x}
    for member in node.members:
        made[member.y] = op.again(member, *(made.get(value, value) for value in member.inputs))
    return op.real(made[node.y])


DIFFERENCE_RULES["reveal_cancel"] = DifferenceRule("reveal_cancel", reveal_cancel)
