"""What a ModelInfer request brings: arrays that fit, outputs it names, our parameters; and seeds it leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain.errors import InputError
from onnxplain.inputs import resolve
from onnxplain.runtime.session import Array
from onnxplain.server.models.loaded import Variant
from onnxplain.server.models.ports import Port
from onnxplain.wire.tensors import datatype_of

PREFIX = "onnxplain_"  # of our request parameters


def checked(arrays: Mapping[str, Array], wanted: Sequence[Port]) -> dict[str, Array]:
    """Names, types and shapes are the graph's. Raises InputError with the field."""
    order = {name: n for n, name in enumerate(arrays)}
    known = {port.name: port for port in wanted}
    for name, n in order.items():
        if name not in known:
            raise InputError(f"no input named {name[:100]!r}; this model takes {', '.join(known)}.").at(
                f"inputs[{n}].name"
            )
    feeds = {}
    for port in wanted:
        if port.name not in arrays:
            raise InputError(f"input {port.name!r} ({port.datatype}) is missing.").at("inputs")
        array, where = arrays[port.name], f"inputs[{order[port.name]}]"
        found = datatype_of(array.dtype)
        if found != port.datatype:
            raise InputError(f"{port.name}: found {found}, expected {port.datatype}.").at(f"{where}.datatype")
        if port.shape is not None and (
            len(port.shape) != array.ndim
            or any(want not in (-1, have) for want, have in zip(port.shape, array.shape, strict=True))
        ):
            raise InputError(
                f"{port.name}: found shape {list(array.shape)}, expected {list(port.shape)} (-1: any length)."
            ).at(f"{where}.shape")
        feeds[port.name] = array
    return feeds


def rows_of(tensor: Any, inputs: Sequence[Port]) -> int:
    """Rows that an input claims to have: along axis 0, where the model leaves that open."""
    port = next((port for port in inputs if port.name == tensor.name), inputs[0])
    open_axis = port.shape is None or (len(port.shape) > 1 and port.shape[0] == -1)
    same_rank = port.shape is None or len(port.shape) == len(tensor.shape)
    return max(1, tensor.shape[0]) if open_axis and same_rank and tensor.shape else 1


def seeded(variant: Variant, feeds: Mapping[str, Array], word: str) -> dict[str, Array]:
    """The one seed of a graph, made of a target as the command line takes it; runs the model for its scores."""
    ((name, source),) = variant.explainer.compiled.seeds.items()
    scores = feeds[source] if source in feeds else variant.forward.run(feeds, [source])[source]
    targets = resolve(word, scores, variant.explainer.labels, variant.explainer.kind)
    if len(targets) != 1:
        raise InputError(f"target {word!r}: a model answers one target a row; use Explain for several.").at(
            "parameters"
        )
    dtype = np.float64 if scores.dtype == np.float64 else np.float32
    return {name: np.array(np.broadcast_to(targets[0].seed, scores.shape), dtype)}


def parameters_of(request: Any) -> dict[str, Any]:
    """Our own request parameters, without their prefix."""
    found = {}
    for name, value in request.parameters.items():
        if name.startswith(PREFIX):
            kind = value.WhichOneof("parameter_choice")
            found[name.removeprefix(PREFIX)] = getattr(value, kind) if kind else None
    return found


def wanted(request: Any, known: list[str]) -> list[str]:
    """The outputs asked for; all where none are named."""
    names = [output.name for output in request.outputs]
    for n, name in enumerate(names):
        if name not in known:
            raise InputError(f"no output named {name[:100]!r}; this model has {', '.join(known)}.").at(
                f"outputs[{n}].name"
            )
    return list(dict.fromkeys(names)) or known
