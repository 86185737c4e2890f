"""The canonical form: one opset, no functions, no constant arithmetic, BatchNormalization folded, every shape named.

Whatever is rewritten is verified: the file and the result answer the same random input, or the rewrite is named and
the model refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxplain.errors import ConversionChanged, UnknownName, UnsupportedModel
from onnxplain.graph.affine import fold_affine
from onnxplain.graph.convert import raise_opset
from onnxplain.graph.fold import fold_constants, inline_functions, tidy
from onnxplain.graph.gemm import fuse_bias
from onnxplain.graph.load import Source
from onnxplain.graph.plumbing import settle
from onnxplain.graph.shapes import infer_shapes, refine
from onnxplain.graph.verify import Reference, before_squashing, difference, expose, reference


@dataclass
class Normalised:
    """A model ready to be walked.

    model: valid, topologically sorted, opset 18 or later, tensors under the source's names. changes: what was
    rewritten, a line each. notes: what could not be done and why. timings: seconds per step. source: where it came
    from; reference: what the source answered on the random input of the verification.
    """

    model: ir.Model
    source: Source
    reference: Reference = field(default_factory=lambda: Reference({}, {}))
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time spent inside to a step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[step] = self.timings.get(step, 0.0) + time.perf_counter() - start


Step = Callable[[Normalised, Sequence[str]], None]


def normalise(source: Source, keep: Sequence[str] = ()) -> Normalised:
    """Bring a model into canonical form; the source stays as it is.

    keep: tensors that must survive under their names. What is before a final Softmax or Sigmoid always does.
    """
    keep = _known(source, keep)
    result = Normalised(source.model.clone(), source)
    with result.timed("run the source"):
        watched = [*keep, *before_squashing(source.model).values()]
        expected = result.reference = reference(source, watched)
    exposed = _prepare(result, watched, expected)
    for name, step in STEPS.items():
        with result.timed(name):
            step(result, keep)
    unknown = [v.name for n in result.model.graph for v in n.outputs if v.shape is None and v.name]
    with result.timed("verify"):
        problem, learned = difference(result.model, expected, unknown)
    if problem is not None:
        raise _blame(source, keep, watched, expected, problem)
    if learned:
        refine(result.model, {name: array.shape for name, array in learned.items() if hasattr(array, "shape")})
    _finish(result.model, exposed)
    return result


def _inline(result: Normalised, keep: Sequence[str]) -> None:
    if result.model.functions:
        names = ", ".join(sorted({name for _, name, _ in result.model.functions}))
        inline_functions(result.model)
        result.changes.append(f"inlined functions: {names}")


def _raise(result: Normalised, keep: Sequence[str]) -> None:
    opset = result.model.opset_imports.get("")
    result.model = raise_opset(result.model)
    if opset is not None and opset != result.model.opset_imports[""]:
        result.changes.append(f"raised from opset {opset} to {result.model.opset_imports['']}")


def _fold(result: Normalised, keep: Sequence[str]) -> None:
    before = sum(node.op_type != "Constant" for node in result.model.graph)
    fold_constants(result.model)
    after = len(result.model.graph)
    while any(node.op_type == "Shape" for node in result.model.graph):  # a shape that is known now folds some more
        infer_shapes(result.model)
        if not settle(result.model):
            break
        fold_constants(result.model)
        after = len(result.model.graph)
    if before != after:
        result.changes.append(f"folded constants: {before} nodes became {after}")


def _affine(result: Normalised, keep: Sequence[str]) -> None:
    result.changes += fold_affine(result.model, keep, result.notes)


def _gemm(result: Normalised, keep: Sequence[str]) -> None:
    result.changes += fuse_bias(result.model, keep, result.notes)


def _tidy(result: Normalised, keep: Sequence[str]) -> None:
    tidy(result.model)


def _shapes(result: Normalised, keep: Sequence[str]) -> None:
    infer_shapes(result.model)


STEPS: dict[str, Step] = {
    "inline functions": _inline,
    "raise the opset": _raise,
    "infer shapes": _shapes,
    "fold constants": _fold,
    "fold affine chains": _affine,
    "join bias": _gemm,
    "tidy": _tidy,
    "infer final shapes": _shapes,
}


def _known(source: Source, keep: Sequence[str]) -> list[str]:
    """The names to keep, checked: they exist in the main graph."""
    graph = source.model.graph
    names = [v.name for v in graph.inputs] + list(graph.initializers) + [v.name for n in graph for v in n.outputs]
    known = {name for name in names if name}
    side = {
        v.name: node for node in graph for v in node.outputs[1:] if node.op_type in ("Dropout", "BatchNormalization")
    }
    for name in keep:
        if name in side:
            near = side[name].outputs[0].name
            raise UnsupportedModel(
                f"the tensor {name!r} is a by-product of training ({side[name].op_type}) and cannot be kept; "
                f"the nearest that can is {near!r}"
            )
        if name in known:
            continue
        inner = next((n for n in graph for body in _bodies(n) for m in body.all_nodes() if name in _made(m)), None)
        if inner is None:
            raise UnknownName("tensor", name, sorted(known))
        near = inner.outputs[0].name
        raise UnsupportedModel(
            f"the tensor {name!r} lies inside {inner.name or near} ({inner.op_type}) and cannot be kept; "
            f"the nearest that can is {near!r}"
        )
    return list(dict.fromkeys(keep))


def _bodies(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def _made(node: ir.Node) -> list[str | None]:
    return [value.name for value in node.outputs]


def _prepare(result: Normalised, keep: Sequence[str], expected: Reference) -> list[str]:
    """Kept tensors become outputs, which every rewrite respects; their types come from the run."""
    exposed = expose(result.model, keep)
    for value in result.model.graph.outputs:
        found = expected.outputs.get(value.name or "")
        if value.type is None and isinstance(found, np.ndarray):
            value.type = ir.TensorType(ir.DataType.from_numpy(found.dtype))
            value.shape = ir.Shape([None] * len(found.shape))
    return exposed


def _finish(model: ir.Model, exposed: Sequence[str]) -> None:
    """Kept tensors are inner tensors again; what they alone needed goes with them."""
    kept = [value for value in model.graph.outputs if value.name not in exposed]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)


def _blame(
    source: Source, keep: Sequence[str], watched: Sequence[str], expected: Reference, problem: str
) -> ConversionChanged:
    """Take the steps one by one to name the one that changed the answer."""
    again = Normalised(source.model.clone(), source)
    _prepare(again, watched, expected)
    for name, step in STEPS.items():
        step(again, keep)
        found, _ = difference(again.model, expected)
        if found is not None:
            return ConversionChanged(f"normalisation changed the model at the step {name!r}: {found}")
    return ConversionChanged(f"normalisation changed the model: {problem}")
