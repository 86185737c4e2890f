"""Reductions over axes, and cumulative sums."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims, ints
from onnxplain.graph.streams import reduction_axes
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.registry import Case, Sample, case, vjp


def cases(sample: Sample = "normal") -> list[Case]:
    """Axes as input, as attribute (opset 13), absent and empty; kept and dropped."""
    return [
        case(x=(2, 3, 4), axes=np.array([1]), sample=sample),
        case(x=(2, 3, 4), axes=np.array([-1, 1]), keepdims=0, sample=sample),
        case(x=(2, 3, 4), axes=np.array([0, -1]), sample=sample),
        case(x=(2, 3), sample=sample),
        case(x=(2, 3), keepdims=0, sample=sample),
        case(x=(2, 3), axes=np.array([], dtype=np.int64), noop_with_empty_axes=1, keepdims=0, sample=sample),
    ]


def old_cases(sample: Sample = "normal") -> list[Case]:
    """Axes as attribute, before opset 18."""
    return [case(x=(2, 3, 4), axes=[-2], keepdims=keep, opset=13, sample=sample) for keep in (0, 1)]


def axes_known(node: Node) -> list[int]:
    """The reduced axes, counted from the front."""
    axes = reduction_axes(node)
    if axes is None:
        raise UnsupportedOp(
            f"{node}: which axes are reduced is computed by the model, and the derivative needs to know them. "
            f"Fix the shapes it is computed from, so that it folds to a constant."
        )
    return axes


def back(op: Backward, node: Node, value: ir.Value) -> ir.Value:
    """A tensor laid out as y with the reduced axes put back as length one, so that it broadcasts against x."""
    axes = axes_known(node)
    if node.attr("keepdims", 1) or not axes:
        return value
    result: ir.Value = op.Unsqueeze(value, axes)
    return result


def over(op: Backward, op_type: str, value: ir.Value, axes: list[int]) -> ir.Value:
    """One of the Reduce ops, axes kept; `noop` where there are none."""
    result: ir.Value = getattr(op, op_type)(value, op.ints(axes), keepdims=1) if axes else value
    return result


def rest(node: Node) -> list[Gradient]:
    """Nothing to the axes."""
    return [None] * (len(node.inputs) - 1)


@vjp(
    "ReduceSum",
    kind="mean",
    silent=(1,),
    linear=True,
    streams=streams.reduced,
    sign=signs.first,
    cases=cases(),
)
def reduce_sum(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Every summand gets g."""
    return [op.expand(back(op, node, g), node.x), *rest(node)]


@vjp(
    "ReduceMean",
    kind="mean",
    silent=(1,),
    linear=True,
    streams=streams.reduced,
    sign=signs.first,
    cases=[*cases(), *old_cases()],
)
def reduce_mean(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Every element gets g over their number."""
    lengths = [dims(node.x)[axis] for axis in axes_known(node)]
    number = float(np.prod([length for length in lengths if isinstance(length, int)]))
    share = g / number if number != 1.0 else g
    for axis, length in zip(axes_known(node), lengths, strict=True):
        if not isinstance(length, int):
            share = share / op.Squeeze(op.Cast(op.size(node.x, axis), to=int(g.dtype or ir.DataType.FLOAT)))
    return [op.expand(back(op, node, share), node.x), *rest(node)]


@vjp(
    "ReduceMax",
    "ReduceMin",
    kind="routing",
    silent=(1,),
    streams=streams.reduced,
    sign=signs.first,
    cases=[*cases("apart"), *old_cases("apart")],
)
def reduce_extreme(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g to the extreme element, evenly to several that tie (torch.amax)."""
    wins = op.Equal(op.real(node.x), back(op, node, op.real(node.y)))
    ties = over(op, "ReduceSum", op.Cast(wins, to=int(g.dtype or ir.DataType.FLOAT)), axes_known(node))
    return [op.Where(wins, back(op, node, g) / ties, 0.0), *rest(node)]


@vjp(
    "ReduceProd",
    kind="other",
    silent=(1,),
    streams=streams.reduced,
    sign=signs.first,
    cases=cases(),
)
def reduce_prod(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g times the product of the other elements: 0 unless all others differ from 0.

    Zeros count as ones in the product, and how many there are beside each element decides.
    """
    x, axes = op.real(node.x), axes_known(node)
    zero = op.Equal(x, 0.0)
    factors = op.Where(zero, 1.0, x)
    others = over(op, "ReduceProd", factors, axes) / factors
    counted = op.Cast(zero, to=int(x.dtype or ir.DataType.FLOAT))
    alone = op.Equal(over(op, "ReduceSum", counted, axes) - counted, 0.0)
    return [op.Where(alone, back(op, node, g) * others, 0.0), *rest(node)]


@vjp(
    "ReduceL1",
    kind="other",
    silent=(1,),
    streams=streams.reduced,
    sign=signs.always,
    cases=[*cases("away"), *old_cases("away")],
)
def reduce_l1(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g with the sign of x."""
    return [back(op, node, g) * op.Sign(op.real(node.x)), *rest(node)]


@vjp(
    "ReduceL2",
    kind="other",
    silent=(1,),
    streams=streams.reduced,
    sign=signs.always,
    cases=[*cases("away"), *old_cases("away")],
)
def reduce_l2(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g x / y, 0 for the zero vector."""
    y = op.real(node.y)
    share = g / op.Where(op.Equal(y, 0.0), 1.0, y)
    return [back(op, node, share) * op.real(node.x), *rest(node)]


@vjp(
    "ReduceLogSum",
    kind="other",
    unbounded=True,
    silent=(1,),
    streams=streams.reduced,
    cases=[*cases("positive"), *old_cases("positive")],
)
def reduce_log_sum(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = ln sum x: g / sum x = g exp(-y)."""
    return [op.expand(back(op, node, g * op.Exp(-op.real(node.y))), node.x), *rest(node)]


@vjp(
    "ReduceLogSumExp",
    kind="other",
    silent=(1,),
    streams=streams.reduced,
    cases=[*cases(), *old_cases()],
)
def reduce_log_sum_exp(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g times the softmax, exp(x - y)."""
    return [back(op, node, g) * op.Exp(op.real(node.x) - back(op, node, op.real(node.y))), *rest(node)]


@vjp(
    "ReduceSumSquare",
    kind="other",
    silent=(1,),
    streams=streams.reduced,
    sign=signs.always,
    cases=[*cases(), *old_cases()],
)
def reduce_sum_square(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """2 g x."""
    return [back(op, node, g) * 2.0 * op.real(node.x), *rest(node)]


@vjp(
    "CumSum",
    kind="other",
    silent=(1,),
    linear=True,
    streams=streams.keeps(lambda node: ints(node.input(1))),
    sign=signs.first,
    cases=[
        case(x=(2, 5), axis=np.array(1)),
        case(x=(2, 5, 3), axis=np.array(-2), exclusive=1),
        case(x=(2, 5), axis=np.array(0), reverse=1),
        case(x=(2, 5), axis=np.array(-1), reverse=1, exclusive=1),
    ],
)
def cum_sum(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """The sum from the other end."""
    axis = node.inputs[1]
    reverse, exclusive = 1 - node.attr("reverse", 0), node.attr("exclusive", 0)
    return [op.CumSum(g, axis, reverse=reverse, exclusive=exclusive), None]
