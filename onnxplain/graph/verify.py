"""Does a rewritten model still answer as the file does? One run of each, on the same random input."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain.errors import Expired, UnsupportedModel
from onnxplain.graph.feeds import candidates
from onnxplain.graph.load import Source
from onnxplain.graph.outline import runtime
from onnxplain.runtime import SECONDS, Runtime, one_line

TOLERANCE = 1e-5  # of the largest value
HALF_TOLERANCE = 1e-2  # the same for float16, which carries 11 bits
SQUASHING = {"Sigmoid", "Softmax", "LogSoftmax", "HardSigmoid", "Tanh"}
SHAPED = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Transpose"}
ATTEMPTS = 40  # feeds tried before giving up
LOOP_SECONDS = 3.0


@dataclass(frozen=True)
class Reference:
    """What the model as it came answers: feeds, outputs by name (kept tensors among them).

    bounded: outputs of Sigmoid and the like, whose scale is 1 however small they are.
    """

    feeds: Mapping[str, np.ndarray]
    outputs: Mapping[str, Any]
    bounded: frozenset[str] = frozenset()


def reference(source: Source, keep: Sequence[str] = ()) -> Reference:
    """Run the source; kept tensors are made outputs of a copy of its graph."""
    if source.path is not None and source.faithful and not keep:
        session = Runtime(source.path)
    else:
        model = source.model
        if keep:
            model = model.clone()
            expose(model, keep)
        session = runtime(model)
    bounded = frozenset(before_squashing(source.model))
    until = time.monotonic() + seconds(source.model)
    failure: Exception | None = None
    fallback: Reference | None = None
    for attempt, feeds in enumerate(candidates(source.model, session.inputs)):
        if attempt == ATTEMPTS or time.monotonic() > until:
            break
        try:
            outputs = session.run(feeds, seconds=max(0.1, until - time.monotonic()))
        except Expired as error:
            raise UnsupportedModel(
                f"a run on small input took longer than {seconds(source.model):g} s and was stopped: "
                "a loop that does not end?"
            ) from error
        except UnsupportedModel as error:
            failure = failure or error
            continue
        if all(np.isfinite(array).all() for array in arrays(outputs).values() if array.dtype.kind == "f"):
            return Reference(feeds, outputs, bounded)
        fallback = fallback or Reference(feeds, outputs, bounded)
        if attempt >= 4:
            break
    if fallback is not None:
        return fallback
    shapes = ", ".join(f"{port.name} {list(port.shape)}" for port in session.inputs)
    reason = one_line(failure) if failure is not None else "no input"
    raise UnsupportedModel(f"the model itself does not run on random input ({shapes}): {reason}")


def seconds(model: ir.Model) -> float:
    """How long the first runs may take together: little where a loop may never end, since all else has bounded work."""
    loops = any(node.op_type in ("Loop", "Scan") for node in ir.traversal.RecursiveGraphIterator(model.graph))
    inside = any(node.op_type in ("Loop", "Scan") for function in model.functions.values() for node in function)
    return LOOP_SECONDS if loops or inside else SECONDS


def before_squashing(model: ir.Model) -> dict[str, str]:
    """Outputs that end in a Sigmoid, Softmax or the like, and the tensor before it.

    A change of the logits can hide in a saturated output, and the logits are what is explained, so they are compared
    too.
    """
    found = {}
    for output in model.graph.outputs:
        value: ir.Value | None = output
        node = output.producer()
        while node is not None and node.op_type in SHAPED and node.inputs:
            value = node.inputs[0]
            node = value.producer() if value is not None else None
        if node is not None and node.op_type in SQUASHING and node.domain == "" and node.inputs[0] is not None:
            found[output.name or ""] = node.inputs[0].name or ""
    return found


def expose(model: ir.Model, names: Sequence[str]) -> list[str]:
    """Make inner tensors outputs of the graph; returns those that were not outputs before."""
    outputs = {value.name for value in model.graph.outputs}
    fixed = {value.name for value in model.graph.inputs} | set(model.graph.initializers)
    wanted = [name for name in dict.fromkeys(names) if name not in outputs and name not in fixed]
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in wanted)
    return wanted


def difference(model: ir.Model, expected: Reference, extra: Sequence[str] = ()) -> tuple[str | None, dict[str, Any]]:
    """Say how the model's answers differ from the reference (None: they do not); also the values of `extra`."""
    names = list(expected.outputs)
    try:
        session = runtime(_with_outputs(model, extra) if extra else model)
        taken = {port.name for port in session.inputs}
        found = session.run({name: x for name, x in expected.feeds.items() if name in taken}, [*names, *extra])
    except UnsupportedModel as error:
        return str(error), {}
    problem = mismatch(expected.outputs, {name: found[name] for name in names}, expected.bounded)
    return problem, {} if problem is not None else {name: found[name] for name in extra}


def mismatch(
    expected: Mapping[str, Any], found: Mapping[str, Any], bounded: Collection[str] = frozenset()
) -> str | None:
    """How outputs differ from the expected ones beyond rounding; None where they do not. bounded: as in `Reference`."""
    before, after = arrays(expected), arrays(found)
    for name, y in before.items():
        if name not in after:
            return f"the output {name} is missing"
        problem = _mismatch(y, after[name], 1.0 if name in bounded else 0.0)
        if problem is not None:
            return f"output {name}: {problem}"
    return None


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    model = model.clone()
    expose(model, names)
    return model


def _mismatch(y: np.ndarray, found: np.ndarray, scale: float) -> str | None:
    if y.shape != found.shape or y.dtype != found.dtype:
        return f"was {y.dtype}{list(y.shape)}, is {found.dtype}{list(found.shape)}"
    if y.dtype.kind != "f":
        wrong = int((y != found).sum())
        return f"{wrong} of {y.size} values differ" if wrong else None
    if y.size == 0:
        return None
    tolerance = HALF_TOLERANCE if y.dtype == np.float16 else TOLERANCE
    with np.errstate(all="ignore"):
        finite = np.isfinite(y)
        if not np.array_equal(finite, np.isfinite(found)):
            return "other values are infinite or not a number"
        if not finite.any():
            return None
        y, found = y[finite].astype(np.float64), found[finite].astype(np.float64)
        worst = float(np.abs(y - found).max()) / max(float(np.abs(y).max()), scale, 1e-30)
    return f"differs by {worst:.1e} of its largest value" if worst > tolerance else None


def arrays(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Outputs as arrays; sequences and maps become one array an entry."""
    result: dict[str, np.ndarray] = {}
    for name, value in outputs.items():
        if isinstance(value, np.ndarray):
            result[name] = value
        elif isinstance(value, Mapping):
            result.update(arrays({f"{name}[{key}]": np.asarray(entry) for key, entry in value.items()}))
        elif isinstance(value, (list, tuple)):
            result.update(arrays({f"{name}[{i}]": entry for i, entry in enumerate(value)}))
        elif value is not None:
            result[name] = np.asarray(value)
    return result
