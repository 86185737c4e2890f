"""Steps with weights: convolutions, products of matrices, pooling, recurrent layers."""

from __future__ import annotations

import numpy as np

from random_graphs.canvas import Canvas, Tensor, Unfit
from random_graphs.steps import axis_of, param, since, single, step


def image(c: Canvas, spatial: tuple[int, ...] = (1, 2, 3)) -> Tensor:
    """A tensor (N, C, *spatial) with few channels."""
    return c.pick(lambda t: t.rank - 2 in spatial and not any(t.open[1:]) and t.shape[1] <= 6)


def _window(c: Canvas, x: Tensor, dilated: bool = True) -> dict:
    n = x.rank - 2
    kernel = [c.int(1, min(3, d)) for d in x.shape[2:]]
    given: dict = {"kernel_shape": kernel}
    if c.chance(0.4):
        given["strides"] = [c.int(1, 2) for _ in range(n)]
    if dilated and c.chance(0.25):
        given["dilations"] = [c.int(1, 2) for _ in range(n)]
    way = c.int(0, 4)
    if way in (1, 2):
        given["pads"] = [c.int(0, max(0, k - 1)) for k in kernel * 2]
    elif way == 3 and "dilations" not in given:
        given["auto_pad"] = c.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
    return given


@step
def conv(c: Canvas) -> Tensor:
    single(c)
    x = image(c)
    given = _window(c, x)
    channels = x.shape[1]
    group = c.choice([g for g in (1, 1, channels, 2) if channels % g == 0])
    out = group * c.int(1, 2 if group > 1 else 3)
    w = param(c, out, channels // group, *given["kernel_shape"], scale=0.5)
    b = param(c, out) if c.chance(0.6) else None
    return c.add("Conv", x, w, b, **given, group=group if group > 1 else None)


@step
def conv_transpose(c: Canvas) -> Tensor:
    single(c)
    x = image(c)
    n, channels = x.rank - 2, x.shape[1]
    group = c.choice([g for g in (1, 1, channels) if channels % g == 0])
    kernel = [c.int(1, 3) for _ in range(n)]
    strides = [c.int(1, 2) for _ in range(n)]
    given: dict = {"kernel_shape": kernel, "strides": strides}
    if c.chance(0.3):
        given["pads"] = [c.int(0, (k - 1) // 2) for k in kernel] * 2
    if c.chance(0.2):
        given["output_padding"] = [s - 1 for s in strides]
    if c.chance(0.2):
        given["dilations"] = [2] * n
    w = param(c, channels, c.int(1, 2), *kernel, scale=0.5)
    b = param(c, w.shape[1] * group) if c.chance(0.6) else None
    return c.add("ConvTranspose", x, w, b, **given, group=group if group > 1 else None)


@step
def gemm(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank == 2)
    turned = c.chance(0.25)
    inner, rows_open = x.shape[0 if turned else 1], x.open[1 if turned else 0]
    if x.open[0 if turned else 1]:
        raise Unfit("open")
    out, flip = c.int(1, 5), c.int(0, 1)
    w = param(c, *((out, inner) if flip else (inner, out)), scale=0.6)
    rows = x.shape[1 if turned else 0]
    shapes = [(out,), (1, out), (), (1,)] + ([] if rows_open else [(rows, 1), (rows, out)])
    b = param(c, *c.choice(shapes)) if c.chance(0.7) else None
    given = {"transA": int(turned), "transB": flip}
    if c.chance(0.4):
        given |= {"alpha": c.choice([0.5, -1.5]), "beta": c.choice([2.0, -0.5, 0.0])}
    return c.add("Gemm", x, w, b, **given)


@step
def gemm_of_two(c: Canvas) -> Tensor:
    a = c.pick(lambda t: t.rank == 2)
    b = c.pick(lambda t: t.rank == 2)
    return c.add("Gemm", a, b, transA=c.int(0, 1), transB=c.int(0, 1), alpha=c.choice([None, 0.7]))


@step
def matmul(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0 and not t.open[-1])
    last = x.shape[-1]
    lead = c.choice([(), (), (1,), (2,)]) if x.rank != 2 else ()
    shape = (last,) if c.chance(0.15) else (*lead, last, c.int(1, 4))
    y = c.add("MatMul", x, param(c, *shape, scale=0.6))
    return c.add("Add", y, param(c, y.shape[-1])) if y.rank and not y.open[-1] and c.chance(0.5) else y


@step
def matmul_from_left(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 1 and not t.open[-2])
    return c.add("MatMul", param(c, c.int(1, 4), x.shape[-2], scale=0.6), x)


@step
def matmul_of_two(c: Canvas) -> Tensor:
    a, b = c.pick(lambda t: t.rank > 0), c.pick(lambda t: t.rank > 0)
    if b.rank > 1 and a.shape[-1] != b.shape[-2] and a.shape[-1] == b.shape[-1]:
        b = c.add("Transpose", b, perm=[*range(b.rank - 2), b.rank - 1, b.rank - 2])
    return c.add("MatMul", a, b)


@step
def fused_matmul(c: Canvas) -> Tensor:
    """onnxruntime's own op: no inference knows its type, no derivative its gradient."""
    if not c.chance(0.3):
        raise Unfit("rare")
    single(c)
    x = c.pick(lambda t: t.rank == 2 and not t.open[-1])
    y = c.add("FusedMatMul", x, param(c, x.shape[-1], 3, scale=0.5), domain="com.microsoft", alpha=0.5)
    return c.add("Add", y, c.add("MatMul", x, c.const(c.normal(x.shape[-1], 3, scale=0.5))))


@step
def einsum(c: Canvas) -> Tensor:
    if not c.chance(0.3):
        raise Unfit("rare")
    x = c.pick(lambda t: t.rank == 2 and not t.open[-1])
    return c.add("Einsum", x, param(c, x.shape[-1], 3, scale=0.5), equation="ij,jk->ik")


@step
def max_pool(c: Canvas) -> Tensor:
    x = image(c)
    given = _window(c, x)
    if "auto_pad" not in given:
        given["ceil_mode"] = c.choice([None, 0, 1])
    given["storage_order"] = c.choice([None, None, 1]) if x.rank == 4 else None
    return c.add("MaxPool", x, **given)


@step
def average_pool(c: Canvas) -> Tensor:
    single(c)
    x = image(c)
    given = _window(c, x, dilated=c.opset >= 19)
    if "auto_pad" not in given:
        given["ceil_mode"] = c.choice([None, None, 0, 1])
    return c.add("AveragePool", x, **given, count_include_pad=c.choice([None, 1]))


@step
def lp_pool(c: Canvas) -> Tensor:
    single(c)
    x = image(c, (2,))
    return c.add("LpPool", x, **_window(c, x, dilated=False), p=c.choice([1, 2]))


@step
def global_pool(c: Canvas) -> Tensor:
    single(c)
    x = c.pick(lambda t: t.rank > 2)
    op_type = c.choice(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
    return c.add(op_type, x, p=2 if op_type == "GlobalLpPool" else None)


@step
def recurrent(c: Canvas) -> Tensor:
    """LSTM, GRU or RNN with any of W, R, B, states and peepholes computed, over (time, rows, features)."""
    single(c)
    x = c.pick(lambda t: t.rank == 3 and not t.open[-1] and t.shape[-1] <= 5)
    if x.open[0]:
        x = c.add("Transpose", x, perm=[1, 0, 2])
    op_type = c.choice(["LSTM", "GRU", "RNN"])
    gates, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type], c.int(1, 3)
    direction = c.choice(["forward", "reverse", "bidirectional"])
    d = 2 if direction == "bidirectional" else 1
    w, r = (param(c, d, gates * hidden, n, scale=0.5) for n in (x.shape[-1], hidden))
    b = param(c, d, 2 * gates * hidden, scale=0.5) if c.chance(0.7) else None
    rows = x.shape[1]
    states: list[Tensor | None] = [None, None]
    if not x.open[1] and c.chance(0.5):
        states = [param(c, d, rows, hidden), param(c, d, rows, hidden) if op_type == "LSTM" else None]
    elif c.chance(0.4):  # a state made of the data, rows and all
        first = c.add("MatMul", c.add("ReduceMax", x, keepdims=1, **_axes_attribute(c, 0)), c.const(c.normal(x.shape[-1], hidden)))  # fmt: skip  # noqa: E501
        states[0] = c.add("Concat", first, first, axis=0) if d == 2 else first
    more = {"linear_before_reset": c.int(0, 1)} if op_type == "GRU" else {}
    tail: list[Tensor | None] = [b, None, states[0]]
    if op_type == "LSTM":
        peepholes = param(c, d, 3 * hidden, scale=0.5) if c.chance(0.3) else None
        tail += [states[1], peepholes]
        more = {"input_forget": 1} if c.chance(0.15) else {}
    found = c.add(op_type, x, w, r, *_trimmed(tail), hidden_size=hidden, outputs=2, direction=direction, **more)
    if x.open[1] and c.chance(0.5):  # rows back in front, as an exporter does
        return c.add(
            "Transpose", c.add("Squeeze", found[0], c.const(np.array([1]))) if d == 1 else found[1], perm=[1, 0, 2]
        )
    return found[int(c.chance(0.4))]


def _axes_attribute(c: Canvas, axis: int) -> dict:
    if c.opset >= 18:
        raise Unfit("axes are an input")
    return {"axes": [axis]}


def _trimmed(tail: list[Tensor | None]) -> list[Tensor | None]:
    while tail and tail[-1] is None:
        tail = tail[:-1]
    return tail


@step
def resize(c: Canvas) -> Tensor:
    single(c)
    x = image(c, (1, 2))
    n = x.rank - 2
    modes = ["nearest", "linear"] + (["cubic"] if n == 2 else [])
    mode = c.choice(modes)
    given: dict = {"mode": mode, "coordinate_transformation_mode": c.choice(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])}  # fmt: skip  # noqa: E501
    if mode == "nearest":
        given["nearest_mode"] = c.choice(["floor", "round_prefer_floor", "ceil"])
    scales = c.const(np.array([1.0, 1.0, *[c.choice([0.5, 1.5, 2.0]) for _ in range(n)]], np.float64))
    if mode == "linear" and n != 2:
        raise Unfit("onnxruntime: linear for pictures")
    return c.add("Resize", x, None, scales, **given)


@step
def depth_and_space(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank == 4 and not any(t.open[1:]))
    if x.shape[1] % 4 == 0:
        return c.add("DepthToSpace", x, blocksize=2, mode=c.choice(["DCR", "CRD"]))
    if x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0:
        return c.add("SpaceToDepth", x, blocksize=2)
    raise Unfit("lengths")


@step
def weighted_mean(c: Canvas) -> Tensor:
    """A softmax over an axis as weights of a sum."""
    x = c.pick(lambda t: t.rank > 1)
    axis = axis_of(c, x)
    weighted = c.add("Mul", x, c.add("Softmax", x, axis=axis))
    since(c, 13)
    return c.add("ReduceSum", weighted, c.const(np.array([axis])), keepdims=c.int(0, 1))
