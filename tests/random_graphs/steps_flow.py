"""Steps with bodies, sequences and optionals: If, Loop and Scan that take tensors from outside."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from random_graphs.canvas import Canvas, Tensor, Unfit
from random_graphs.steps import closed, param, partner, step


def _value(c: Canvas, name: str, like: Tensor | None = None, elem: int | None = None) -> onnx.ValueInfoProto:
    """A tensor of a body; lengths that are open stay unsaid."""
    shape = None if like is None else [None if o else d for d, o in zip(like.shape, like.open, strict=True)]
    return helper.make_tensor_value_info(name, c.elem if elem is None else elem, shape)


def _skip(c: Canvas, x: Tensor, y: Tensor) -> Tensor:
    """Beside the body a path that every derivative knows."""
    if c.chance(0.3):
        return y
    return c.add(c.choice(["Add", "Mul"]), y, x if c.chance(0.5) else partner(c, x))


@step
def branch(c: Canvas) -> Tensor:
    """If, whose condition is a constant or read from x."""
    x = c.pick()
    if c.chance(0.6):
        condition = c.add("Greater", c.add("ReduceSum", x, keepdims=0), c.const(np.float64(0.1)))
    else:
        condition = c.const(np.array(c.chance(0.5)))
    w = param(c)
    bodies = {}
    for side in ("then_branch", "else_branch"):
        inner, out = c.name("t"), c.name("t")
        nodes = [
            helper.make_node(c.choice(["Mul", "Add", "Sub"]), [x.name, w.name], [inner], name=c.name("inside")),
            helper.make_node(c.choice(["Tanh", "Sigmoid", "Neg", "Relu"]), [inner], [out], name=c.name("inside")),
        ]
        bodies[side] = helper.make_graph(nodes, c.name("g"), [], [_value(c, out)])
    return _skip(c, x, c.add("If", condition, **bodies))


@step
def loop(c: Canvas) -> Tensor:
    """v = f(v w + x), a few times, from a start; what it collects is used now and then."""
    x = c.pick()
    start = c.const(np.zeros(closed(x))) if c.chance(0.4) else c.add("Tanh", x)
    w = param(c, scale=0.5)
    i, go, v, a, b, out, kept = (c.name(s) for s in ("i", "go", "v", "a", "b", "v", "kept"))
    nodes = [
        helper.make_node("Mul", [v, w.name], [a], name=c.name("inside")),
        helper.make_node("Add", [a, x.name], [b], name=c.name("inside")),
        helper.make_node(c.choice(["Tanh", "Sigmoid", "Sin"]), [b], [out], name=c.name("inside")),
        helper.make_node("Identity", [go], [kept], name=c.name("inside")),
    ]
    body = helper.make_graph(
        nodes,
        c.name("g"),
        [_value(c, i, elem=7), _value(c, go, elem=9), _value(c, v)],
        [_value(c, kept, elem=9), _value(c, out)],
    )
    for value in (*body.input[:2], body.output[0]):
        value.type.tensor_type.shape.SetInParent()
    y = c.add("Loop", c.const(np.array(c.int(1, 3))), c.const(np.array(True)), start, body=body)
    return _skip(c, x, y)


@step
def scan(c: Canvas) -> Tensor:
    """A state that runs over axis 0, the only one onnx's evaluator knows, with weights that may be computed outside."""
    x = c.pick(lambda t: t.rank > 1 and not any(t.open[1:]))
    start = c.const(np.zeros(x.shape[1:]))
    w = param(c, scale=0.5)
    s, e, a, b, out, copy = (c.name(n) for n in ("s", "e", "a", "b", "s", "copy"))
    nodes = [
        helper.make_node("Mul", [s, w.name], [a], name=c.name("inside")),
        helper.make_node("Add", [a, e], [b], name=c.name("inside")),
        helper.make_node("Tanh", [b], [out], name=c.name("inside")),
        helper.make_node("Identity", [out], [copy], name=c.name("inside")),
    ]
    body = helper.make_graph(nodes, c.name("g"), [_value(c, s), _value(c, e)], [_value(c, out), _value(c, copy)])
    last, every = c.add("Scan", start, x, outputs=2, body=body, num_scan_inputs=1)
    return last if c.chance(0.3) else _skip(c, x, every)


@step
def sequence(c: Canvas) -> Tensor:
    x = c.pick(lambda t: t.rank > 0)
    if c.chance(0.5):
        parts = c.add("SequenceConstruct", x, c.add("Tanh", x))
    else:
        parts = c.add("SplitToSequence", x, axis=0, keepdims=1)
    if c.chance(0.5):
        return _skip(c, x, c.add("SequenceAt", parts, c.const(np.array(0))))
    return c.add("ConcatFromSequence", parts, axis=x.rank - 1)


@step
def optional(c: Canvas) -> Tensor:
    if c.opset < 18 or not c.chance(0.4):
        raise Unfit("rare")
    x = c.pick()
    return _skip(c, x, c.add("OptionalGetElement", c.add("Optional", c.add("Tanh", x), aside=True)))
