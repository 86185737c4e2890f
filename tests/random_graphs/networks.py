"""Random graphs that relevance can pass: layers with constant weights, activations, sums, masks, and a dense head."""

from __future__ import annotations

import numpy as np

from random_graphs.canvas import Canvas, Tensor, Unfit
from random_graphs.draw import Drawn, assemble
from random_graphs.steps import STEPS, param

LAYERS = ("conv", "conv", "conv_transpose", "gemm", "matmul", "matmul_from_left", "max_pool", "average_pool")
ACTIVATIONS = (
    "unary_Relu",
    "unary_Relu",
    "unary_LeakyRelu",
    "unary_Sigmoid",
    "unary_Tanh",
    "unary_Softplus",
    "unary_Elu",
    "unary_HardSwish",
    "unary_Gelu",
    "unary_Neg",
    "unary_Identity",
    "unary_Dropout",
)
SUMS = (
    "binary_Add",
    "binary_Sub",
    "binary_Sum",
    "binary_Mean",
    "several",
    "concat",
    "residual",
    "binary_Mul",
    "masked_out",
)
MOVES = (
    "reshape",
    "flatten",
    "transpose",
    "split",
    "slice_",
    "pad",
    "squeeze",
    "unsqueeze",
    "to_picture",
    "expand",
    "gather",
    "depth_and_space",
    "resize",
    "reduce_Mean",
    "reduce_Sum",
    "reduce_Max",
    "global_pool",
    "tile",
    "where",
)
OTHERS = (
    "batch_norm",
    "batch_norm",
    "layer_norm",
    "layer_norm_by_hand",
    "group_norm",
    "instance_norm",
    "attention",
    "softmax",
    "gated",
    "lrn",
    "div",
    "scaled",
    "clipped",
    "normalised_inside",
)
FAMILIES = (LAYERS, LAYERS, ACTIVATIONS, SUMS, MOVES, OTHERS)
LINEAR = (
    ("linear_layer",),
    ("linear_layer",),
    ("unary_Relu", "unary_LeakyRelu", "unary_Neg", "max_pool", "average_pool"),
    ("residual", "concat"),
    ("reshape", "flatten", "transpose", "halves", "slice_", "to_picture", "depth_and_space", "reduce_Sum"),
)
SHAPES = ((None, 2, 4, 4), (None, 3, 5, 4), (None, 4, 4, 4), (None, 6), (None, 3, 4), (None, 2, 6))


def residual(c: Canvas) -> Tensor:
    x = c.pick()
    shapes = [v.shape for v in x.values]
    return c.add(
        c.choice(["Add", "Add", "Sub", "Sum"]), x, c.choice(c.floats(lambda t: [v.shape for v in t.values] == shapes))
    )


def masked_out(c: Canvas) -> Tensor:
    """x where a mask lets it through: the mask is a constant, or read from x."""
    x = c.pick()
    mask = c.const(c.rng.random(x.shape[-1:] if x.rank and not x.open[-1] else ()) > 0.4)
    if c.chance(0.4):
        mask = c.add("Greater", x, c.const(np.float64(0.1)))
    return c.add("Where", mask, x, c.const(np.float64(0.0)))


def clipped(c: Canvas) -> Tensor:
    return c.add("Clip", c.pick(), c.const(np.float64(0.0)), c.const(np.float64(1.5)) if c.chance(0.6) else None)


def normalised_inside(c: Canvas) -> Tensor:
    """(x - mean) / deviation by constants, as exporters put it in front."""
    x = c.pick(lambda t: t.rank > 1 and not t.open[1])
    shape = [x.shape[1]] + [1] * (x.rank - 2)
    return c.add("Div", c.add("Sub", x, param(c, *shape)), param(c, *shape, positive=True))


def linear_layer(c: Canvas) -> Tensor:
    """Without a bias."""
    x = c.pick(lambda t: t.rank > 1)
    if x.rank == 4 and not any(x.open[1:]) and c.chance(0.6):
        return c.add("Conv", x, param(c, c.int(1, 3), x.shape[1], 2, 2, scale=0.5), pads=[1, 0, 0, 1])
    if x.open[-1]:
        raise Unfit("open")
    w = param(c, x.shape[-1], c.int(2, 4), scale=0.6)
    return c.add("Gemm" if x.rank == 2 and c.chance(0.5) else "MatMul", x, w)


def halves(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 1 and not t.open[-1] and t.shape[-1] % 2 == 0)
    return c.add("Split", x, c.const(np.array([x.shape[-1] // 2] * 2)), outputs=2, axis=-1)[c.int(0, 1)]


OWN = {f.__name__: f for f in (residual, masked_out, clipped, normalised_inside, linear_layer, halves)}


def network(seed: int, linear: bool = False) -> Drawn:
    """A random network of 4 to about 20 nodes with three scores a row. linear: piecewise linear, no bias anywhere."""
    rng = np.random.default_rng(seed)
    rows = [(1,), (2,), (2, 3), (3, 2)][int(rng.integers(4))]
    canvas = Canvas(rng, opset=18, rows=rows, computed=0.0)
    x = canvas.input(canvas.choice(SHAPES))
    families = LINEAR if linear else FAMILIES
    taken: list[str] = []
    wanted = canvas.int(3, 11)
    for _ in range(wanted * 8):
        if len(taken) >= wanted or len(canvas.nodes) >= 20:
            break
        name = canvas.choice(canvas.choice(families))
        try:
            with canvas.step():
                made = (OWN.get(name) or STEPS[name])(canvas)
                if made.size() < 1e-2 or made.size() > 30:
                    raise Unfit("size")
            taken.append(name)
        except Unfit:
            continue
    for _ in range(50):
        try:
            with canvas.step():
                y = _head(canvas, x, linear)
            break
        except Unfit:
            continue
    return Drawn(seed, assemble(canvas, [y]), {t.name: t.values[0] for t in canvas.inputs.values()}, steps=taken)


def _head(c: Canvas, x: Tensor, linear: bool) -> Tensor:
    """From one or two tensors with the rows in front to three scores."""
    rows = [v.shape[0] for v in x.values]
    parts = []
    for _ in range(c.int(1, 2)):
        t = c.pick(lambda t: t.rank > 1 and not any(t.open[1:]) and [v.shape[0] for v in t.values] == rows)
        flat = t if t.rank == 2 else c.add("Flatten", t)
        w, b = c.const(c.normal(3, flat.shape[1], scale=0.5)), None if linear else c.const(c.normal(3, scale=0.3))
        parts.append(c.add("Gemm", flat, w, b, transB=1))
    return parts[0] if len(parts) == 1 else c.add("Add", *parts)


def inner(drawn: Drawn, rng: np.random.Generator) -> str | None:
    """A float tensor inside, made by a node of one output."""
    quiet = ("Shape", "Cast", "Greater", "Less", "Not", "And", "Or", "Xor", "GreaterOrEqual", "LessOrEqual", "Equal")
    names = [n.output[0] for n in drawn.model.graph.node[:-1] if len(n.output) == 1 and n.op_type not in quiet]
    return names[int(rng.integers(len(names)))] if names else None
