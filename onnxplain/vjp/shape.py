"""Ops that move whole blocks of values: reshape, transpose, join, split, pad, repeat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import bounds, signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, axes_of, dims, ints, rank, static
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.registry import case, vjp

END = 2**63 - 1  # "to the end" in a Slice


def rest(node: Node) -> list[Gradient]:
    """Nothing flows to a shape op's other inputs."""
    return [None] * (len(node.inputs) - 1)


@vjp(
    "Reshape",
    kind="routing",
    mask="carries",
    head="through",
    silent=(1,),
    linear=True,
    streams=streams.reshape,
    sign=signs.first,
    cases=[
        case(x=(2, 3, 4), shape=np.array([2, -1])),
        case(x=(2, 3, 4), shape=np.array([0, 2, 6])),
        case(x=(2, 3, 4), shape=np.array([2, 4, 3]), allowzero=1),
        case(x=(2, 1), shape=np.array([2])),
    ],
)
@vjp(
    "Flatten",
    kind="routing",
    mask="carries",
    head="through",
    linear=True,
    streams=streams.reshape,
    sign=signs.first,
    cases=[case(x=(2, 3, 4)), case(x=(2, 3, 4), axis=2), case(x=(2, 3, 4), axis=-1), case(x=(2, 3), axis=0)],
)
@vjp(
    "Squeeze",
    kind="routing",
    mask="carries",
    head="through",
    silent=(1,),
    linear=True,
    streams=streams.squeeze,
    sign=signs.first,
    cases=[
        case(x=(2, 1, 4, 1), axes=np.array([-1])),
        case(x=(2, 1, 4, 1), axes=np.array([1, 3])),
        case(x=(2, 1, 4, 1)),
    ],
)
@vjp(
    "Unsqueeze",
    kind="routing",
    mask="carries",
    silent=(1,),
    linear=True,
    streams=streams.unsqueeze,
    sign=signs.first,
    cases=[case(x=(2, 4), axes=np.array([1, -1])), case(x=(2, 4), axes=np.array([0]))],
)
def reshape(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Only the layout changed: put it back."""
    return [op.like(g, node.x), *rest(node)]


@vjp(
    "Transpose",
    kind="routing",
    mask="carries",
    bounds=bounds.TRANSPOSED,
    head="through",
    linear=True,
    streams=streams.transpose,
    sign=signs.first,
    cases=[case(x=(2, 3, 4), perm=[1, 2, 0]), case(x=(2, 3))],
)
def transpose(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """The inverse permutation."""
    perm = list(node.attr("perm") or reversed(range(rank(node.x))))
    return [op.Transpose(g, perm=[perm.index(axis) for axis in range(len(perm))])]


@vjp(
    "Concat",
    kind="routing",
    mask="carries",
    linear=True,
    streams=streams.keeps(streams.attribute("axis", 0)),
    sign=signs.every,
    cases=[
        case(a=(2, 3, 4), b=(2, 1, 4), axis=1),
        case(a=(2, 3), b=np.ones((2, 2)), c=(2, 1), axis=-1),
        case(a=(2, 3), b=np.ones((2, 2)), axis=1, outputs=1),
        case(a=(2, 3), axis=1),
    ],
)
def concat(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Each input gets its piece. Constants get none: they may have fewer rows than there are streams."""
    axis = axes_of([node.attr("axis", 0)], rank(node.y))[0]
    wanted = [i for i, value in enumerate(node.inputs) if value is not None and not op.is_constant(value)]
    result: list[Gradient] = [None] * len(node.inputs)
    if len(node.inputs) == 1:
        return [g]
    if len(wanted) > 1:
        lengths = [op.size(value, axis) for value in node.inputs if value is not None]
        for i, piece in enumerate(op.Split(g, joined(op, lengths), axis=axis, outputs=len(lengths))):
            result[i] = piece if i in wanted else None
        return result
    for i in wanted:
        before = [op.size(value, axis) for value in node.inputs[:i] if value is not None]
        start = total_length(op, before)
        stop = total_length(op, [*before, op.size(node.inputs[i], axis)])  # type: ignore[arg-type]
        result[i] = op.Slice(g, start, stop, [axis])
    return result


def joined(op: Backward, parts: Sequence[ir.Value]) -> ir.Value:
    """Integer vectors one after the other: a constant where all are."""
    known = [ints(part) for part in parts]
    if all(part is not None for part in known):
        return op.ints([length for part in known for length in part or []])
    value: ir.Value = op.Concat(*parts, axis=0)
    return value


def total_length(op: Backward, parts: Sequence[ir.Value]) -> ir.Value:
    """Sum of one-element integer vectors: a constant where all are."""
    known = [ints(part) for part in parts]
    if all(part is not None for part in known):
        return op.ints([sum(part[0] for part in known if part)])
    return parts[0] if len(parts) == 1 else op.ReduceSum(op.Concat(*parts, axis=0), [0], keepdims=1)


@vjp(
    "Split",
    kind="routing",
    mask="carries",
    silent=(1,),
    linear=True,
    all_outputs=True,
    streams=streams.keeps(streams.attribute("axis", 0)),
    sign=signs.first,
    cases=[
        case(x=(2, 6), split=np.array([1, 3, 2]), axis=1, outputs=3),
        case(x=(2, 7, 2), num_outputs=3, axis=-2, outputs=3),
        case(x=(4, 3), num_outputs=2, outputs=2),
        case(x=(4, 3), num_outputs=1, outputs=1),
    ],
)
def split(op: Backward, node: Node, gs: list[Gradient]) -> list[Gradient]:
    """Join the pieces; those nothing arrived at are zero."""
    axis = axes_of([node.attr("axis", 0)], rank(node.x))[0]
    given = next(g for g in gs if g is not None)
    pieces = [op.zeros(given, y) if g is None else g for g, y in zip(gs, node.outputs, strict=True)]
    return [pieces[0] if len(pieces) == 1 else op.Concat(*pieces, axis=axis), *rest(node)]


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


def subtract(op: Backward, length: ir.Value, less: int) -> ir.Value:
    """A length less a number: a constant where the length is."""
    known = ints(length)
    value: ir.Value = op.Sub(length, op.ints([less])) if known is None else op.ints([known[0] - less])
    return value


@vjp(
    "Expand",
    kind="routing",
    mask="carries",
    silent=(1,),
    linear=True,
    broadcasts=True,
    streams=streams.expand,
    sign=signs.first,
    cases=[
        case(x=(2, 1, 4), shape=np.array([2, 3, 4])),
        case(x=(2, 1), shape=np.array([3, 1, 5])),
        case(x=(2, 3), shape=np.array([1, 1])),
        case(x=(1, 4), shape=np.array([3, 4])),
        case(x=(1, 4), shape=np.array([2, 3, 1])),
        case(x=(), shape=np.array([2, 2])),
    ],
)
def expand(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """The walk sums over what was stretched."""
    return [g, *rest(node)]


@vjp(
    "Tile",
    kind="routing",
    mask="carries",
    silent=(1,),
    linear=True,
    streams=streams.keeps(streams.tiled),
    sign=signs.first,
    cases=[
        case(x=(2, 3, 4), repeats=np.array([1, 2, 3])),
        case(x=(2, 3), repeats=np.array([2, 1])),
        case(x=(2, 3), repeats=np.array([1, 1])),
    ],
)
def tile(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Lay the copies along axes of their own and sum over these."""
    repeats, x = ints(node.input(1)), node.x
    streamed = op.stream_axis(x)
    parts: list[ir.Value] = []
    copies = []
    for axis in range(rank(x)):
        if repeats is None or repeats[axis] != 1:
            copies.append(len(parts))
            times = op.Slice(node.input(1), [axis], [axis + 1]) if repeats is None else op.ints([repeats[axis]])
            parts.append(times)
        parts.append(op.ints([-1]) if axis == streamed else op.size(x, axis))
    if not copies:
        return [g, *rest(node)]
    return [op.ReduceSum(op.Reshape(g, joined(op, parts)), copies, keepdims=0), *rest(node)]


@vjp(
    "DepthToSpace",
    kind="routing",
    linear=True,
    streams=streams.batch_first,
    sign=signs.first,
    cases=[case(x=(2, 8, 2, 3), blocksize=2), case(x=(2, 18, 2, 1), blocksize=3, mode="CRD")],
)
def depth_to_space(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """SpaceToDepth; it lays channels out as DCR does, so CRD is a permutation away."""
    block, channels = node.attr("blocksize"), dims(node.x)[1]
    value = op.SpaceToDepth(g, blocksize=block)
    if node.attr("mode", "DCR") == "CRD":
        if not isinstance(channels, int):
            raise UnsupportedOp(f"{node}: mode=CRD needs a channel count that is known at compile time.")
        order = np.arange(channels).reshape(block * block, -1).T.reshape(-1)
        value = op.Gather(value, op.ints([int(i) for i in order]), axis=1)
    return [value]


@vjp(
    "SpaceToDepth",
    kind="routing",
    linear=True,
    streams=streams.batch_first,
    sign=signs.first,
    cases=[case(x=(2, 3, 4, 6), blocksize=2)],
)
def space_to_depth(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """DepthToSpace."""
    return [op.DepthToSpace(g, blocksize=node.attr("blocksize"), mode="DCR")]


@vjp(
    "Trilu",
    kind="routing",
    mask="carries",
    silent=(1,),
    linear=True,
    streams=streams.keeps(lambda node: [-1, -2]),
    sign=signs.first,
    cases=[case(x=(2, 3, 4)), case(x=(2, 4, 3), k=np.array(1), upper=0), case(x=(2, 3, 3), k=np.array(-1), upper=1)],
)
def trilu(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """The same triangle."""
    return [op.Trilu(g, node.input(1), upper=node.attr("upper", 1)), *rest(node)]


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
