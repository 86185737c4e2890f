"""The identity rule: what an elementwise function, a scaling or a normalisation gets, its input gets."""

from __future__ import annotations

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, constant, dims, rank
from onnxplain.graph.relevance import NOTHING, Portion, Relevance
from onnxplain.rules.registry import RuleFunction, rule
from onnxplain.vjp import Kind, lookup

MONTAVON = "Montavon et al. 2019, Layer-Wise Relevance Propagation: An Overview"
EVERY: tuple[Kind, ...] = (
    "linear", "mean", "sum", "product", "affine", "activation", "softmax", "normalisation", "other",
)  # fmt: skip


@rule("pass", *EVERY, cite=MONTAVON)
def pass_through() -> RuleFunction:
    """R_in = R_out, for elementwise functions, scalings, normalisations; to the first operand that can receive it."""

    def apply(op: Backward, node: Node, r: Relevance) -> list[Portion]:
        given = [i for i, value in enumerate(node.inputs) if op.receives(value)]
        x = node.inputs[given[0]]
        assert x is not None
        lengths = zip(dims(r.value), op.stream_shape(x), strict=False)
        same_shape = rank(r.value) == rank(x) and all(
            a == b for a, b in lengths if isinstance(a, int) and isinstance(b, int)
        )
        if not same_shape and not lookup(node).broadcasts:
            raise UnsupportedOp(
                f"{node}: rule pass needs an output of the input's shape, here {dims(node.y)} from {dims(x)}."
            )
        r = _where_it_counts(op, node, given[0], r)
        own = r.zero_also_with(x) if node.y in r.zero_with and lookup(node).zero_at_zero(node) else r
        return [own if i == given[0] else NOTHING for i in range(len(node.inputs))]

    return apply


def _where_it_counts(op: Backward, node: Node, index: int, r: Relevance) -> Relevance:
    """What falls on entries that a mask multiplies by 0 is lost to the mask, as where a Where leaves them out."""
    entry = lookup(node)
    mask = node.inputs[1 - index] if entry.kind == "product" and entry.commutes else None
    numbers = constant(mask)
    if mask is None or (numbers is not None and numbers.all()):
        return r
    out = op.once(("zero", mask), lambda: op.Equal(mask, op.constant(0, mask.dtype)))  # type: ignore[arg-type]
    if op.absorbed is not None:
        op.absorb("bias", op.Where(out, r.value, 0.0), node)
    return r.but(op.Where(out, 0.0, r.value))
