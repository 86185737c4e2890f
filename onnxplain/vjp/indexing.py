"""Ops that pick values by position: Slice, Gather and their kin. Backward they put values where they came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import index_streams, signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, axes_of, constant, dims, ints, rank
from onnxplain.graph.walk import Gradient
from onnxplain.vjp import token_inputs
from onnxplain.vjp.lengths import INT64, joined, scalar, volume
from onnxplain.vjp.placement import at_positions, between, scattered
from onnxplain.vjp.registry import case, vjp
from onnxplain.vjp.shape import rest


@vjp(
    "Slice",
    kind="routing",
    mask="carries",
    silent=(1, 2, 3, 4),
    linear=True,
    streams=streams.keeps(streams.sliced),
    sign=signs.first,
    cases=[
        case(x=(2, 5, 6), starts=np.array([1]), ends=np.array([4]), axes=np.array([1])),
        case(x=(2, 5, 6), starts=np.array([0, 1, -3]), ends=np.array([9, 4, 2**31 - 1])),
        case(
            x=(2, 5, 7), starts=np.array([1, 0]), ends=np.array([5, 7]), axes=np.array([1, -1]), steps=np.array([2, 3])
        ),
        case(x=(2, 5), starts=np.array([-1]), ends=np.array([-(2**31)]), axes=np.array([1]), steps=np.array([-1])),
        case(x=(2, 8), starts=np.array([6]), ends=np.array([0]), axes=np.array([1]), steps=np.array([-2])),
        case(x=(2, 5), starts=np.array([0]), ends=np.array([99]), axes=np.array([1])),
    ],
)
def slice_(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Zeros around; with steps, in between."""
    x = node.x
    starts, axes, steps = ints(node.input(1)), ints(node.input(3)), ints(node.input(4))
    count = len(starts) if starts is not None else dims(node.inputs[1])[0]  # type: ignore[arg-type]
    if not isinstance(count, int) or (node.input(3) is not None and axes is None):
        raise UnsupportedOp(f"{node}: the axes must be known at compile time.")
    axes = list(range(count)) if axes is None else axes_of(axes, rank(x))
    ends = ints(node.input(2))
    for i, axis in enumerate(axes):
        if axis == op.stream_axis(x):
            continue
        length = dims(x)[axis]
        step = 1 if node.input(4) is None else None if steps is None else steps[i]
        if starts is not None and step == 1:
            g = between(op, g, x, axis, starts[i])
        elif starts is not None and ends is not None and step is not None and isinstance(length, int):
            end = None if step < 0 and ends[i] < -length else ends[i]
            g = at_positions(op, g, x, axis, np.arange(length)[starts[i] : end : step])
        else:
            picked = [None if v is None else op.Slice(v, [i], [i + 1]) for v in (*node.inputs[1:3], node.input(4))]
            everything = op.Range(scalar(op, 0), op.Squeeze(op.size(x, axis), [0]), scalar(op, 1))
            g = at_positions(op, g, x, axis, op.Slice(everything, *picked[:2], op.ints([0]), picked[2]))
    return [g, *rest(node)]


@vjp(
    "Gather",
    kind="routing",
    mask="carries",
    token=token_inputs.TABLE,
    silent=(1,),
    linear=True,
    streams=index_streams.gather,
    sign=signs.first,
    cases=[
        case(x=(5, 3), index=np.array([0, 2, 2, -1])),
        case(x=(2, 5, 3), index=np.array([[4, 0], [0, 1]]), axis=1),
        case(x=(2, 5, 3), index=np.array(-2), axis=1),
        case(x=(2, 5, 3), index=np.array([3, 1]), axis=-2),
        case(x=(2, 5, 3), index=np.array([2, 3]), axis=1),
        case(x=(2, 5), index=np.array([[3]]), axis=1),
        case(x=(4,), index=np.array(1)),
    ],
)
def gather(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Every row goes back to its index; rows taken several times add up."""
    x, index = node.x, node.inputs[1]
    assert index is not None
    if op.is_constant(x):
        return [None, None]
    axis = axes_of([node.attr("axis", 0)], rank(x))[0]
    zeros = g
    g = _one_axis(op, g, axis, rank(index))
    numbers, length = constant(index), dims(x)[axis]
    if numbers is not None and (isinstance(length, int) or (numbers.size and (numbers >= 0).all())):
        flat = numbers.reshape(-1).astype(np.int64)
        flat = flat % length if isinstance(length, int) else flat
        if len(flat) and (np.diff(flat) == 1).all():
            return [between(op, g, x, axis, int(flat[0])), None]
        if len(set(flat.tolist())) == len(flat):
            return [at_positions(op, g, x, axis, flat), None]
    flat_index = op.Reshape(index, [1] * axis + [-1] + [1] * (rank(x) - axis - 1))
    if flat_index.dtype != INT64:
        flat_index = op.Cast(flat_index, to=int(INT64))
    return [scattered(op, g, op.zeros(zeros, x), flat_index, axis), None]


def _one_axis(op: Backward, g: ir.Value, axis: int, count: int) -> ir.Value:
    """`count` axes from `axis` on become one."""
    if count == 1:
        return g
    if count == 0:
        return op.Unsqueeze(g, [axis])  # type: ignore[no-any-return]
    behind = [op.size(g, i) for i in range(axis + count, rank(g))]
    value: ir.Value = op.Reshape(g, joined(op, [op.ints([0] * axis + [-1]), *behind]))
    return op.reshaped(value, [*dims(g)[:axis], dims(value)[axis], *dims(g)[axis + count :]])


def one_hot_axis(node: Node, axes: Sequence[int]) -> int:
    """The indices' axis, behind the new one where that stands before it."""
    new = node.attr("axis", -1) % rank(node.y)
    if axes[0] < 0 or any(axis != streams.CONSTANT for axis in axes[1:]):
        return streams.UNPROVEN
    return axes[0] if axes[0] < new else axes[0] + 1


@vjp(
    "OneHot",
    kind="routing",
    token=token_inputs.ONE_HOT,
    silent=(0, 1),
    streams=one_hot_axis,
    cases=[
        case(index=np.array([1, 0, -1]), depth=np.array(3), values=(2,)),
        case(index=np.array([[1, 5]]), depth=np.array(3), values=(2,), axis=1),
    ],
)
def one_hot(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y is the second of two values where the index points and the first elsewhere: each gets the g of its places."""
    dtype = g.dtype
    assert dtype is not None
    hot = op.OneHot(node.inputs[0], node.inputs[1], op.constant([0.0, 1.0], dtype), axis=node.attr("axis", -1))
    on, all_ = (op.Reshape(op.ReduceSum(v, keepdims=0), [1]) for v in (g * hot, g))
    return [None, None, op.Concat(all_ - on, on, axis=0)]


@vjp(
    "GatherElements",
    kind="routing",
    silent=(1,),
    linear=True,
    streams=streams.across(streams.attribute("axis", 0), 1),
    sign=signs.first,
    cases=[
        case(x=(3, 4), index=np.array([[0, 1, 1, -1], [2, 0, 1, 0]])),
        case(x=(1, 4), index=np.array([[0, 1, 1, -1, 3]]), axis=1),
    ],
)
def gather_elements(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Every value goes back to its index along the axis."""
    x, index = node.x, node.inputs[1]
    assert index is not None
    return [scattered(op, g, op.zeros(g, x), index, axes_of([node.attr("axis", 0)], rank(x))[0]), None]


@vjp(
    "GatherND",
    kind="routing",
    silent=(1,),
    linear=True,
    streams=index_streams.gather_nd,
    sign=signs.first,
    cases=[
        case(x=(3, 4, 2), index=np.array([[0, 1], [2, -1], [0, 1]])),
        case(x=(3, 4, 2), index=np.array([[[1]], [[0]]])),
        case(x=(2, 4, 3), index=np.array([[1], [-2]]), batch_dims=1),
        case(x=(1, 4, 3), index=np.array([[[1, 0], [3, 2], [1, 0]]]), batch_dims=1),
        case(x=(2, 2, 3), index=np.array([[[1], [0]], [[2], [2]]]), batch_dims=2),
    ],
)
def gather_nd(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """As (batch, entries, rest) with one number per index tuple: added up along the middle axis.

    ScatterElements, since ScatterND has no batch axes and no atomic add on CUDA.
    """
    x, index = node.x, node.inputs[1]
    assert index is not None
    batch, depth = node.attr("batch_dims", 0), dims(index)[-1]
    if not isinstance(depth, int):
        raise UnsupportedOp(f"{node}: the length of the last axis of the indices must be known at compile time.")
    split = batch + depth
    sizes = joined(op, [op.size(x, axis) for axis in range(batch, split)])
    steps = joined(op, [volume(op, x, axis + 1, split) for axis in range(batch, split)])
    index = op.Where(op.Less(index, scalar(op, 0)), op.Add(index, sizes), index)
    number = op.ReduceSum(op.Mul(index, steps), [-1], keepdims=0)
    number = op.Reshape(number, joined(op, [volume(op, number, 0, batch), op.ints([-1, 1])]))
    tail = volume(op, x, split, rank(x))
    if op.stream_axis(x) is not None and op.stream_axis(x) >= split:
        tail = volume(op, g, rank(g) - (rank(x) - split), rank(g))
    middle = volume(op, x, batch, split)
    zeros = op.Reshape(op.zeros(g, x), joined(op, [op.ints([-1]), middle, tail]))
    flat = op.Reshape(g, joined(op, [volume(op, g, 0, batch), op.ints([-1]), tail]))
    flat_sum = scattered(op, flat, zeros, number, 1)
    return [op.like(flat_sum, x), None]


@vjp(
    "TopK",
    kind="routing",
    silent=(1,),
    streams=streams.keeps(streams.attribute("axis", -1)),
    sign=signs.first,
    cases=[
        case(x=(2, 5), k=np.array([2]), sample="apart", outputs=2),
        case(x=(2, 5, 2), k=np.array([3]), axis=1, largest=0, sorted=0, sample="apart", outputs=2),
    ],
)
def top_k(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """The values chosen get theirs; which ones they are is the second output."""
    x = node.x
    axis = axes_of([node.attr("axis", -1)], rank(x))[0]
    return [scattered(op, g, op.zeros(g, x), node.outputs[1], axis), None]


def _compressed(node: Node) -> list[int] | None:
    axis = node.attr("axis")
    return None if axis is None else [axis]


@vjp(
    "Compress",
    kind="routing",
    silent=(1,),
    linear=True,
    streams=streams.keeps(_compressed),
    sign=signs.first,
    cases=[
        case(x=(2, 4), condition=np.array([True, False, True]), axis=1),
        case(x=(2, 3), condition=np.array([False, True, False, True, True])),
    ],
)
def compress(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Entries go back where the condition held."""
    x, condition = node.inputs
    assert x is not None
    positions = op.Reshape(op.NonZero(condition), [-1])
    if node.attr("axis") is None:
        zeros = op.Reshape(op.zeros(g, x), [-1])
        return [op.like(op.ScatterElements(zeros, positions, g, axis=0), x), None]
    return [at_positions(op, g, x, axes_of([node.attr("axis")], rank(x))[0], positions), None]


def _sequence_axis(node: Node, axes: list[int]) -> int:
    batch = node.attr("batch_axis", 1)
    return batch if axes[0] == batch and axes[1] in (0, streams.CONSTANT) else streams.UNPROVEN


@vjp(
    "ReverseSequence",
    kind="routing",
    silent=(1,),
    linear=True,
    streams=_sequence_axis,  # type: ignore[arg-type]
    sign=signs.first,
    cases=[
        case(x=(4, 2, 3), lengths=np.array([2, 4])),
        case(x=(1, 5, 3), lengths=np.array([3]), batch_axis=0, time_axis=1),
    ],
)
def reverse_sequence(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Turning twice is as it was."""
    lengths = node.inputs[1]
    batch = node.attr("batch_axis", 1)
    if op.stream_axis(node.y) is not None:
        lengths = op.Expand(lengths, op.size(g, batch))
    return [op.ReverseSequence(g, lengths, batch_axis=batch, time_axis=node.attr("time_axis", 0)), None]
