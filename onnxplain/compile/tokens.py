"""Where whole numbers become floats: what relevance a token, a category or a byte has.

Relevance turns from floats to integers at a look-up in a constant table, at a one-hot code, at a Cast. Between there
and the input it goes through integer arithmetic as it is: shifting a token's number does not change which token it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, is_float, rank
from onnxplain.graph.relevance import Portion, Relevance
from onnxplain.graph.walk import Rule
from onnxplain.rules.finishes import Finish
from onnxplain.vjp import known, lookup, registered, silent_inputs


def passes(op: Backward, node: Node, index: int) -> bool:
    """May relevance flow from `node` back into its input (or captured tensor) `index`?

    True as well where nobody knows how: the walk then refuses the model and names the node. False only for what is
    constant, for what the op declares silent, and for integers that are no tokens (masks, lengths, exponents).
    """
    value = (*node.inputs, *node.captured)[index]
    if value is None or op.is_constant(value):
        return False
    if _turns(op, node, index):
        return True
    if index in silent_inputs(node):
        return False
    if value.dtype is None or is_float(value) or index >= len(node.inputs):
        return True
    entry = known(node)
    return entry is None or entry.converts or not any(is_float(y) for y in node.outputs)


def moves(node: Node, value: ir.Value, output: ir.Value) -> bool:
    """Whether an output has a derivative by an input at all: positions (the winners of a TopK) have none by floats."""
    whole = output.dtype is not None and not is_float(output)
    return not (known(node) is not None and is_float(value) and whole)


def _turns(op: Backward, node: Node, index: int) -> bool:
    """Whether a token is read here: an index into a constant table, a one-hot code."""
    entry, value = registered(node), node.inputs[index] if index < len(node.inputs) else None
    if entry is None or entry.token is None or value is None or is_float(value):
        return False
    return entry.token.reads(op, node, index)


def carrying(op: Backward, node: Node, active: Collection[ir.Value]) -> list[int]:
    """The integer inputs of a node that relevance arrives at."""
    return [
        i
        for i, value in enumerate(node.inputs)
        if value in active and value is not None and not is_float(value) and passes(op, node, i)
    ]


def problem(op: Backward, node: Node, active: Collection[ir.Value]) -> str | None:
    """Why relevance cannot be followed through the integers of a node; None where it can, or where there are none.

    An index that is computed from several integers (positions counted from a mask) is no token of one of them.
    """
    given = carrying(op, node, active)
    if not given or node.captured or any(is_float(y) or y.dtype is None for y in node.outputs):
        return None
    names = ", ".join(str(node.inputs[i].name) for i in given)  # type: ignore[union-attr]
    if _turns(op, node, given[0]):
        return None
    entry = known(node)
    if entry is None:
        return f"the integers {names} go into {node}, of which nobody knows what becomes of them"
    if entry.kind == "routing":
        return None
    if entry.streams is not streams.elementwise:
        return f"the integers {names} are mixed at {node}, and what part of the result is whose is not known"
    if len(given) > 1:
        return f"the integers {names} are combined at {node}, and what part of the result is whose is not known"
    return None


def token_rule(op: Backward, node: Node, active: Collection[ir.Value], finish: Finish) -> Rule | None:
    """The rule of a node where integers carry relevance; None where all is float, and its own rule holds.

    finish: what the method makes of the relevance of an embedding; several steps of one token add up.
    """
    given = carrying(op, node, active)
    if not given or node.captured or any(value is not None and value.dtype is None for value in node.inputs):
        return None
    if (reason := problem(op, node, active)) is not None:
        raise UnsupportedOp(f"{reason}. Attribute to a tensor above this node (--attribute-to).")
    index = given[0]
    if _turns(op, node, index) and is_float(node.y):
        return lambda op, n, r: _only(n, index, _summed(op, n, index, r.value, finish))
    if not is_float(node.y):
        entry = lookup(node)
        moves = entry.kind == "routing" and not entry.converts and not _turns(op, node, index)
        return None if moves else lambda op, n, r: _only(n, index, r.value)
    if node.x.dtype == ir.DataType.BOOL:
        return lambda op, n, r: _only(n, index, _each(op, n, r.value, finish))
    return lambda op, n, r: _only(n, index, finish.combine(op, [r.value], n.y))


def _only(node: Node, index: int, value: ir.Value) -> Sequence[Portion]:
    return [Relevance(value) if i == index else None for i in range(len(node.inputs))]


def _each(op: Backward, node: Node, r: ir.Value, finish: Finish) -> ir.Value:
    """Relevance per entry of a one-hot code, which Equal sums: the finish of an embedding with one feature."""
    r, y = (op.Unsqueeze(value, [-1]) for value in (r, finish.features(op, node.y)))
    return op.reshaped(finish.token(op, [r], y), op.stream_shape(node.x))


def _summed(op: Backward, node: Node, index: int, r: ir.Value, finish: Finish) -> ir.Value:
    """Relevance per token: the finish at the embedding (tokens, …features), summed over the features."""
    tokens = node.inputs[index]
    assert tokens is not None
    entry = lookup(node)
    assert entry.token is not None and entry.token.own_axes is not None
    of, own = rank(node.y), entry.token.own_axes(node)
    features = [axis for axis in range(of) if axis not in own]
    if not features:
        return finish.combine(op, [r], node.y)
    y = finish.features(op, node.y)
    order = own + features
    if order != list(range(of)):
        r, y = op.Transpose(r, perm=order), op.Transpose(y, perm=order)
    if len(features) > 1:
        r, y = (op.Reshape(value, op.ints([0] * len(own) + [-1])) for value in (r, y))
    return op.reshaped(finish.token(op, [r], y), op.stream_shape(tokens))
