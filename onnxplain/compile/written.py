"""A model made of others: written, run as users will run it, and compared with those it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxplain.compile import provenance
from onnxplain.compile.save import save
from onnxplain.cpu_session import CpuSession
from onnxplain.errors import ConversionChanged, InputError, UsageError
from onnxplain.frontend.load import Source
from onnxplain.frontend.verify import Reference
from onnxplain.graph.node import draws_at_random
from onnxplain.graph.outline import EXTERNAL_IR, release, runtime

ROUNDING = 1e-2  # of the largest value: what onnxruntime's optimisation of another graph may change, no wrong kernel
REPORT = "Please report this model."

Sample = np.ndarray | Mapping[str, np.ndarray] | None


@dataclass(frozen=True)
class WrittenModel:
    """A model file: where it is, its ports, and what was decided on the way, in sentences."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def write(
    model: ir.Model, path: Path, sources: Sequence[Source], expected: Reference, notes: Sequence[str]
) -> WrittenModel:
    """Write `model`, which was made of `sources`, and check that it answers as `expected` says.

    Its graph as written is compared before it is saved; the file then runs in a session of default options. Raises
    InputError, ConversionChanged.
    """
    for source in sources:
        if source.path is not None and path.resolve() == source.path.resolve():
            raise InputError(f"cannot write {path}: it is a model that is read; give another name.")
    notes = list(notes)
    model.ir_version = max(model.ir_version, EXTERNAL_IR)  # weights are not inputs
    if model.metadata_props.pop(provenance.KEY, None) is not None:
        notes.append("the provenance of a compiled graph is left out: it says nothing true of another graph")
    random = next((node for node in model.graph.all_nodes() if draws_at_random(node)), None)
    if random is not None:
        notes.append(f"not compared with the model it was made of: {random.name} ({random.op_type}) draws at random")
    else:
        _compare(expected, runtime(model), "the graph")
    release(model, *(source.model for source in sources))
    save(model, path)
    session = CpuSession(path, optimise=True, nodes=len(model.graph))
    if random is not None:
        session.run(expected.feeds)
    else:
        coarse = replace(expected, tolerance=max(expected.tolerance, ROUNDING))
        _compare(coarse, session, "a session of onnxruntime's default options")
    ports = [tuple(str(value.name) for value in values) for values in (model.graph.inputs, model.graph.outputs)]
    return WrittenModel(path, ports[0], ports[1], tuple(notes))


def _compare(expected: Reference, session: CpuSession, what: str) -> None:
    problem = expected.mismatch(session.run(expected.feeds))
    if problem is not None:
        raise ConversionChanged(f"{what} answers differently from the model it was made of: {problem}. {REPORT}")


def by_name(sample: Sample, model: ir.Model) -> Mapping[str, np.ndarray] | None:
    """Input to verify on, by name; a bare array is that of the only input."""
    if not isinstance(sample, np.ndarray):
        return sample
    names = [str(value.name) for value in model.graph.inputs]
    if len(names) != 1:
        raise UsageError(f"the model has the inputs {', '.join(names)}: give the sample by name.")
    return {names[0]: sample}
