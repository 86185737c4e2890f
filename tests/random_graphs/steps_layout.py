"""Steps that move values: shapes, pieces, paddings, look-ups, scatters."""

from __future__ import annotations

import numpy as np

from random_graphs.canvas import Canvas, Tensor, Unfit
from random_graphs.steps import axis_of, closed, param, partner, since, step


@step
def reshape(c: Canvas) -> Tensor:
    """Two axes become one, one becomes two, or all but the first are one."""
    x = c.pick(lambda t: t.rank > 0)
    sizes: list[int] = [0 if o and i == 0 else d for i, (d, o) in enumerate(zip(x.shape, x.open, strict=True))]
    if any(x.open[1:]):
        raise Unfit("open")
    way = c.int(0, 3)
    if way == 0 and x.rank > 1:
        at = c.int(0, x.rank - 2)
        sizes[at : at + 2] = [-1]
    elif way == 1:
        at = c.int(0, x.rank - 1)
        splits = [d for d in (2, 3) if sizes[at] > 0 and sizes[at] % d == 0]
        if not splits:
            raise Unfit("nothing to split")
        first = c.choice(splits)
        sizes[at : at + 1] = [first, sizes[at] // first]
    elif way == 2:
        sizes = [0, -1] if x.rank > 1 else [-1]
    else:
        sizes = [-1]
    return c.add("Reshape", x, c.const(np.array(sizes, np.int64)))


@step
def reshape_like(c: Canvas) -> Tensor:
    """To the shape of another tensor, read at run time."""
    x = c.pick(lambda t: t.rank > 0)
    same = c.floats(lambda t: [v.size for v in t.values] == [v.size for v in x.values] and t.rank > 0)
    return c.add("Reshape", x, c.add("Shape", c.choice(same)))


@step
def flatten(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    return c.add("Flatten", x, axis=c.choice([None, 0, x.rank, -1, 1]))


@step
def squeeze(c: Canvas) -> Tensor:
    x = c.pick(lambda t: any(d == 1 and not o for d, o in zip(t.shape, t.open, strict=True)))
    ones = [i for i, (d, o) in enumerate(zip(x.shape, x.open, strict=True)) if d == 1 and not o]
    axis = c.choice(ones)
    return c.add("Squeeze", x, c.const(np.array([axis - x.rank if c.chance(0.5) else axis])))


@step
def unsqueeze(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank < 5)
    return c.add("Unsqueeze", x, c.const(np.array([c.int(-x.rank - 1, x.rank)])))


@step
def to_picture(c: Canvas) -> Tensor:
    """(N, d) to (N, a, b, …), so that pools and convolutions have something."""
    x = c.pick(lambda t: t.rank == 2 and not t.open[1] and t.shape[1] >= 4)
    d = x.shape[1]
    for a, b in ((2, 2), (2, 3), (3, 2), (1, 3), (1, 2)):
        if d % (a * b) == 0 and d // (a * b) > 1:
            return c.add("Reshape", x, c.const(np.array([0, a, b, -1])))
    raise Unfit("lengths")


@step
def transpose(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 1)
    perm = [int(i) for i in c.rng.permutation(x.rank)]
    if c.chance(0.5):
        perm = [0, *[i for i in perm if i]]
    return c.add("Transpose", x, perm=perm if c.chance(0.8) else None)


@step
def concat(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    axis = axis_of(c, x)

    def fits(t: Tensor) -> bool:
        return t.rank == x.rank and all(
            v.shape[:axis] + v.shape[axis:][1:] == w.shape[:axis] + w.shape[axis:][1:]
            for v, w in zip(t.values, x.values, strict=True)
        )

    parts = [x, c.choice(c.floats(fits))]
    if c.chance(0.3):
        parts.append(param(c, *closed(x)))
    if c.chance(0.3):
        parts.reverse()
    return c.add("Concat", *parts, axis=axis)


@step
def split(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    axis = axis_of(c, x)
    if x.open[axis] or x.shape[axis] < 2:
        raise Unfit("length")
    first = c.int(1, x.shape[axis] - 1)
    lengths = c.const(np.array([first, x.shape[axis] - first]))
    if x.shape[axis] % 2 == 0 and c.chance(0.4):
        parts = c.add("Split", x, outputs=2, axis=axis, num_outputs=2 if c.opset >= 18 else None)
    else:
        parts = c.add("Split", x, lengths, outputs=2, axis=axis)
    if c.chance(0.4):
        return c.add("Mul", parts[0], c.add("ReduceMean", parts[1], keepdims=0))
    return parts[c.int(0, 1)]


@step
def gated(c: Canvas) -> Tensor:
    """Two halves, one of them through a sigmoid (GLU)."""
    x = c.pick(lambda t: t.rank > 0 and not t.open[-1] and t.shape[-1] % 2 == 0)
    half = c.const(np.array([x.shape[-1] // 2] * 2))
    a, b = c.add("Split", x, half, outputs=2, axis=-1)
    return c.add("Mul", a, c.add("Sigmoid", b))


@step
def pad(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    mode = c.choice([None, "constant", "constant", "reflect", "edge", "wrap"])
    if mode == "wrap":
        since(c, 19)
    axes = list(range(x.rank))
    some = c.chance(0.4) and c.opset >= 18
    if some:
        axes = sorted(int(a) for a in c.rng.permutation(x.rank)[: c.int(1, x.rank)])
    most = {None: 2, "constant": 2, "edge": 2}.get(mode)
    pads = []
    for _ in range(2):
        for axis in axes:
            limit = most if most is not None else x.shape[axis] - 1 if not x.open[axis] else 0
            low = -1 if mode in (None, "constant") and c.chance(0.15) and x.shape[axis] > 2 else 0
            pads.append(c.int(low, max(0, limit)) if c.chance(0.5) else 0)
    value = param(c, scale=0.5) if mode in (None, "constant") and c.chance(0.5) else None
    inputs = [x, c.const(np.array(pads, np.int64)), value]
    if some:
        chosen = [a - x.rank if c.chance(0.3) else a for a in axes]
        inputs.append(c.const(np.array(chosen, np.int64)))
    while inputs[-1] is None:
        inputs.pop()
    return c.add("Pad", *inputs, mode=mode)


@step
def slice_(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    axes = sorted({axis_of(c, x) % x.rank for _ in range(c.int(1, 2))})
    starts, ends, steps = [], [], []
    for axis in axes:
        step_by = c.choice([1, 1, 2, -1, -2])
        n = x.shape[axis]
        low, high = sorted((c.int(0, n), c.int(0, n)))
        low, high = (0, n) if low == high or x.open[axis] else (low, high)
        if step_by > 0:
            starts.append(low)
            ends.append(high if c.chance(0.6) and not x.open[axis] else 2**31 if high == n else high)
        else:
            starts.append(high - 1 if high < n else -1)
            ends.append(low - 1 if low > 0 else -(2**31))
        steps.append(step_by)
    named = [a - x.rank if c.chance(0.4) else a for a in axes]
    return c.add("Slice", x, *(c.const(np.array(v, np.int64)) for v in (starts, ends, named, steps)))


@step
def expand(c: Canvas) -> Tensor:
    x = c.pick()
    if c.chance(0.4):
        others = c.floats(lambda t: t.rank > 0)
        return c.add("Expand", x, c.add("Shape", c.choice(others)))
    shape = [c.int(2, 3) if d == 1 and c.chance(0.7) else 1 for d in x.shape]
    return c.add("Expand", x, c.const(np.array([c.int(1, 2)] * c.int(0, 1) + shape, np.int64)))


@step
def tile(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    return c.add("Tile", x, c.const(np.array([c.choice([1, 1, 2, 3]) if i else 1 for i in range(x.rank)], np.int64)))


@step
def trilu(c: Canvas) -> Tensor:
    since(c, 14)
    x = c.pick(lambda t: t.rank > 1)
    return c.add("Trilu", x, c.const(np.array(c.int(-1, 1))) if c.chance(0.5) else None, upper=c.int(0, 1))


@step
def centre_crop(c: Canvas) -> Tensor:
    since(c, 18)
    x = c.pick(lambda t: t.rank > 1 and not t.open[-1])
    return c.add("CenterCropPad", x, c.const(np.array([c.int(1, x.shape[-1] + 2)])), axes=[x.rank - 1])


@step
def gather(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    axis = axis_of(c, x)
    n = min(v.shape[axis] for v in x.values)
    shape = c.choice([(), (1,), (2,), (3,), (2, 2)])
    low = -n if not x.open[axis] else 0
    return c.add("Gather", x, c.const(c.rng.integers(low, n, shape)), axis=axis)


@step
def gather_by_argmax(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    axis = axis_of(c, x)
    index = c.add(c.choice(["ArgMax", "ArgMin"]), x, axis=axis, keepdims=1)
    if c.chance(0.6):
        return c.add("GatherElements", x, index, axis=axis)
    table = param(c, max(v.shape[axis] for v in x.values), 2)
    return c.add("Gather", table, index, axis=0)


@step
def gather_elements(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    shape = list(closed(x))
    axis = axis_of(c, x)
    shape[axis] = c.int(1, 3)
    return c.add("GatherElements", x, c.const(c.rng.integers(-x.shape[axis], x.shape[axis], shape)), axis=axis)


@step
def gather_nd(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 1)
    shape = closed(x)
    dims = c.int(1, x.rank - 1)
    batch = 1 if c.chance(0.3) else 0
    lead = (shape[0], 2) if batch else (c.int(1, 3),)
    index = np.stack([c.rng.integers(0, d, lead) for d in shape[batch : batch + dims]], -1)
    return c.add("GatherND", x, c.const(index), batch_dims=batch)


@step
def scatter_elements(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    shape = list(closed(x))
    axis = axis_of(c, x)
    shape[axis] = c.int(1, shape[axis])
    index = np.argsort(c.rng.random(closed(x)), axis)
    index = np.take(index, range(shape[axis]), axis)
    how = c.choice([None, "none", "add", c.choice(["add", "mul", "max", "min"])])
    if how in ("add", "mul"):
        since(c, 16)
        index = c.rng.integers(0, x.shape[axis], shape)
    elif how in ("max", "min"):
        since(c, 18)
    return c.add("ScatterElements", x, c.const(index), _updates(c, shape), axis=axis, reduction=how)


def _updates(c: Canvas, shape: list[int]) -> Tensor:
    same = c.floats(lambda t: t.shape == tuple(shape) and not any(t.open))
    return c.choice(same) if same and c.chance(0.6) else param(c, *shape)


@step
def scatter_nd(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    shape = closed(x)
    count = c.int(1, shape[0])
    index = c.rng.permutation(shape[0])[:count, None]
    how = c.choice([None, "none", "add", c.choice(["add", "mul"])])
    if how in ("add", "mul"):
        since(c, 16)
    return c.add("ScatterND", x, c.const(index), _updates(c, [count, *shape[1:]]), reduction=how)


@step
def topk(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    axis = axis_of(c, x)
    k = c.int(1, min(v.shape[axis] for v in x.values))
    values, index = c.add("TopK", x, c.const(np.array([k])), outputs=2, axis=axis, largest=c.int(0, 1))
    if c.chance(0.3):
        return c.add("Mul", values, c.add("Cast", index, to=c.elem))
    return c.add("GatherElements", x, index, axis=axis) if c.chance(0.2) else values


@step
def compress(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    axis = axis_of(c, x)
    if x.open[axis]:
        raise Unfit("open")
    keep = c.rng.random(x.shape[axis]) > 0.4
    return c.add("Compress", x, c.const(keep), axis=axis)


@step
def compress_by_value(c: Canvas) -> Tensor:
    """How many come out depends on the data."""
    x = c.pick(lambda t: t.rank == 1 and not any(t.open))
    return c.add("ReduceSum", c.add("Compress", x, c.add("Greater", x, c.const(np.float64(-0.3))), axis=0), keepdims=1)


@step
def reverse_sequence(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 1 and not t.open[1] and not t.open[0])
    lengths = c.const(c.rng.integers(1, x.shape[1] + 1, x.shape[0]))
    return c.add("ReverseSequence", x, lengths, batch_axis=0, time_axis=1)


@step
def one_hot(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0 and not t.open[-1])
    hot = c.add(
        "OneHot",
        c.add("ArgMax", x, axis=-1, keepdims=0),
        c.const(np.array(x.shape[-1])),
        param(c, 2, computed=c.chance(0.05)),
        axis=-1,
    )
    return c.add("Mul", hot, partner(c, x))
