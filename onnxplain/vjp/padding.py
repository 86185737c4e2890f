"""Ops that put a frame around a tensor or take one off: Pad, CenterCropPad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import bounds, signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, axes_of, dims, ints, rank, static
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.lengths import END, joined, subtract
from onnxplain.vjp.registry import case, vjp
from onnxplain.vjp.shape import rest


def padding_sign(node: Node, known: Sequence[bool]) -> bool:
    """Zeros and values of x, unless another constant is filled in."""
    return known[0] and (node.input(2) is None or known[2])


def padded_axis(node: Node, axes: Sequence[streams.Axis]) -> streams.Axis | Sequence[streams.Axis]:
    """As `keeps`; the value filled in is one for all rows."""
    one_value = all(axis == streams.CONSTANT for axis in axes[1:])
    return streams.keeps(streams.padded)(node, axes) if one_value else streams.UNPROVEN


@vjp(
    "Pad",
    kind="routing",
    mask="carries",
    bounds=bounds.UNCHANGED,
    pads=True,
    silent=(1, 3),
    linear=True,
    streams=padded_axis,
    sign=padding_sign,
    cases=[
        case(x=(2, 3, 4), pads=np.array([0, 1, 2, 0, 0, 3])),
        case(x=(2, 3, 4), pads=np.array([0, 1, -2, 0, 0, 3]), value=np.array(1.5, np.float64), sample="normal"),
        case(x=(2, 3, 4), pads=np.array([0, 1, -2, 0, 0, 3]), value=()),
        case(x=(2, 3, 4), pads=np.array([1, 2]), value=(), axes=np.array([-1])),
        case(x=(2, 3, 4), pads=np.array([0, 0, 1, 0, 0, 0]), value=(), constant=("x",)),
        case(x=(2, 3, 4), pads=np.array([1, 2]), value=None, axes=np.array([-1])),
        case(x=(2, 3, 4), pads=np.array([0, 2, 0, 0, 1, 3]), mode="reflect"),
        case(x=(2, 3, 4), pads=np.array([0, 2, 1, 0, 1, 3]), mode="edge"),
        case(x=(2, 3, 4), pads=np.array([0, 0, 1, 0, 0, 0]), value=(), mode="edge"),
        case(x=(2, 3, 4), pads=np.array([2, 1, 0, 3]), value=None, axes=np.array([1, 2]), mode="wrap", opset=19),
    ],
)
def pad(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Constant: cut the frame off; a computed value gets it. Otherwise a frame is copies of x, which gets them back."""
    mode = node.attr("mode", "constant")
    pads, axes = ints(node.input(1)), ints(node.input(3))
    others = rest(node)
    if len(others) > 1 and not op.is_constant(node.input(2)):
        others[1] = filled(op, node, g) if mode == "constant" else op.expand(op.constant(0.0, g.dtype), node.inputs[2])  # type: ignore[arg-type]
    if mode == "constant" and (pads is None or min(pads, default=0) < 0 or (node.input(3) is not None and not axes)):
        back = op.Neg(node.input(1)) if pads is None else op.ints([-length for length in pads])
        return [op.Pad(g, back, None, node.input(3)), *others]
    if pads is None or (node.input(3) is not None and axes is None) or (mode != "constant" and min(pads) < 0):
        raise UnsupportedOp(f"{node}: mode={mode} needs pads that are known at compile time and not negative.")
    axes = list(range(rank(node.x))) if axes is None else axes_of(axes, rank(node.x))
    frame = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes) if pads[i] or pads[i + len(axes)]}
    if mode == "constant":
        if not frame:
            return [g, *others]
        begins = [begin for begin, _ in frame.values()]
        ends = [-end if end else END for _, end in frame.values()]
        return [op.Slice(g, begins, ends, list(frame)), *others]
    for axis, (begin, end) in frame.items():
        g = unframed(op, g, op.size(node.x, axis), axis, begin, end, mode)
    return [g, *others]


def filled(op: Backward, node: Node, g: ir.Value) -> ir.Value:
    """What the value of a constant Pad gets: g summed over the frame, in the shape of the value."""
    value = node.inputs[2]
    assert value is not None and g.dtype is not None
    pads, axes = ints(node.input(1)), ints(node.input(3))
    around, along = node.inputs[1], node.input(3)
    if pads is not None and axes is not None:  # for all axes: onnxruntime's optimiser forgets which ones
        places = axes_of(axes, rank(node.x))
        full = dict(zip([*places, *(axis + rank(node.x) for axis in places)], pads, strict=True))
        around, along = op.ints([full.get(i, 0) for i in range(2 * rank(node.x))]), None
    nothing = op.Expand(op.constant(0.0, g.dtype), op.shape(node.x))
    frame = op.Pad(nothing, around, op.constant(1.0, g.dtype), along)
    total = op.ReduceSum(g * frame, keepdims=0)
    return op.Reshape(total, [1]) if rank(value) else total  # type: ignore[no-any-return]


def unframed(op: Backward, g: ir.Value, length: ir.Value, axis: int, begin: int, end: int, mode: str) -> ir.Value:
    """The inside along one axis, plus both sides of the frame laid back on the entries they were copied from.

    reflect: y[begin - 1 - i] = x[1 + i]; edge: the outermost entry; wrap: the other end.
    """
    parts = [op.Slice(g, [begin], [-end if end else END], [axis])]
    for count, first in ((begin, True), (end, False)):
        if not count:
            continue
        side = op.Slice(g, [0 if first else -count], [count if first else END], [axis])
        if mode == "edge":
            side, count, skip = op.ReduceSum(side, [axis], keepdims=1), 1, 0
        elif mode == "reflect":
            side, skip = op.Slice(side, [-1], [-END], [axis], [-1]), 1
        else:
            first, skip = not first, 0
        other = subtract(op, length, count + skip)
        near = op.ints([skip])
        around = [near, other] if first else [other, near]
        parts.append(op.Pad(side, joined(op, around), None, [axis]))
    return parts[0] if len(parts) == 1 else op.Sum(*parts)  # type: ignore[no-any-return]


def _cropped(node: Node) -> list[int] | None:
    axes, shape = node.attr("axes"), ints(node.input(1))
    axes = axes_of(axes, rank(node.x)) if axes is not None else list(range(rank(node.x)))
    return None if shape is None else [a for a, want in zip(axes, shape, strict=True) if dims(node.x)[a] != want]


@vjp(
    "CenterCropPad",
    kind="routing",
    pads=True,
    silent=(1,),
    linear=True,
    streams=streams.keeps(_cropped),
    sign=signs.first,
    cases=[
        case(x=(2, 7, 4), shape=np.array([2, 4, 7])),
        case(x=(2, 4, 7), shape=np.array([4, 9]), axes=[-1, -2]),
    ],
)
def center_crop_pad(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Pad what was cropped, crop what was padded."""
    before, after = static(node.x), static(node.y)
    if before is None or after is None:
        raise UnsupportedOp(f"{node}: needs sizes that are known at compile time.")
    # of an odd difference the larger half comes behind, in cropping and in padding
    begin = [(i - o) // 2 if i >= o else -((o - i) // 2) for i, o in zip(before, after, strict=True)]
    end = [i - o - b for i, o, b in zip(before, after, begin, strict=True)]
    axis = op.stream_axis(node.x)
    if axis is not None:
        begin[axis] = end[axis] = 0
    return [op.Pad(g, [*begin, *end]) if any(begin) or any(end) else g, *rest(node)]
