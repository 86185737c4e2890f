"""What the model as it came answers, on input that it runs on; rewritten models must answer the same."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.bfloat16 import is_floating
from onnxplain.cpu_session import SECONDS, CpuSession, one_line
from onnxplain.errors import Expired, UnsupportedModel
from onnxplain.frontend import compare
from onnxplain.frontend.compare import TOLERANCE, arrays
from onnxplain.frontend.load import MAX_IR, Source
from onnxplain.frontend.sample_inputs import candidates, declared_shapes, fixed, lengths_of, resized, symbol
from onnxplain.graph.outline import EXTERNAL_IR, runtime, supply

SQUASHING = {"Sigmoid", "Softmax", "LogSoftmax", "HardSigmoid", "Tanh"}
SHAPED = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Transpose"}
ATTEMPTS = 40  # feeds tried before giving up
LOOP_SECONDS = 3.0
OTHER_ROWS = (3, 1)  # batches of the second run: what is 2 by accident is not 3; 1 where a model takes no more


@dataclass(frozen=True)
class Reference:
    """What the model as it came answers: feeds, outputs by name (kept tensors among them).

    bounded: outputs of Sigmoid and the like, whose scale is 1 however small they are. tolerance: of the largest value,
    by the precision inside the model.
    """

    feeds: Mapping[str, np.ndarray]
    outputs: Mapping[str, Any]
    bounded: frozenset[str] = frozenset()
    tolerance: float = TOLERANCE

    def mismatch(self, outputs: Mapping[str, Any], names: Sequence[str] | None = None) -> str | None:
        """How answers differ from these beyond rounding; None where they do not. names: outputs compared, or all."""
        expected = self.outputs if names is None else {name: self.outputs[name] for name in names}
        return compare.mismatch(expected, outputs, self.bounded, self.tolerance)


def reference(
    source: Source,
    keep: Sequence[str] = (),
    sample: Mapping[str, np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Reference:
    """Run the source; kept tensors are made outputs of a copy of its graph. sample, shapes: as in `candidates`."""
    session = _session(source, keep)
    bounded = frozenset(before_squashing(source.model))
    tolerance = compare.tolerance(source.model)
    until = time.monotonic() + seconds(source.model)
    failure: Exception | None = None
    fallback: Reference | None = None
    for attempt, feeds in enumerate(candidates(source.model, session.inputs, sample, shapes)):
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
        answer = Reference(feeds, outputs, bounded, tolerance)
        if all(np.isfinite(array).all() for array in arrays(outputs).values() if is_floating(array)):
            return answer
        fallback = fallback or answer
        if attempt >= 4:
            break
    if fallback is not None:
        return fallback
    shown = ", ".join(f"{port.name} {list(port.shape)}" for port in session.inputs)
    reason = one_line(failure) if failure is not None else "no input"
    if sample and all(port.name in sample for port in session.inputs):
        raise UnsupportedModel(f"the model does not run on the sample it was given ({shown}): {reason}")
    raise UnsupportedModel(
        f"the model itself does not run on random input ({shown}): {reason}. Give input that it runs on: --sample FILE "
        "(npz or npy), or sizes: --shape NAME=1,3,224,224"
    )


def second(source: Source, reference: Reference) -> Reference | None:
    """The model's answers to another number of rows; None where the batch is fixed or it runs with no other.

    The rows are those of `reference.feeds`, repeated, so that they are what the model takes. Costs a session and a run.
    """
    declared = declared_shapes(source.model, reference.feeds)
    known = lengths_of(declared, {name: array.shape for name, array in reference.feeds.items()})
    batch = {symbol(name, 0, shape[0]) for name, shape in declared.items() if shape and not fixed(shape[0])}
    counts = [rows for rows in OTHER_ROWS if any(known[name] != rows for name in batch)]
    if not counts:
        return None
    own = {value.name for value in source.model.graph.outputs}
    session = _session(source, [name for name in reference.outputs if name not in own])
    for rows in counts:
        feeds = resized(reference.feeds, declared, dict.fromkeys(batch, rows))
        try:
            outputs = session.run(feeds)
        except (Expired, UnsupportedModel):
            continue
        return Reference(feeds, outputs, reference.bounded, reference.tolerance)
    return None


def _session(source: Source, keep: Sequence[str]) -> CpuSession:
    """The file as it came, with `keep` among its outputs; its graph through onnx-ir only where that cannot be."""
    if source.outline:
        proto: Any = onnx.load_model_from_string(source.outline)
        proto.ir_version = min(max(proto.ir_version, EXTERNAL_IR), MAX_IR)
        graph: onnx.GraphProto = proto.graph
        known = {value.name for value in (*graph.output, *graph.input)} | {tensor.name for tensor in graph.initializer}
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(keep) if name not in known)
        tensors = {name: value.const_value for name, value in source.model.graph.initializers.items()}
        declared = [tensor.name for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
        weights = supply(proto, {name: tensor for name in declared if (tensor := tensors[name]) is not None})
        return CpuSession(proto.SerializeToString(), nodes=len(graph.node), weights=weights)
    if source.path is not None and source.faithful and not keep:
        return CpuSession(source.path, nodes=len(source.model.graph))
    model = source.model
    if keep:
        model = model.clone()
        expose(model, keep)
    return runtime(model)


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
    before = {}
    for output in model.graph.outputs:
        value: ir.Value | None = output
        node = output.producer()
        while node is not None and node.op_type in SHAPED and node.inputs:
            value = node.inputs[0]
            node = value.producer() if value is not None else None
        if node is not None and node.op_type in SQUASHING and node.domain == "" and node.inputs[0] is not None:
            before[output.name or ""] = node.inputs[0].name or ""
    return before


def expose(model: ir.Model, names: Sequence[str]) -> list[str]:
    """Make inner tensors outputs of the graph; returns those that were not outputs before."""
    outputs = {value.name for value in model.graph.outputs}
    taken = {value.name for value in model.graph.inputs} | set(model.graph.initializers)
    wanted = [name for name in dict.fromkeys(names) if name not in outputs and name not in taken]
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in wanted)
    return wanted
