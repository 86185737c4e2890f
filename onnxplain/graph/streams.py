"""Which axis of every tensor carries the batch.

The backward pass runs many streams over one forward pass by letting this axis grow (one forward row, any number of
seeds). That is right only while the network never mixes the axis with another one, so it is followed through every
node; where it cannot be followed the axis is UNPROVEN and the compiler asks for seeds of exactly the forward shape.

An axis rule takes a node and the axis of each input and gives the axis of the outputs. It is named where the op's
derivative is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import onnx_ir as ir

from onnxplain.graph.node import STANDARD, Node, axes_of, dims, ints, rank

Axis = int
CONSTANT: Axis = -1  # the tensor does not depend on the batch
UNPROVEN: Axis = -2
AxisRule = Callable[[Node, Sequence[Axis]], "Axis | Sequence[Axis]"]


def track(nodes: Sequence[Node], inputs: Sequence[ir.Value], rules: Mapping[str, AxisRule]) -> dict[ir.Value, Axis]:
    """Batch axis of every tensor. rules: op type -> axis rule; ops without one are UNPROVEN."""
    axes: dict[ir.Value, Axis] = {value: 0 if value.shape is not None and rank(value) else UNPROVEN for value in inputs}
    for node in nodes:
        before = [CONSTANT if value is None else axes.get(value, CONSTANT) for value in node.inputs]
        followed: Axis | Sequence[Axis]
        if all(axis == CONSTANT for axis in (*before, *(axes.get(value, CONSTANT) for value in node.captured))):
            followed = CONSTANT
        elif (
            UNPROVEN in before
            or node.captured
            or any(value.shape is None for value in (*node.outputs, *node.inputs) if value)
        ):
            followed = UNPROVEN
        else:
            rule = rules.get(node.op_type) if node.domain in STANDARD else None
            followed = UNPROVEN if rule is None else rule(node, before)
        for i, value in enumerate(node.outputs):
            axes[value] = followed if isinstance(followed, int) else followed[i] if i < len(followed) else UNPROVEN
    return axes


def shared(node: Node, axes: Sequence[Axis]) -> Axis:
    """The one axis all batched inputs have, for ops that keep the rank."""
    batched = {axis for axis in axes if axis >= 0}
    return batched.pop() if len(batched) == 1 else UNPROVEN


def elementwise(node: Node, axes: Sequence[Axis]) -> Axis:
    """Numpy broadcasting: axes are counted from the back, and a constant may not stretch along the batch."""
    result = rank(node.y)
    batched = {
        axis + result - rank(value) for value, axis in zip(node.inputs, axes, strict=True) if value and axis >= 0
    }
    if len(batched) != 1:
        return UNPROVEN
    (batch,) = batched
    lengths = {dims(value)[axis] for value, axis in zip(node.inputs, axes, strict=True) if value and axis >= 0}
    for value, axis in zip(node.inputs, axes, strict=True):
        if value is not None and axis == CONSTANT:
            at = batch - (result - rank(value))
            length = dims(value)[at] if at >= 0 else 1
            # a length only the run knows was computed from the shape of an input: it is the batch's, or 1
            if isinstance(length, int) and length not in (1, *lengths):
                return UNPROVEN
    return batch


def batch_first(node: Node, axes: Sequence[Axis]) -> Axis:
    """Convolutions, pools and their like: the batch is axis 0, parameters do not depend on it."""
    return 0 if axes[0] == 0 and all(axis == CONSTANT for axis in axes[1:]) else UNPROVEN


def keeps(axes_touched: Callable[[Node], Sequence[int] | None]) -> AxisRule:
    """An op that mixes only the axes `axes_touched` names and keeps the rank; None means it cannot be known."""

    def rule(node: Node, axes: Sequence[Axis]) -> Axis:
        touched = axes_touched(node)
        axis = shared(node, axes)
        return UNPROVEN if touched is None or axis in axes_of(touched, rank(node.y)) else axis

    return rule


def attribute(name: str, default: int) -> Callable[[Node], Sequence[int]]:
    """The axis named by an attribute."""
    return lambda node: [node.attr(name, default)]


def onwards(node: Node) -> Sequence[int]:
    """`axis` and every one behind it (LayerNormalization)."""
    last = rank(node.y)
    return range(node.attr("axis", -1) % last, last)


def reduced(node: Node, axes: Sequence[Axis]) -> Axis:
    """Reductions: the batch may not be among the reduced axes and moves forward where axes vanish."""
    batch, of = axes[0], rank(node.x)
    touched = reduction_axes(node)
    if touched is None or batch < 0 or batch in touched:
        return UNPROVEN
    return batch if node.attr("keepdims", 1) else batch - sum(axis < batch for axis in touched if of)


def reduction_axes(node: Node) -> list[int] | None:
    """Axes a Reduce op, ArgMax or ArgMin works on; None where they are known at run time only."""
    of = rank(node.x)
    if node.op_type in ("ArgMax", "ArgMin"):
        return axes_of([node.attr("axis", 0)], of)
    axes = node.attr("axes")
    if node.input(1) is not None:
        axes = ints(node.input(1))
        if axes is None:
            return None
    if axes is None or len(axes) == 0:
        return [] if node.attr("noop_with_empty_axes", 0) else list(range(of))
    return axes_of(axes, of)


def reshape(node: Node, axes: Sequence[Axis]) -> Axis:
    """The axis survives when as much lies in front of it as before and its own length did not change."""
    batch = axes[0]
    if batch < 0 or any(axis >= 0 for axis in axes[1:]):
        return UNPROVEN if batch >= 0 else CONSTANT
    before, after = dims(node.x), dims(node.y)
    front, length = _product(before[:batch]), before[batch]
    if length is None or front is None:
        return UNPROVEN
    for axis in range(len(after)):
        if after[axis] == length and _product(after[:axis]) == front:
            return axis
    return UNPROVEN


def _product(shape: Sequence[int | str | None]) -> tuple[int, tuple[str, ...]] | None:
    """A product of lengths as number and sorted symbols, so that two can be compared."""
    if any(dim is None for dim in shape):
        return None
    return prod(d for d in shape if isinstance(d, int)), tuple(sorted(d for d in shape if isinstance(d, str)))


def transpose(node: Node, axes: Sequence[Axis]) -> Axis:
    """The batch goes where `perm` puts it."""
    perm = node.attr("perm") or tuple(reversed(range(rank(node.x))))
    return list(perm).index(axes[0])


def squeeze(node: Node, axes: Sequence[Axis]) -> Axis:
    """Axes of length one vanish."""
    gone = node.attr("axes") or ints(node.input(1))
    if gone is None:
        return UNPROVEN
    gone = axes_of(gone, rank(node.x))
    return UNPROVEN if axes[0] in gone else axes[0] - sum(axis < axes[0] for axis in gone)


def unsqueeze(node: Node, axes: Sequence[Axis]) -> Axis:
    """Axes of length one appear."""
    new = node.attr("axes") or ints(node.input(1))
    if new is None:
        return UNPROVEN
    kept = [axis for axis in range(rank(node.y)) if axis not in axes_of(new, rank(node.y))]
    return kept[axes[0]]


def matmul(node: Node, axes: Sequence[Axis]) -> Axis:
    """Never the contracted axis; a row or column axis only against a constant."""
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None and right is not None
    result = rank(node.y)
    if rank(left) < 2 or rank(right) < 2:
        return UNPROVEN
    batched = set()
    for value, axis, contracted, lone in ((left, axes[0], -1, -2), (right, axes[1], -2, -1)):
        if axis < 0:
            continue
        behind = axis - rank(value)  # counted from the back, as broadcasting does
        other = axes[1] if value is left else axes[0]
        if behind == contracted or (behind == lone and other != CONSTANT):
            return UNPROVEN
        batched.add(behind + result)
    if len(batched) != 1:
        return UNPROVEN
    (axis,) = batched
    for value, own in ((left, axes[0]), (right, axes[1])):
        at = axis - (result - rank(value))
        if own == CONSTANT and 0 <= at < rank(value) - 2 and dims(value)[at] != 1:
            return UNPROVEN
    return axis


def gemm(node: Node, axes: Sequence[Axis]) -> Axis:
    """Rows are the batch."""
    rows = 1 if node.attr("transA", 0) else 0
    bias = node.input(2)
    stretched = bias is not None and rank(bias) == 2 and dims(bias)[0] != 1
    return 0 if axes[0] == rows and all(a == CONSTANT for a in axes[1:]) and not stretched else UNPROVEN


def expand(node: Node, axes: Sequence[Axis]) -> Axis:
    """The data's axis counted from the back, unless it may be stretched: one row would become many."""
    if axes[0] < 0:
        return CONSTANT
    after = axes[0] + rank(node.y) - rank(node.x)
    return after if dims(node.y)[after] == dims(node.x)[axes[0]] else UNPROVEN


def across(touched: Callable[[Node], Sequence[int] | None], *alike: int) -> AxisRule:
    """As `keeps`, with inputs (at `alike`: indices, updates) that line up with the data axis by axis.

    One of them that does not carry the batch must have the data's length there.
    """

    def rule(node: Node, axes: Sequence[Axis]) -> Axis:
        members = [(node.inputs[i], axes[i]) for i in (0, *alike)]
        found = {axis for _, axis in members if axis >= 0}
        mixed = touched(node)
        if len(found) != 1 or mixed is None or any(a >= 0 for i, a in enumerate(axes) if i not in (0, *alike)):
            return UNPROVEN
        (axis,) = found
        lengths = {dims(value)[axis] for value, _ in members if value is not None}
        return UNPROVEN if axis in axes_of(mixed, rank(node.y)) or len(lengths) != 1 else axis

    return rule


def sliced(node: Node) -> Sequence[int] | None:
    """Axes of a Slice that lose or reorder entries."""
    of = rank(node.x)
    starts, ends = ints(node.input(1)), ints(node.input(2))
    axes, steps = ints(node.input(3)), ints(node.input(4))
    if axes is None:
        axes = list(range(of if starts is None else len(starts))) if node.input(3) is None else None
    if axes is None:
        return None
    axes = axes_of(axes, of)
    if starts is None or ends is None or (node.input(4) is not None and steps is None):
        return axes
    steps = steps or [1] * len(axes)
    return [a for a, b, e, s in zip(axes, starts, ends, steps, strict=True) if b or s != 1 or e < 2**31 - 1]


def padded(node: Node) -> Sequence[int] | None:
    """Axes that a Pad makes longer or shorter."""
    pads, axes = ints(node.input(1)), ints(node.input(3))
    if pads is None or (node.input(3) is not None and axes is None):
        return None
    axes = axes_of(axes, rank(node.x)) if axes is not None else list(range(rank(node.x)))
    return [axis for i, axis in enumerate(axes) if pads[i] or pads[i + len(axes)]]


def tiled(node: Node) -> Sequence[int] | None:
    """Axes that a Tile repeats."""
    repeats = ints(node.input(1))
    return None if repeats is None else [axis for axis, times in enumerate(repeats) if times != 1]


def recurrent(node: Node, axes: Sequence[Axis]) -> Sequence[Axis]:
    """Sequences (time, batch, features), states (directions, batch, hidden); layout 1 puts the batch first."""
    first = node.attr("layout", 0) == 1
    batch = 0 if first else 1
    ok = axes[0] == batch and all(axis == CONSTANT for axis in (*axes[1:5], *axes[7:]))
    ok = ok and all(axis in (batch, CONSTANT) for axis in axes[5:7])
    sequence = [0, 0, 0] if first else [2, 1, 1]
    return sequence if ok else [UNPROVEN] * 3


def nothing(node: Node, axes: Sequence[Axis]) -> Axis:
    """Shape and Size: numbers about the batch, none of its rows."""
    return CONSTANT
