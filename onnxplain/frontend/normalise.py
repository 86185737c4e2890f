"""The canonical form: one opset, no functions, no constant arithmetic, BatchNormalization folded, every shape named.

Whatever is rewritten is verified: the file and the result answer the same input. A rewrite that breaks or changes a
model is undone and named; a model that onnxruntime runs is never refused for it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxplain.cpu_session import one_line
from onnxplain.errors import UnknownName, UnsupportedModel
from onnxplain.frontend.barriers import kept_apart
from onnxplain.frontend.bisection import Lines, RewriteFilter, Step, apply_verified
from onnxplain.frontend.instrumented import run_instrumented
from onnxplain.frontend.load import Source
from onnxplain.frontend.observed_shapes import correct_shapes
from onnxplain.frontend.passes.affine import fold_affine
from onnxplain.frontend.passes.bias import fuse_bias
from onnxplain.frontend.passes.constants import fold_constants, inline_functions, tidy
from onnxplain.frontend.passes.forms import rewrite_forms
from onnxplain.frontend.passes.opset import raise_opset
from onnxplain.frontend.passes.shape_arithmetic import fold_shape_arithmetic
from onnxplain.frontend.passes.shapes import infer_shapes
from onnxplain.frontend.passes.windows import rewrite_windows
from onnxplain.frontend.verify import Reference, before_squashing, expose, reference
from onnxplain.graph.stored_graph import HoldsModel
from onnxplain.interrupt import check_interrupt


@dataclass
class Normalised(HoldsModel):
    """A model ready to be walked.

    model: valid, topologically sorted, opset 18 or later, tensors under the source's names. changes: what was
    rewritten, a line each. notes: what could not be done and why. timings: seconds per step. source: where it came
    from; reference: what the source answered on the input of the verification.
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


def normalise(
    source: Source,
    keep: Sequence[str] = (),
    sample: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Normalised:
    """Bring a model into canonical form; the source stays as it is.

    keep: tensors that must survive under their names. What is before a final Softmax or Sigmoid always does. sample:
    input to verify on, by name; shapes: sizes of random input. One run of the source and one of the result, unless a
    rewrite has to be undone. Raises ConversionChanged where a rewrite that nothing can do without is to blame.
    """
    with _no_collection():
        return _normalise(source, _known(source, keep), sample, shapes)


def _normalise(
    source: Source,
    keep: Sequence[str],
    sample: Mapping[str, np.ndarray] | None,
    shapes: Mapping[str, Sequence[int]] | None,
) -> Normalised:
    result = Normalised(source.model.clone(), source)
    with result.timed("run the source"):
        compared = [*keep, *before_squashing(source.model).values()]
        expected = result.reference = reference(source, compared, sample, shapes)
    exposed = _prepare(result.model, compared, expected)
    problem = _all_steps(result, keep)
    if problem is None:
        with result.timed("verify"):
            problem, session, seen = run_instrumented(result.model, expected)
    if problem is not None:
        with result.timed("undo"):
            untouched = source.model.clone()
            _prepare(untouched, compared, expected)
            result.model, result.changes, result.notes = apply_verified(untouched, STEPS, keep, expected)
        with result.timed("verify"):
            problem, session, seen = run_instrumented(result.model, expected)
    if problem is None and session is not None:
        correct_shapes(result.model, session, expected.feeds, seen, result.notes)
    _finish(result.model, exposed)
    return result


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's collector waits: it goes through the whole graph for every few thousand objects, a fifth of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _all_steps(result: Normalised, keep: Sequence[str]) -> str | None:
    """Every rewrite at once; what broke, if one did."""
    for name, step in STEPS.items():
        check_interrupt()
        with result.timed(name):
            try:
                result.model = step(result.model, keep, RewriteFilter(), result.changes, result.notes)
            except (
                Exception
            ) as error:  # of onnx, onnxscript or ours: `apply_verified` finds out which rewrite, and undoes it
                return one_line(error)
    return None


def _inline(model: ir.Model, keep: Sequence[str], permits: RewriteFilter, changes: Lines, notes: Lines) -> ir.Model:
    if model.functions:
        names = ", ".join(sorted({name for _, name, _ in model.functions}))
        inline_functions(model)
        changes.append(f"inlined functions: {names}")
    return model


def _raise(model: ir.Model, keep: Sequence[str], permits: RewriteFilter, changes: Lines, notes: Lines) -> ir.Model:
    opset = model.opset_imports.get("")
    model = raise_opset(model)
    if opset is not None and opset != model.opset_imports[""]:
        changes.append(f"raised from opset {opset} to {model.opset_imports['']}")
    return model


def _windows(model: ir.Model, keep: Sequence[str], permits: RewriteFilter, changes: Lines, notes: Lines) -> ir.Model:
    changes += rewrite_windows(model, permits)
    return model


def _fold(model: ir.Model, keep: Sequence[str], permits: RewriteFilter, changes: Lines, notes: Lines) -> ir.Model:
    before = sum(node.op_type != "Constant" for node in model.graph)
    with kept_apart(model, keep):
        fold_constants(model, permits)
        while any(node.op_type == "Shape" for node in model.graph):  # a shape that is known now folds some more
            infer_shapes(model)
            if not permits("shapes made numbers") or not fold_shape_arithmetic(model):
                break
            fold_constants(model, permits)
    after = len(model.graph)
    if before != after:
        changes.append(f"folded constants: {before} nodes became {after}")
    return model


def _affine(model: ir.Model, keep: Sequence[str], permits: RewriteFilter, changes: Lines, notes: Lines) -> ir.Model:
    changes += fold_affine(model, keep, notes, permits)
    return model


def _gemm(model: ir.Model, keep: Sequence[str], permits: RewriteFilter, changes: Lines, notes: Lines) -> ir.Model:
    changes += fuse_bias(model, keep, notes, permits)
    return model


def _tidy(model: ir.Model, keep: Sequence[str], permits: RewriteFilter, changes: Lines, notes: Lines) -> ir.Model:
    tidy(model)
    return model


def _shapes(model: ir.Model, keep: Sequence[str], permits: RewriteFilter, changes: Lines, notes: Lines) -> ir.Model:
    infer_shapes(model)
    return model


def _forms(model: ir.Model, keep: Sequence[str], permits: RewriteFilter, changes: Lines, notes: Lines) -> ir.Model:
    changes += rewrite_forms(model, permits)
    return model


STEPS: dict[str, Step] = {
    "inline functions": _inline,
    "raise the opset": _raise,
    "infer shapes": _shapes,
    "settle forms": _forms,
    "fold constants": _fold,
    "settle windows": _windows,
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
    bodies: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            bodies.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies.extend(attribute.as_graphs())
    return bodies


def _made(node: ir.Node) -> list[str | None]:
    return [value.name for value in node.outputs]


def _prepare(model: ir.Model, keep: Sequence[str], expected: Reference) -> list[str]:
    """Kept tensors become outputs, which every rewrite respects; their types come from the run, and unknown ranks."""
    exposed = expose(model, keep)
    for value in model.graph.inputs:
        if value.shape is None and (name := str(value.name)) in expected.feeds:
            value.shape = ir.Shape([None] * expected.feeds[name].ndim)
    for value in model.graph.outputs:
        array = expected.outputs.get(value.name or "")
        if value.type is None and isinstance(array, np.ndarray):
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            value.shape = ir.Shape([None] * len(array.shape))
    return exposed


def _finish(model: ir.Model, exposed: Sequence[str]) -> None:
    """Kept tensors are inner tensors again; what they alone needed goes with them."""
    kept = [value for value in model.graph.outputs if value.name not in exposed]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
