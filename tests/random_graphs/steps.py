"""The registry of steps, and what they share: operands that broadcast, parameters computed from an input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from random_graphs.canvas import Canvas, Tensor, Unfit

Step = Callable[[Canvas], object]
STEPS: dict[str, Step] = {}


def step(function: Step) -> Step:
    """Register a step: it adds nodes to the canvas, or raises Unfit."""
    STEPS[function.__name__] = function
    return function


def each(prefix: str, table: dict[str, Step]) -> None:
    """Register one step for every entry."""
    STEPS.update({f"{prefix}_{name}": function for name, function in table.items()})


def since(canvas: Canvas, opset: int) -> None:
    """The step needs this opset."""
    if canvas.opset < opset:
        raise Unfit(f"opset {opset}")


def single(canvas: Canvas) -> None:
    """onnxruntime has the op for float32 only."""
    if canvas.double:
        raise Unfit("float32 only")


def closed(tensor: Tensor) -> tuple[int, ...]:
    """Lengths where none is open."""
    if any(tensor.open):
        raise Unfit("an open length")
    return tensor.shape


def param(
    canvas: Canvas, *shape: int, scale: float = 1.0, positive: bool = False, computed: bool | None = None
) -> Tensor:
    """Weights of a layer: a constant, or computed from an input in one of several ways.

    computed: None leaves it to chance. positive: from about 0.5 to 1.5.
    """
    base = canvas.const(
        canvas.normal(*shape, scale=scale) if not positive else np.abs(canvas.normal(*shape)) * 0.3 + 0.7
    )
    if computed is False or (computed is None and not canvas.chance(canvas.computed)):
        return base
    total = int(np.prod(shape, dtype=int))
    x = canvas.pick()
    if x.size() > 4:
        x = canvas.add("Tanh", x)
    long = canvas.floats(lambda t: min(v.size for v in t.values) >= total and t.size() < 5)
    if long and canvas.chance(0.6):
        flat = canvas.add("Reshape", canvas.choice(long), canvas.const(np.array([-1])))
        piece = canvas.add("Slice", flat, canvas.const(np.array([0])), canvas.const(np.array([total])))
        shaped = canvas.add("Reshape", piece, canvas.const(np.array(shape, np.int64)))
        small = canvas.add("Mul", shaped, canvas.const(np.float64(0.25 * scale)))
        return canvas.add("Add", base, small)
    mean = canvas.add("ReduceMean", x, keepdims=0)
    if canvas.chance(0.5):
        return canvas.add("Add", base, canvas.add("Mul", mean, canvas.const(canvas.normal(*shape, scale=0.3 * scale))))
    return canvas.add("Mul", base, canvas.add("Add", mean, canvas.const(np.float64(1.5))))


def stretched(canvas: Canvas, x: Tensor) -> tuple[int, ...]:
    """A shape that broadcasts to that of x: some axes 1, some missing in front; open ones 1."""
    shape = [1 if is_open or canvas.chance(0.3) else d for d, is_open in zip(x.shape, x.open, strict=True)]
    return tuple(shape[canvas.int(0, len(shape)) :])


def together(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors broadcast, for every number of rows."""
    try:
        shapes = [np.broadcast_shapes(v.shape, w.shape) for v, w in zip(a.values, b.values, strict=True)]
    except ValueError:
        return False
    return all(int(np.prod(s, dtype=int)) <= 400 for s in shapes)


def partner(canvas: Canvas, x: Tensor) -> Tensor:
    """A second operand for x: another tensor, a constant, or a computed parameter, stretched either way."""
    others = canvas.floats(lambda t: together(t, x))
    if others and canvas.chance(0.65):
        return canvas.choice(others)
    return param(canvas, *stretched(canvas, x))


def mild(canvas: Canvas, x: Tensor, limit: float) -> Tensor:
    """x, scaled down where it is larger than limit."""
    return x if x.size() <= limit else canvas.add("Mul", x, canvas.const(np.float64(0.9 * limit / x.size())))


def above(canvas: Canvas, x: Tensor, floor: float = 0.3) -> Tensor:
    """Something computed from x that is larger than floor."""
    if x.low() > floor:
        return x
    way = canvas.int(0, 2)
    if way == 0:
        return canvas.add("Add", canvas.add("Mul", x, x), canvas.const(np.float64(floor + 0.2)))
    if way == 1:
        return canvas.add("Add", canvas.add("Abs", x), canvas.const(np.float64(floor + 0.2)))
    return canvas.add("Add", canvas.add("Sigmoid", x), canvas.const(np.float64(floor)))


def inside(canvas: Canvas, x: Tensor) -> Tensor:
    """Something computed from x that lies in (-0.9, 0.9)."""
    return x if x.size() < 0.9 else canvas.add("Mul", canvas.add("Tanh", x), canvas.const(np.float64(0.85)))


def axis_of(canvas: Canvas, x: Tensor) -> int:
    """An axis of x, counted from either end."""
    if not x.rank:
        raise Unfit("no axis")
    axis = canvas.int(0, x.rank - 1)
    return axis - x.rank if canvas.chance(0.5) else axis
