"""Steps of one, two or three operands, element by element."""

from __future__ import annotations

import numpy as np

from random_graphs.canvas import Canvas, Tensor, Unfit
from random_graphs.steps import above, each, inside, mild, param, partner, since, single, step, stretched

PLAIN = {
    "Sigmoid": 0, "Tanh": 0, "Relu": 0, "Softplus": 0, "Softsign": 0, "Neg": 0, "Abs": 0, "Sin": 0, "Cos": 0, "Atan": 0,
    "Identity": 0, "Erf": 0, "Elu": 0, "Selu": 0, "LeakyRelu": 0, "HardSigmoid": 0, "ThresholdedRelu": 0, "Dropout": 0,
    "HardSwish": 14, "Mish": 18, "Gelu": 20, "Celu": 0, "Shrink": 0, "Asinh": 0,
}  # fmt: skip
SINGLE = (
    "Erf",
    "Selu",
    "HardSigmoid",
    "ThresholdedRelu",
    "HardSwish",
    "Mish",
    "Gelu",
    "Celu",
    "Shrink",
    "Elu",
    "Softplus",
    "Softsign",
    "LeakyRelu",
    "Asinh",
    "Sinh",
    "Cosh",
    "Acosh",
    "Atanh",
    "Tan",
    "Acos",
    "Asin",
    "Atan",
)
FLAT = ("Floor", "Ceil", "Round", "Sign")


def _attributes(c: Canvas, op_type: str) -> dict[str, float | str]:
    some = float(np.float32(c.rng.uniform(0.2, 1.3)))
    if op_type in ("Elu", "Celu", "LeakyRelu", "ThresholdedRelu") and c.chance(0.6):
        return {"alpha": some}
    if op_type in ("Selu", "HardSigmoid") and c.chance(0.5):
        return {"alpha": some, "gamma" if op_type == "Selu" else "beta": 1.1 if op_type == "Selu" else 0.4}
    if op_type == "Shrink":
        return {"lambd": 0.5, "bias": float(c.choice([0.0, 0.25]))}
    return {"approximate": "tanh"} if op_type == "Gelu" and c.chance(0.5) else {}


def _plain(op_type: str, opset: int):
    def made(c: Canvas) -> Tensor:
        since(c, opset)
        if op_type in SINGLE:
            single(c)
        return c.add(op_type, c.pick(), **_attributes(c, op_type))

    return made


def _prepared(op_type: str, prepare, narrow: bool = False):
    def made(c: Canvas) -> Tensor:
        if op_type in SINGLE:
            single(c)
        return c.add(op_type, prepare(c, c.pick()))

    return made


def _flat(op_type: str):
    def made(c: Canvas) -> Tensor:
        x = c.pick()
        stairs = c.add(op_type, c.add("Mul", x, c.const(np.float64(1.7))))
        return c.add("Add", stairs, partner(c, x))

    return made


each("unary", {name: _plain(name, opset) for name, opset in PLAIN.items()})
each("above", {name: _prepared(name, above) for name in ("Log", "Sqrt", "Reciprocal")})
each("inside", {name: _prepared(name, inside) for name in ("Asin", "Acos", "Atanh", "Tan")})
each("mild", {name: _prepared(name, lambda c, x: mild(c, x, 2.5)) for name in ("Exp", "Sinh", "Cosh")})
each("over one", {"Acosh": _prepared("Acosh", lambda c, x: above(c, x, 1.2))})
each("flat", {name: _flat(name) for name in FLAT})


def _binary(op_type: str):
    def made(c: Canvas) -> Tensor:
        x = c.pick()
        pair = [x, partner(c, x)]
        if c.chance(0.5):
            pair.reverse()
        return c.add(op_type, *pair)

    return made


each("binary", {name: _binary(name) for name in ("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum")})
STEP_ADD_AGAIN = _binary("Add")
each("more", {"Mul": _binary("Mul"), "Add": STEP_ADD_AGAIN})


@step
def several(c: Canvas) -> Tensor:
    x = c.pick()
    return c.add(c.choice(["Sum", "Mean", "Max", "Min"]), x, partner(c, x), partner(c, x))


@step
def one(c: Canvas) -> Tensor:
    return c.add(c.choice(["Sum", "Mean", "Max", "Min"]), c.pick())


@step
def div(c: Canvas) -> Tensor:
    x = c.pick()
    return c.add("Div", x, above(c, partner(c, x)))


@step
def power(c: Canvas) -> Tensor:
    x = c.pick()
    if c.chance(0.4):
        return c.add("Pow", mild(c, x, 3.0), c.const(np.float64(c.choice([2.0, 3.0]))))
    exponent = c.const(np.float64(c.choice([-1.0, 0.5, 1.5, 2.5]))) if c.chance(0.5) else inside(c, partner(c, x))
    return c.add("Pow", above(c, mild(c, x, 3.0)), exponent)


@step
def modulo(c: Canvas) -> Tensor:
    x = c.pick()
    return c.add("Mod", x, c.const(np.float64(1.75)) if c.chance(0.6) else above(c, partner(c, x), 0.8), fmod=1)


@step
def prelu(c: Canvas) -> Tensor:
    single(c)
    x = c.pick()
    return c.add("PRelu", x, param(c, *stretched(c, x)))


@step
def clip(c: Canvas) -> Tensor:
    bounds = [param(c, scale=0.2), param(c, scale=0.2)]
    low = c.add("Sub", bounds[0], c.const(np.float64(0.8))) if c.chance(0.7) else None
    high = c.add("Add", bounds[1], c.const(np.float64(0.6))) if c.chance(0.7) else None
    return c.add("Clip", c.pick(), low, high)


def compare(c: Canvas, x: Tensor) -> Tensor:
    """A mask read from x, now and then a combination of two."""
    other = partner(c, x) if c.chance(0.3) else c.const(np.float64(c.normal()))
    mask = c.add(c.choice(["Greater", "Less", "GreaterOrEqual", "LessOrEqual"]), x, other)
    if c.chance(0.2):
        mask = c.add("Not", mask)
    if c.chance(0.2):
        mask = c.add(c.choice(["And", "Or", "Xor"]), mask, c.add("Less", x, c.const(np.float64(0.4))))
    return mask


@step
def where(c: Canvas) -> Tensor:
    x = c.pick()
    mask = compare(c, x) if c.chance(0.7) else c.const(c.rng.random(stretched(c, x)) > 0.5)
    pair = [x, partner(c, x)] if c.chance(0.8) else [x, c.const(np.float64(c.normal()))]
    if c.chance(0.5):
        pair.reverse()
    return c.add("Where", mask, *pair)


@step
def masked(c: Canvas) -> Tensor:
    """x * (x > 0) and the like."""
    x = c.pick()
    mask = c.add("Cast", compare(c, x), to=c.elem)
    return c.add("Mul", *((x, mask) if c.chance(0.5) else (mask, partner(c, x))))


@step
def not_equal(c: Canvas) -> Tensor:
    x = c.pick()
    whole = c.add("Cast", x, to=7)
    same = c.add("Cast", c.add("Equal", whole, c.const(np.array(c.int(-1, 1)))), to=c.elem)
    return c.add("Mul", x, same)


@step
def through_float16(c: Canvas) -> Tensor:
    return c.add("Cast", c.add("Cast", c.pick(), to=10, aside=True), to=c.elem)


@step
def through_double(c: Canvas) -> Tensor:
    wider = c.add("Cast", c.pick(), to=11, aside=True)
    if c.chance(0.5):
        wider = c.add("Tanh", wider, aside=True)
    return c.add("Cast", wider, to=c.elem)


@step
def cast_like(c: Canvas) -> Tensor:
    since(c, 15)
    return c.add("CastLike", c.pick(), c.pick())


@step
def through_whole_numbers(c: Canvas) -> Tensor:
    x = c.pick()
    whole = c.add("Cast", c.add("Mul", x, c.const(np.float64(2.0))), to=c.choice([6, 7]))
    return c.add("Add", c.add("Cast", whole, to=c.elem), x if c.chance(0.7) else partner(c, x))


@step
def scaled(c: Canvas) -> Tensor:
    """A tensor that grew large comes down again."""
    large = c.floats(lambda t: t.size() > 8)
    if not large:
        raise Unfit("nothing large")
    return mild(c, large[-1], 2.0)
