"""From a random seed a model, the inputs to try it on, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from random_graphs import steps_elementwise, steps_flow, steps_layers, steps_layout, steps_reduce, steps_sizes
from random_graphs.canvas import Canvas, Tensor, Unfit, captured, initializers
from random_graphs.steps import STEPS

SHARES = {steps_elementwise: 0.25, steps_reduce: 0.18, steps_layers: 0.3, steps_layout: 0.17, steps_sizes: 0.1}
BODIES = 0.15  # of the graphs have an If, a Loop, a Scan, a sequence or an optional: mostly refused today
SHAPES = ((None, 4), (None, 6), (None, 3, 4), (None, 2, 6), (None, 2, 4, 4), (None, 3, 5, 4), (None, 4, 2, 3), (None,))
SIDE = ((), (1,), (4,), (None, 4), (None, 1), (2, 3), (None, 2, 1), (3, 4), (None, 2, 4, 4), (1, 4))


@dataclass
class Drawn:
    """A random model and what is asked. attribute: inner tensors, () for the inputs; explain: () for the default."""

    seed: int
    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    explain: tuple[str, ...] = ()
    attribute: tuple[str, ...] = ()
    steps: list[str] = field(default_factory=list)


def gradient_graph(seed: int) -> Drawn:
    """3 to about 25 nodes of any kind."""
    rng = np.random.default_rng(seed)
    rows = [(1,), (2,), (3,), (2, 3), (3, 2), (1, 2)][int(rng.integers(6))]
    canvas = Canvas(
        rng,
        opset=[13, 17, 18, 18, 20, 21][int(rng.integers(6))],
        double=bool(rng.random() < 0.12),
        rows=rows,
        computed=float(rng.choice([0.0, 0.3, 0.6])),
    )
    canvas.input(canvas.choice(SHAPES))
    for _ in range(int(rng.choice([0, 0, 1, 2]))):
        canvas.input(canvas.choice(SIDE))
    taken = grow(canvas, canvas.int(3, 14))
    outputs = finish(canvas)
    model = assemble(canvas, outputs)
    drawn = Drawn(seed, model, {t.name: t.values[0] for t in canvas.inputs.values()}, steps=taken)
    made = {name for n in model.graph.node for name in n.output}
    inner = [t.name for t in canvas.floats() if t.name in made and t not in outputs]
    if inner and canvas.chance(0.15):
        asked = [*inner, *drawn.feeds]
        drawn.attribute = tuple(
            sorted({canvas.choice(inner), canvas.choice(asked)} if canvas.chance(0.3) else {canvas.choice(inner)})
        )
    if canvas.chance(0.5):
        drawn.explain = (canvas.choice(outputs).name,)
        if canvas.chance(0.2) and inner:
            drawn.explain = tuple({drawn.explain[0]: 0, canvas.choice(inner): 0})
    _disguise(canvas, model)
    return drawn


def _disguise(canvas: Canvas, model: onnx.ModelProto) -> None:
    """Now and then nodes have no names, or all the same, and constants come from nodes."""
    way = canvas.int(0, 9)
    for node in model.graph.node:
        if way < 2:
            node.name = "" if way else "node"
    if way in (2, 3):
        kept = []
        for tensor in model.graph.initializer:
            if canvas.chance(0.5):
                kept.append(tensor)
                continue
            made = helper.make_node("Constant", [], [tensor.name], name=f"Constant_{tensor.name}", value=tensor)
            model.graph.node.insert(0, made)
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


def grow(canvas: Canvas, wanted: int) -> list[str]:
    """Take steps until `wanted` of them fitted or 22 nodes stand there."""
    taken: list[str] = []
    families = [[n for n, s in STEPS.items() if s.__module__ == family.__name__] for family in SHARES]
    bodies = [n for n, s in STEPS.items() if s.__module__ == steps_flow.__name__]
    body_at = canvas.int(1, wanted) if canvas.chance(BODIES) else 0
    for _ in range(wanted * 6):
        if len(taken) >= wanted or len(canvas.nodes) >= 22:
            break
        name = canvas.choice(families[int(canvas.rng.choice(len(families), p=list(SHARES.values())))])
        if len(taken) + 1 == body_at:
            name = canvas.choice(bodies)
        try:
            with canvas.step():
                made = STEPS[name](canvas)
                assert isinstance(made.values[0], np.ndarray), name
                if isinstance(made, Tensor) and 0 < made.size() < 1e-2:
                    raise Unfit("tiny")
                if isinstance(made, Tensor) and made.size() > 12:
                    canvas.add("Mul", made, canvas.const(np.float64(3 / made.size())))
            taken.append(name)
        except Unfit:
            continue
    return taken


def finish(canvas: Canvas) -> list[Tensor]:
    """Join loose ends, so that nearly everything matters to the first output; now and then leave a second one."""
    used = {name for node in canvas.nodes for name in (*node.input, *captured(node))}
    ends = canvas.floats(lambda t: t.name not in used)
    result = canvas.pick() if not ends else ends[-1]
    second = None
    for end in ends[:-1]:
        if second is None and canvas.chance(0.15):
            second = end
            continue
        try:
            with canvas.step():
                result = _joined(canvas, result, end)
        except Unfit:
            continue
    if result.producer in ("", "Identity"):
        result = canvas.add("Tanh", result)
    if canvas.chance(0.1) and result.rank > 0:
        result = canvas.add("Softmax", result, axis=-1)
    return [result] + ([second] if second is not None and second.producer else [])


def _joined(canvas: Canvas, x: Tensor, y: Tensor) -> Tensor:
    alike = [v.shape for v in x.values] == [v.shape for v in y.values]
    if not alike:
        rows = y.rank > 0 and x.rank > 0 and [v.shape[0] for v in x.values] == [v.shape[0] for v in y.values]
        axes = list(range(1, y.rank)) if rows else None
        if axes:
            if canvas.opset >= 18:
                y = canvas.add("ReduceMean", y, canvas.const(np.array(axes)), keepdims=0)
            else:
                y = canvas.add("ReduceMean", y, axes=axes, keepdims=0)
        elif axes is None:
            y = canvas.add("ReduceMean", y, keepdims=0)
        if rows and x.rank > 1:
            y = canvas.add("Unsqueeze", y, canvas.const(np.arange(1, x.rank)))
    return canvas.add(canvas.choice(["Add", "Sub", "Mul"]), x, y)


def needed(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs depend on."""
    names, kept = set(outputs), []
    for node in reversed(nodes):
        if names & set(node.output):
            kept.append(node)
            names |= {*node.input, *captured(node)}
    return kept[::-1]


def assemble(canvas: Canvas, outputs: list[Tensor]) -> onnx.ModelProto:
    """The model in ONNX, without what its outputs do not depend on."""
    nodes = needed(canvas.nodes, [t.name for t in outputs])
    used = {name for node in nodes for name in (*node.input, *captured(node))}
    open_rows = len(canvas.rows) > 1

    def shape(tensor: Tensor) -> list[int | str]:
        return (
            ["N" if o else d for d, o in zip(tensor.shape, tensor.open, strict=True)] if open_rows else [*tensor.shape]
        )

    graph = helper.make_graph(
        nodes,
        "drawn",
        [helper.make_tensor_value_info(t.name, canvas.elem, shape(t)) for t in canvas.inputs.values()],
        [helper.make_tensor_value_info(t.name, canvas.elem, None) for t in outputs],
        [w for w in initializers(canvas) if w.name in used],
    )
    return helper.make_model(graph, opset_imports=canvas.opsets(), ir_version=8 if canvas.opset < 19 else 10)
