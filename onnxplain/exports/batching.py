"""May rows of different requests share one run of a graph? Proven on the graph, then tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.bfloat16 import is_floating
from onnxplain.cpu_session import CpuSession, Port
from onnxplain.errors import UnsupportedModel
from onnxplain.explainer import Explainer
from onnxplain.graph import streams
from onnxplain.graph.node import Node, axes_of, dims, ints
from onnxplain.runtime.session import Array
from onnxplain.vjp import axis_rules

ROWS = 3
TOLERANCE = 1e-3  # of the largest value: other kernels round differently, a row that leaks changes much more
SHAPES = {("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0)}  # inputs that set lengths and no values
ALIKE = {  # of a tensor that is the same for every row, these make another
    *("Identity", "Cast", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Expand", "Slice", "Gather"),
    *("Add", "Sub", "Mul", "Div", "Neg"),
}
RANDOM = ("Random", "Bernoulli", "Multinomial")


def obstacle(explainer: Explainer, ports: Sequence[Port], axes: Mapping[str, int] | None) -> str:
    """Why the rows of a graph must stay in the requests they came in; "" where they need not.

    ports: inputs and outputs of the graph. axes: the proven row axis of each, `row_axes` of Explainer or Subject.
    """
    if axes is None:
        return "the batch axis is a fixed number, or cannot be followed through the model"
    for port in ports:
        if not port.shape:
            return f"{port.name} has no batch axis"
        if axes.get(port.name) != 0:
            return f"the rows of {port.name} are not proven to lie along its axis 0"
        if isinstance(port.shape[0], int):
            return f"axis 0 of {port.name} is {port.shape[0]}, not open"
    reason = counted(explainer.subject.normalised.model.graph)
    return f"{reason} depends on how many rows there are" if reason else ""


def counted(graph: ir.Graph) -> str:
    """A node that mixes data of rows with what was computed from their number, or with chance; "" where there is none.

    The row axis alone does not show this: x / N keeps its rows apart and still answers differently in company.
    """
    opset = graph.opset_imports.get("", 18)
    nodes = [Node.of(node, opset) for node in graph]
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    axes = streams.track(nodes, inputs, axis_rules())
    counts: set[ir.Value] = set()  # tensors whose numbers follow from the number of rows
    stretched: set[ir.Value] = set()  # tensors made as long as there are rows, the same for each
    lengths: dict[ir.Value, int] = {}  # shapes of tensors with rows -> the entry that is the number of rows
    for node in nodes:
        taken = [(i, value) for i, value in enumerate(node.inputs) if value is not None]
        if node.op_type.startswith(RANDOM):
            counts.update(node.outputs)
        elif node.op_type in ("Shape", "Size") and axes.get(node.x, streams.CONSTANT) >= 0:
            counts.update(node.outputs)
            if node.op_type == "Shape" and not node.attributes:
                lengths[node.y] = axes[node.x]
        elif any(axes.get(value, streams.CONSTANT) >= 0 for value in node.outputs):
            if any(value in counts and (node.op_type, i) not in SHAPES for i, value in taken):
                return str(node)
        elif any(value in counts and (node.op_type, i) not in SHAPES for i, value in taken):
            if not _picks_another(node, lengths):
                counts.update(node.outputs)
        elif any(value in counts for _, value in taken):
            stretched.update(node.outputs)
        elif any(value in stretched for _, value in taken):
            (stretched if node.op_type in ALIKE else counts).update(node.outputs)
    return ""


def _picks_another(node: Node, lengths: Mapping[ir.Value, int]) -> bool:
    """Whether a node takes entries of a shape among which the number of rows is not."""
    if node.op_type not in ("Gather", "Slice") or node.x not in lengths:
        return False
    (of,) = dims(node.x)
    picked = ints(node.input(1))  # indices of a Gather, start of a Slice
    if picked is None or not isinstance(of, int) or (node.input(4) is not None and ints(node.input(4)) != [1]):
        return False
    return all(index > lengths[node.x] for index in axes_of(picked, of))


def leak(explainer: Explainer, graph: CpuSession, seeded: bool) -> str:
    """How a run of three rows differs from three runs of one; "" where it does not. seeded: the graph takes seeds."""
    reference = explainer.subject.normalised.reference
    feeds = {name: np.asarray(x)[[0, -1, 0]] for name, x in reference.feeds.items()}
    if seeded:
        feeds |= {
            name: _seeds(name, reference.outputs.get(source, reference.feeds.get(source)))
            for name, source in explainer.compiled.seeds.items()
        } | {entry: feeds[source][::-1] for entry, source in explainer.compiled.references.items()}
    try:
        together = graph.run(feeds)
        alone = [graph.run({name: x[i : i + 1] for name, x in feeds.items()}) for i in range(ROWS)]
    except UnsupportedModel as error:
        return str(error)
    for name, found in together.items():
        parts = np.concatenate([one[name] for one in alone])
        if parts.shape != found.shape:
            return f"{name} has the shape {list(found.shape)} for {ROWS} rows"
        if not _close(parts, found):
            return f"{name} of {ROWS} rows together differs from the same rows alone"
    return ""


def _seeds(name: str, y: Array) -> Array:
    rng = np.random.default_rng(0)
    if name.endswith(".target"):
        index = [rng.integers(0, length, ROWS) for length in y.shape[1:]]
        return index[0] if len(index) == 1 else np.stack(index, 1)
    return rng.standard_normal((ROWS, *y.shape[1:])).astype(np.float64 if y.dtype == np.float64 else np.float32)


def _close(expected: Array, actual: Array) -> bool:
    if not is_floating(expected):
        return bool(np.array_equal(expected, actual))
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        return False
    scale = float(np.abs(expected[finite]).max(initial=0.0))
    return bool(np.abs(expected[finite] - actual[finite]).max(initial=0.0) <= TOLERANCE * scale)
