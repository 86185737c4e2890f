"""The engine of the linear rules: run the layer on modified inputs and weights, divide, run its derivative.

Every LRP rule of the literature for a layer y = W x + b is a sum of *shares*; a share has a denominator
z = sum of W' x' + b' over its terms, and sends coefficient * x' * W'^T (R / z) to the input. W', x' and b' are positive
parts, negative parts, squares. The layer is any op with a derivative (Conv, ConvTranspose, Gemm, MatMul), so one engine
serves every op, and every rule is a few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims, rank
from onnxplain.graph.relevance import Portion, Relevance
from onnxplain.rules.registry import RuleFunction
from onnxplain.vjp import lookup, registered, weight_and_bias
from onnxplain.vjp.facts import Weights

EPSILON = 1e-6  # stabiliser, in the unit of z; zennit's default

Modifier = Callable[[Backward, ir.Value], ir.Value]


def same(op: Backward, v: ir.Value) -> ir.Value:
    """v."""
    return v


def plus(op: Backward, v: ir.Value) -> ir.Value:
    """max(v, 0); nothing to do where v is known to be non-negative."""
    return v if op.is_nonnegative(v) else op.once(("plus", v), lambda: op.Max(v, 0.0))


def minus(op: Backward, v: ir.Value) -> ir.Value:
    """min(v, 0)."""
    return op.once(("minus", v), lambda: op.Min(v, 0.0))


def negated(op: Backward, v: ir.Value) -> ir.Value:
    """-v."""
    return op.once(("negated", v), lambda: op.Neg(v))


@dataclass(frozen=True)
class Term:
    """One W' x' + b' of a denominator; bias None: no bias."""

    x: Modifier = same
    w: Modifier = same
    bias: Modifier | None = None


@dataclass(frozen=True)
class Share:
    """coefficient * sum over terms of x' W'^T (R / z). where: use only the units whose z is >= 0 or < 0."""

    terms: Sequence[Term]
    coefficient: float = 1.0
    where: Literal["all", "positive", "negative"] = "all"
    nonnegative: bool = False  # z >= 0 for x of any sign


@dataclass(frozen=True)
class Layer:
    """A linear node taken apart: activation, weight and bias, with the factors of both worked into them."""

    node: Node
    x: ir.Value
    w: ir.Value
    bias: ir.Value | None
    position: int
    weights: Weights

    @classmethod
    def of(cls, op: Backward, node: Node, rule: str) -> Layer:
        """The layer of a node with one constant operand; an error for anything else."""
        found, weights = weight_and_bias(op, node), lookup(node).weights
        if found is None or weights is None:
            raise UnsupportedOp(
                f"{node}: rule {rule} needs constant weights, and here both operands are computed by the model. "
                f"Give products of activations `--rule type:{node.op_type}=uniform` instead."
            )
        position, weight, bias = found
        x, w = node.inputs[position], node.inputs[weight]
        assert x is not None and w is not None
        x, w = op.real(x), op.real(w)
        bias = None if bias is None else op.real(bias)
        alpha, beta = (node.attr(name, 1.0) for name in weights.factors or ("", ""))
        if alpha != 1.0 or beta != 1.0:
            plain = w
            w = op.once(("alpha", w, alpha), lambda: op.Mul(plain, alpha))
            if bias is not None:
                raw = bias
                bias = op.once(("beta", raw, beta), lambda: op.Mul(raw, beta))
            attributes = {k: v for k, v in node.attributes.items() if k not in (weights.factors or ())}
            node = replace(node, attributes=attributes)
        return cls(node, x, w, bias, position, weights)

    def inputs(self, x: ir.Value, w: ir.Value, bias: ir.Value | None) -> list[ir.Value | None]:
        """In the node's order."""
        operands: list[ir.Value | None] = [x, w] if self.position == 0 else [w, x]
        return operands if bias is None else [*operands, bias]

    def forward(self, op: Backward, x: ir.Value, w: ir.Value, bias: ir.Value | None) -> ir.Value:
        """W' x' + b', emitted once for the same operands."""

        def emit() -> ir.Value:
            if bias is None or self.weights.bias != "behind":
                return op.again(self.node, *self.inputs(x, w, bias))
            return op.Add(op.again(self.node, *self.inputs(x, w, None)), bias)  # type: ignore[no-any-return]

        return op.once(("forward", self.node.y, x, w, bias), emit)

    def back(self, op: Backward, w: ir.Value, s: ir.Value) -> ir.Value:
        """W'^T s in the shape of x."""
        gradients = lookup(self.node).vjp(op, self.node.with_inputs(*self.inputs(self.x, w, self.bias)), s)
        found = gradients[self.position]
        assert found is not None
        return op.unbroadcast(found, self.x) if self.weights.stretched else found

    def portions(self, result: ir.Value, zero_with_x: bool = True) -> list[Portion]:
        """The relevance of x as what a rule returns. zero_with_x: it was multiplied by x."""
        x = self.node.inputs[self.position]
        assert x is not None
        own = Relevance(result, frozenset([x]) if zero_with_x else frozenset())
        return [own if i == self.position else None for i in range(len(self.node.inputs))]


def spread_bias(op: Backward, node: Node, bias: ir.Value) -> ir.Value:
    """The bias of a linear node so that it broadcasts against the output."""
    weights = lookup(node).weights
    if weights is not None and weights.bias == "channels":
        return op.once(("spread", bias), lambda: op.Unsqueeze(bias, [0, *range(2, rank(node.y))]))
    return bias


def linear(
    rule: str, shares: Sequence[Share], epsilon: float = EPSILON, signed: bool = True, zero_with_x: bool = True
) -> RuleFunction:
    """The rule made of `shares`. signed: the stabiliser has the sign of z (sign(0) = +1). zero_with_x: x = 0 gets 0."""

    def apply(op: Backward, node: Node, r: Relevance) -> list[Portion]:
        layer = Layer.of(op, node, rule)
        parts: list[ir.Value] = []
        for share in shares:
            parts += _share(op, layer, share, r, epsilon, signed)
        result = parts[0]
        for part in parts[1:]:
            result = op.Add(result, part)
        return layer.portions(result, zero_with_x)

    return apply


def _share(op: Backward, layer: Layer, share: Share, r: Relevance, epsilon: float, signed: bool) -> list[ir.Value]:
    positive = op.is_nonnegative(layer.x)
    terms = [term for term in share.terms if not (positive and term.x is minus)]
    known = share.nonnegative and signed
    z, eps_inside = _denominator(op, layer, terms, r, epsilon if known or not signed else None)
    s = _divide(op, r.value, z, epsilon, signed, known, eps_inside)
    if share.coefficient != 1.0:
        s = s * share.coefficient
    if share.where != "all":
        y = layer.forward(op, layer.x, layer.w, layer.bias) if layer.node.modified else op.real(layer.node.y)
        keep = op.once(("not negative", y), lambda: op.GreaterOrEqual(y, 0.0))
        s = op.Where(keep, s, 0.0) if share.where == "positive" else op.Where(keep, 0.0, s)
    _book(op, layer, terms, s, z, epsilon, signed, known, eps_inside)
    back: dict[ir.Value, ir.Value] = {}
    parts = []
    for term in terms:
        w = term.w(op, layer.w)
        if w not in back:
            back[w] = layer.back(op, w, s)
        parts.append(term.x(op, layer.x) * back[w])
    return parts


def _denominator(
    op: Backward, layer: Layer, terms: Sequence[Term], r: Relevance, inside: float | None
) -> tuple[ir.Value, bool]:
    """z, and whether the stabiliser is already in it (free: it rides in the bias of the last convolution)."""
    only = terms[0]
    plain = only.x is same and only.w is same and (only.bias is same or layer.bias is None)
    if len(terms) == 1 and plain and not layer.node.modified:
        return _forward_value(op, layer, r), False
    z: ir.Value | None = None
    added = False
    for term in terms:
        bias = None if term.bias is None or layer.bias is None else term.bias(op, layer.bias)
        if inside and not added and (stabilised := _bias_plus(op, layer, bias, inside)) is not None:
            bias, added = stabilised, True
        part = layer.forward(op, term.x(op, layer.x), term.w(op, layer.w), bias)
        z = part if z is None else z + part
    assert z is not None
    return z, added


def _bias_plus(op: Backward, layer: Layer, bias: ir.Value | None, epsilon: float) -> ir.Value | None:
    """A bias that carries the stabiliser: layers with a bias input only."""
    if layer.weights.bias == "behind":
        return None
    if bias is not None:
        return op.once(("stabilised", bias, epsilon), lambda: op.Add(bias, epsilon))
    if layer.weights.bias == "broadcast":
        return op.constant([epsilon], layer.w.dtype)  # type: ignore[arg-type]
    count = dims(layer.node.y)[1]
    return op.constant([epsilon] * count, layer.w.dtype) if isinstance(count, int) else None  # type: ignore[arg-type]


def _forward_value(op: Backward, layer: Layer, r: Relevance) -> ir.Value:
    """z is what the layer computed. Behind a Relu, its output does as well and keeps the Conv+Relu fusion alive.

    Only where the relevance at z is known to be zero wherever the Relu's output is: where that is not zero it equals z.
    """
    y = layer.node.y
    if not y.is_graph_output():
        readers = [use.node for use in y.uses() if use.node not in op.emitted]
        if len(readers) == 1 and readers[0].outputs[0] in r.zero_with:
            entry = registered(Node.of(readers[0]))
            if entry is not None and entry.zero_or_input:
                return op.real(readers[0].outputs[0])
    return op.real(y)


def _divide(
    op: Backward, r: ir.Value, z: ir.Value, epsilon: float, signed: bool, known: bool, inside: bool
) -> ir.Value:
    """R / (z + epsilon sign(z)); for epsilon = 0, zero where z is."""
    if epsilon == 0:
        zero = op.once(("zero", z), lambda: op.Equal(z, 0.0))
        return op.Where(zero, 0.0, op.Div(r, op.Where(zero, 1.0, z)))  # type: ignore[no-any-return]
    return r / (z if inside else stabilised(op, z, epsilon, signed=signed, known=known))  # type: ignore[no-any-return]


def stabilised(op: Backward, z: ir.Value, epsilon: float, signed: bool = True, known: bool = False) -> ir.Value:
    """z + epsilon sign(z) with sign(0) = +1. known: z >= 0."""
    if not signed or known or op.is_nonnegative(z):
        return op.once(("stabilised", z, epsilon), lambda: op.Add(z, epsilon))
    return op.once(("stabilised", z, epsilon), lambda: op.Add(z, signed_epsilon(op, z, epsilon)))


def signed_epsilon(op: Backward, z: ir.Value, epsilon: float) -> ir.Value:
    """epsilon with the sign of z, sign(0) = +1."""
    dtype = z.dtype
    assert dtype is not None
    return op.once(
        ("signed", z, epsilon),
        lambda: op.Where(op.GreaterOrEqual(z, 0.0), op.constant(epsilon, dtype), op.constant(-epsilon, dtype)),
    )


def _book(
    op: Backward,
    layer: Layer,
    terms: Sequence[Term],
    s: ir.Value,
    z: ir.Value,
    epsilon: float,
    signed: bool,
    known: bool,
    inside: bool,
) -> None:
    """Ledger: the bias took b' s, the stabiliser epsilon sign(z) s."""
    if op.absorbed is None:
        return
    for term in terms:
        if term.bias is not None and layer.bias is not None:
            op.absorb("bias", spread_bias(op, layer.node, term.bias(op, layer.bias)) * s, layer.node)
    if epsilon:
        taken = epsilon if inside or known or not signed or op.is_nonnegative(z) else signed_epsilon(op, z, epsilon)
        op.absorb("stabiliser", s * taken, layer.node)
