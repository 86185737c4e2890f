"""Elementwise arithmetic as polynomials, so that every algebraic order of one formula reads the same.

x * 0.5 * (1 + erf(x / sqrt 2)) and 0.5 * x + 0.5 * x * erf(0.7071 x) are one polynomial in x and erf(…).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxplain.graph.node import Node, constant

Monomial = tuple[int, ...]  # ids of its factors, sorted
DEGREE = 4  # larger powers are not what anybody writes
DEPTH = 16  # steps in a row; the longest formula that is recognised has 8, a chain of scalings may have thousands
CLOSE = 2e-3  # relative; float16 models carry 11 bits


@dataclass
class Polynomial:
    """Coefficients by monomial, the tensors the factors stand for, the nodes it was read from."""

    terms: dict[Monomial, float]
    leaves: dict[int, ir.Value] = field(default_factory=dict)
    members: list[Node] = field(default_factory=list)

    def is_close(self, expected: Mapping[tuple[ir.Value, ...], float]) -> bool:
        """Whether it has exactly these terms."""
        wanted = {tuple(sorted(id(value) for value in key)): c for key, c in expected.items()}
        terms = {key: c for key, c in self.terms.items() if abs(c) > 1e-9}
        return terms.keys() == wanted.keys() and all(
            abs(terms[key] - c) <= CLOSE * max(abs(c), 1e-6) for key, c in wanted.items()
        )

    def linear(self) -> tuple[ir.Value, float, float] | None:
        """(x, a, b) where it is a x + b."""
        keys = [key for key in self.terms if key]
        if len(keys) != 1 or len(keys[0]) != 1:
            return None
        return self.leaves[keys[0][0]], self.terms[keys[0]], self.terms.get((), 0.0)


def scalar(value: ir.Value | None) -> float | None:
    """A constant of one number."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.dtype.kind in "fiu" else None


def polynomial(
    value: ir.Value, maker: Mapping[ir.Value, Node], inner: Callable[[ir.Value], bool], *, affine: bool = False
) -> Polynomial | None:
    """Read the arithmetic that makes `value`, down to tensors that others see too (`inner` says no) or other ops.

    affine: only steps with one constant operand. None where it is not a polynomial.
    """
    return _expand(value, maker, inner, affine, 0)


def _expand(
    value: ir.Value, maker: Mapping[ir.Value, Node], inner: Callable[[ir.Value], bool], affine: bool, depth: int
) -> Polynomial | None:
    number = scalar(value)
    if number is not None:
        return Polynomial({(): number})
    node = maker.get(value)
    leaf = Polynomial({(id(value),): 1.0}, {id(value): value})
    if node is None or node.domain != "" or depth == DEPTH or not (depth == 0 or inner(value)):
        return leaf
    operands = [operand for operand in node.inputs if operand is not None]
    if node.op_type not in ("Add", "Sub", "Mul", "Div", "Neg", "Pow"):
        return leaf
    numbers = [scalar(operand) for operand in operands]
    if affine and node.op_type not in ("Neg",) and all(number is None for number in numbers):
        return leaf
    if node.op_type == "Pow" and (numbers[1] is None or numbers[1] not in (1.0, 2.0, 3.0)):
        return leaf
    if node.op_type == "Div" and not numbers[1]:
        return leaf
    if node.op_type == "Pow":
        parts = [_expand(operands[0], maker, inner, affine, depth + 1)] * int(numbers[1] or 1)
    else:
        parts = [_expand(operand, maker, inner, affine, depth + 1) for operand in operands]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts):
        return None
    leaves = {key: leaf for part in known for key, leaf in part.leaves.items()}
    members = list(dict.fromkeys([member for part in known for member in part.members] + [node]))
    terms = _combine(node.op_type, [part.terms for part in known])
    if any(len(key) > DEGREE for key in terms):
        return leaf
    return Polynomial(terms, leaves, members)


def _combine(op_type: str, parts: list[dict[Monomial, float]]) -> dict[Monomial, float]:
    if op_type == "Neg":
        return {key: -c for key, c in parts[0].items()}
    if op_type in ("Add", "Sub"):
        sign = -1.0 if op_type == "Sub" else 1.0
        return {key: parts[0].get(key, 0.0) + sign * parts[1].get(key, 0.0) for key in parts[0] | parts[1]}
    if op_type == "Div":
        return {key: c / parts[1][()] for key, c in parts[0].items()}
    result: dict[Monomial, float] = {(): 1.0}
    for part in parts:
        product: dict[Monomial, float] = {}
        for a, c in result.items():
            for b, d in part.items():
                key = tuple(sorted(a + b))
                product[key] = product.get(key, 0.0) + c * d
        result = product
    return result


def same(a: float, b: float) -> bool:
    """Equal up to the rounding of a half-precision export."""
    return bool(np.isclose(a, b, rtol=CLOSE, atol=1e-6))
