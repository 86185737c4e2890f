"""Steps over axes: reductions, softmaxes, sums that run, normalisations."""

from __future__ import annotations

import numpy as np

from random_graphs.canvas import Canvas, Tensor, Unfit
from random_graphs.steps import above, axis_of, each, param, partner, since, single, step

REDUCE = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")


def _axes(c: Canvas, x: Tensor) -> list[int]:
    count = c.int(1, min(2, x.rank)) if x.rank else 0
    axes = [int(a) for a in c.rng.permutation(x.rank)[:count]]
    if c.chance(0.7):  # rows stay apart more often than not
        axes = [a for a in axes if a] or axes
    return [a - x.rank if c.chance(0.5) else a for a in axes]


def reduce(c: Canvas, op_type: str, x: Tensor, axes: list[int] | None, keepdims: int | None = None) -> Tensor:
    """Axes by attribute or by input, as the opset has it."""
    keep = c.choice([None, 0, 1]) if keepdims is None else keepdims
    if axes is not None and (c.opset >= 18 or op_type == "ReduceSum"):
        return c.add(op_type, x, c.const(np.array(axes, np.int64)), keepdims=keep)
    return c.add(op_type, x, keepdims=keep, axes=axes)


def _reduce(name: str):
    def made(c: Canvas) -> Tensor:
        x = c.pick(lambda t: t.rank > 0)
        if name == "LogSum":
            x = above(c, x)
        if c.chance(0.08) and (c.opset >= 18 or name == "Sum"):
            axes = c.const(np.zeros(0, np.int64)) if c.chance(0.5) else None
            return c.add(f"Reduce{name}", x, axes, noop_with_empty_axes=c.choice([1, 1, 0]))
        y = reduce(c, f"Reduce{name}", x, None if c.chance(0.1) else _axes(c, x))
        return c.add("Add", y, x) if c.chance(0.2) and y.rank == x.rank else y

    return made


each("reduce", {name: _reduce(name) for name in REDUCE})


@step
def softmax(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    return c.add(c.choice(["Softmax", "Softmax", "LogSoftmax"]), x, axis=axis_of(c, x) if c.chance(0.8) else None)


@step
def hardmax(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    return c.add("Mul", c.add("Hardmax", x, axis=axis_of(c, x)), partner(c, x))


@step
def cumsum(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    axis = c.const(np.array(axis_of(c, x)))
    return c.add("CumSum", x, axis, exclusive=c.int(0, 1), reverse=c.int(0, 1))


@step
def attention(c: Canvas) -> Tensor:
    """softmax(q kT) v, masked."""
    x = c.pick(lambda t: t.rank in (2, 3))
    weights = [param(c, x.shape[-1], 3, scale=0.6) for _ in range(3)]
    q, k, v = (c.add("MatMul", x, w) for w in weights)
    scores = c.add("MatMul", q, c.add("Transpose", k, perm=[*range(x.rank - 2), x.rank - 1, x.rank - 2]))
    if c.chance(0.5):
        triangle = c.add("Trilu", c.add("Sub", scores, scores), upper=0) if c.chance(0.2) else None
        hidden = c.const(np.float64(-50.0))
        n = scores.shape[-1]
        keep = c.const(np.tril(np.ones((n, n), bool))) if not any(scores.open[-2:]) else c.add("Less", scores, hidden)
        scores = c.add("Where", keep, scores, hidden)
        if triangle is not None:
            scores = c.add("Add", scores, triangle)
    return c.add("MatMul", c.add("Softmax", scores, axis=-1), v)


@step
def layer_norm(c: Canvas) -> Tensor:
    since(c, 17)
    x = c.pick(lambda t: t.rank > 0 and not t.open[-1] and t.shape[-1] > 1)
    axis = -2 if x.rank > 1 and not x.open[-2] and c.chance(0.3) else -1
    shape = x.shape[axis:]
    scale, bias = param(c, *shape), param(c, *shape)
    given = c.choice([axis, axis + x.rank])
    return c.add("LayerNormalization", x, scale, bias if c.chance(0.7) else None, axis=given, epsilon=1e-3)


@step
def batch_norm(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 1 and not t.open[1])
    n = x.shape[1]
    mean, var = param(c, n, scale=0.5), param(c, n, positive=True)
    return c.add("BatchNormalization", x, param(c, n), param(c, n), mean, var, epsilon=c.choice([None, 1e-2]))


@step
def instance_norm(c: Canvas) -> Tensor:
    single(c)
    x = c.pick(lambda t: t.rank > 2 and not t.open[1] and int(np.prod(t.shape[2:])) > 1)
    n = x.shape[1]
    return c.add("InstanceNormalization", x, param(c, n), param(c, n), epsilon=1e-3)


@step
def group_norm(c: Canvas) -> Tensor:
    since(c, 18)
    single(c)
    x = c.pick(lambda t: t.rank > 2 and not t.open[1] and t.shape[1] % 2 == 0)
    n = x.shape[1] if c.opset >= 21 else 2
    return c.add("GroupNormalization", x, param(c, n), param(c, n), num_groups=2, epsilon=1e-3)


@step
def lrn(c: Canvas) -> Tensor:
    single(c)
    x = c.pick(lambda t: t.rank == 4)
    return c.add("LRN", x, size=c.choice([1, 3]), alpha=0.3, beta=c.choice([0.5, 0.75]), bias=1.0)


@step
def lp_normalization(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    return c.add("LpNormalization", x, axis=axis_of(c, x), p=c.choice([1, 2]))


@step
def mean_variance(c: Canvas) -> Tensor:
    single(c)
    x = c.pick(lambda t: t.rank == 4 and int(np.prod(t.shape[2:])) > 2)
    return c.add("MeanVarianceNormalization", x, axes=c.choice([None, [1, 2, 3], [2, 3]]))


@step
def layer_norm_by_hand(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0 and not t.open[-1] and t.shape[-1] > 1)
    centred = c.add("Sub", x, reduce(c, "ReduceMean", x, [-1], 1))
    power = c.add("Pow", centred, c.const(np.float64(2.0))) if c.chance(0.5) else c.add("Mul", centred, centred)
    variance = c.add("Add", reduce(c, "ReduceMean", power, [-1], 1), c.const(np.float64(1e-3)))
    y = c.add("Div", centred, c.add("Sqrt", variance))
    return c.add("Add", c.add("Mul", y, param(c, x.shape[-1])), param(c, x.shape[-1]))


@step
def standardised(c: Canvas) -> Tensor:
    """Over the rows: batch statistics."""
    x = c.pick(lambda t: t.rank > 1 and t.shape[0] > 1)
    if min(v.shape[0] for v in x.values) < 2:
        raise Unfit("one row")
    return c.add("Sub", x, reduce(c, "ReduceMean", x, [0], 1))
