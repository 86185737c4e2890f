"""Ops that move whole blocks of values: reshape, transpose, join, split, repeat."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import bounds, signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, axes_of, dims, ints, rank
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.lengths import joined, total_length
from onnxplain.vjp.registry import case, vjp


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
    arrived = next(g for g in gs if g is not None)
    pieces = [op.zeros(arrived, y) if g is None else g for g, y in zip(gs, node.outputs, strict=True)]
    return [pieces[0] if len(pieces) == 1 else op.Concat(*pieces, axis=axis), *rest(node)]


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
