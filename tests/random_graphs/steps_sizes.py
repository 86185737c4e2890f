"""Steps whose shapes and positions are computed in the graph, as exporters write them; whole numbers; quantisation."""

from __future__ import annotations

import numpy as np

from random_graphs.canvas import Canvas, Tensor, Unfit
from random_graphs.steps import axis_of, param, partner, single, step


def length(c: Canvas, x: Tensor, axis: int) -> Tensor:
    """Shape and Gather: one length of x, int64 (1,)."""
    return c.add("Gather", c.add("Shape", x), c.const(np.array([axis])), axis=0)


@step
def flatten_by_sizes(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 1)
    return c.add("Reshape", x, c.add("Concat", length(c, x, 0), c.const(np.array([-1])), axis=0))


@step
def fold_heads(c: Canvas) -> Tensor:
    """(N, L, 2 d) to (2 N, L, d) and back, with a step between."""
    x = c.pick(lambda t: t.rank == 3 and not any(t.open[1:]) and t.shape[2] % 2 == 0)
    _, long, deep = x.shape
    rows = c.add("Mul", length(c, x, 0), c.const(np.array([2])))
    heads = c.add("Reshape", x, c.const(np.array([0, long, 2, deep // 2])))
    heads = c.add("Transpose", heads, perm=[0, 2, 1, 3])
    folded = c.add("Reshape", heads, c.add("Concat", rows, c.const(np.array([long, deep // 2])), axis=0))
    done = c.add(c.choice(["Tanh", "Softmax", "Neg"]), folded)
    apart = c.add("Reshape", done, c.const(np.array([-1, 2, long, deep // 2])))
    return c.add("Reshape", c.add("Transpose", apart, perm=[0, 2, 1, 3]), c.const(np.array([0, long, deep])))


@step
def slice_by_sizes(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    axis = axis_of(c, x) % x.rank
    half = c.add("Div", length(c, x, axis), c.const(np.array([2])))
    zero, axes = c.const(np.array([0])), c.const(np.array([axis]))
    if c.chance(0.5):
        return c.add("Slice", x, half, length(c, x, axis), axes)
    left = c.add("Slice", x, zero, half, axes)
    right = c.add("Slice", x, half, length(c, x, axis), axes)
    return c.add("Concat", right, c.add("Neg", left), axis=axis)  # rotary embeddings turn halves so


@step
def positions(c: Canvas) -> Tensor:
    """x plus a Range over its last axis."""
    x = c.pick(lambda t: t.rank > 0)
    end = c.add("Squeeze", length(c, x, x.rank - 1))
    steps = c.add("Range", c.const(np.array(0)), end, c.const(np.array(1)))
    return c.add(c.choice(["Add", "Mul"]), x, c.add("Cast", steps, to=c.elem))


@step
def filled(c: Canvas) -> Tensor:
    """ConstantOfShape beside the data."""
    x = c.pick(lambda t: t.rank > 0)
    zeros = c.add("Expand", c.const(np.float64(0.5)), c.add("Shape", x))
    return c.add("Concat", zeros, x, axis=axis_of(c, x)) if c.chance(0.5) else c.add("Sub", x, zeros)


@step
def divided_by_length(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    count = c.add("Cast", length(c, x, axis_of(c, x) % x.rank), to=c.elem)
    return c.add("Div", x, c.add("Sqrt", count))


@step
def pooled_switches(c: Canvas) -> Tensor:
    """The Indices of a MaxPool, beside its values."""
    single(c)
    x = c.pick(lambda t: t.rank == 4 and not any(t.open[1:]) and min(t.shape[2:]) > 1)
    y, index = c.add("MaxPool", x, outputs=2, kernel_shape=[2, 2], strides=[1, 2])
    scaled = c.add("Mul", c.add("Cast", index, to=c.elem), c.const(np.float64(0.01)))
    return c.add(c.choice(["Add", "Mul"]), y, scaled)


@step
def quantised(c: Canvas) -> Tensor:
    """Rounded to eighths, beside the data."""
    if not c.chance(0.3):
        raise Unfit("rare")
    single(c)
    x = c.pick()
    scale, zero = c.const(np.float64(0.125)), c.const(np.array(0, np.int8))
    y = c.add("DequantizeLinear", c.add("QuantizeLinear", x, scale, zero), scale, zero)
    return c.add("Add", y, x) if c.chance(0.6) else y


@step
def whole_number_power(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.size() < 4)
    return c.add("Pow", x, c.const(np.array(c.choice([2, 3]))))


@step
def clip_crossed(c: Canvas) -> Tensor:
    """Bounds in the wrong order: everything becomes the upper one."""
    if not c.chance(0.3):
        raise Unfit("rare")
    low = c.add("Add", param(c, scale=0.1), c.const(np.float64(0.6)))
    return c.add("Add", c.add("Clip", c.pick(), low, param(c, scale=0.1)), partner(c, c.pick()))


@step
def twice(c: Canvas) -> Tensor:
    """One tensor as both operands."""
    x = c.pick()
    op_type = c.choice(["Mul", "Add", "Sub", "Max", "MatMul", "Concat", "Sum"])
    return c.add(op_type, x, x, axis=axis_of(c, x) if op_type == "Concat" else None)


@step
def shared_weights(c: Canvas) -> Tensor:
    """One table in two layers."""
    x = c.pick(lambda t: t.rank > 1 and not t.open[-1])
    w = param(c, x.shape[-1], x.shape[-1], scale=0.5)
    return c.add("MatMul", c.add("Tanh", c.add("MatMul", x, w)), w)


@step
def looked_up_at(c: Canvas) -> Tensor:
    """Rows picked at places that the data decides: TopK's indices."""
    x = c.pick(lambda t: t.rank > 1 and not t.open[-1])
    _, index = c.add("TopK", x, c.const(np.array([1])), outputs=2, axis=-1)
    if c.chance(0.5):
        return c.add("GatherElements", x, index, axis=-1)
    return c.add("Gather", param(c, x.shape[-1], 2), index, axis=0)


@step
def scattered_at(c: Canvas) -> Tensor:
    """Written at places that the data decides."""
    x = c.pick(lambda t: t.rank > 1 and not t.open[-1])
    index = c.add("ArgMax", x, axis=-1, keepdims=1)
    updates = (
        c.add("ReduceMean", x, axes=[-1], keepdims=1)
        if c.opset < 18
        else c.add("ReduceMean", x, c.const(np.array([-1])))
    )
    return c.add("ScatterElements", x, index, updates, axis=-1)
