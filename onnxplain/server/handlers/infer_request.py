"""What a ModelInfer request brings: arrays that fit, outputs it names, our parameters; and seeds it leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain.errors import InputError
from onnxplain.inputs import resolve_targets
from onnxplain.runtime.session import Array
from onnxplain.server.models.inference_metadata import TensorMetadata
from onnxplain.server.models.variant import Variant
from onnxplain.wire.tensors import datatype_of


def bound_feeds(arrays: Mapping[str, Array], expected: Sequence[TensorMetadata]) -> dict[str, Array]:
    """The arrays, if their names, types and shapes are the graph's. Raises InputError with the field."""
    order = {name: n for n, name in enumerate(arrays)}
    known = {spec.name: spec for spec in expected}
    for name, n in order.items():
        if name not in known:
            raise InputError(f"no input named {name[:100]!r}; this model takes {', '.join(known)}.").at(
                f"inputs[{n}].name"
            )
    feeds = {}
    for spec in expected:
        if spec.name not in arrays:
            raise InputError(f"input {spec.name!r} ({spec.datatype}) is missing.").at("inputs")
        array, field = arrays[spec.name], f"inputs[{order[spec.name]}]"
        datatype = datatype_of(array.dtype)
        if datatype != spec.datatype:
            raise InputError(f"{spec.name}: found {datatype}, expected {spec.datatype}.").at(f"{field}.datatype")
        if spec.shape is not None and (
            len(spec.shape) != array.ndim
            or any(want not in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True))
        ):
            raise InputError(
                f"{spec.name}: found shape {list(array.shape)}, expected {list(spec.shape)} (-1: any length)."
            ).at(f"{field}.shape")
        feeds[spec.name] = array
    return feeds


def row_count(tensor: Any, inputs: Sequence[TensorMetadata]) -> int:
    """Rows that an input claims to have: along axis 0, where the model leaves that open."""
    spec = next((spec for spec in inputs if spec.name == tensor.name), inputs[0])
    open_axis = spec.shape is None or (len(spec.shape) > 1 and spec.shape[0] == -1)
    same_rank = spec.shape is None or len(spec.shape) == len(tensor.shape)
    return max(1, tensor.shape[0]) if open_axis and same_rank and tensor.shape else 1


def target_seed(variant: Variant, feeds: Mapping[str, Array], word: str) -> dict[str, Array]:
    """The one seed of a graph, made of a target as the command line takes it; runs the model for its scores."""
    ((name, source),) = variant.explainer.compiled.seeds.items()
    scores = feeds[source] if source in feeds else variant.forward_queue.run(feeds, [source])[source]
    targets = resolve_targets(word, scores, variant.explainer.labels, variant.explainer.kind)
    if len(targets) != 1:
        raise InputError(f"target {word!r}: a model answers one target a row; use Explain for several.").at(
            "parameters"
        )
    dtype = np.float64 if scores.dtype == np.float64 else np.float32
    return {name: np.array(np.broadcast_to(targets[0].seed, scores.shape), dtype)}


def requested_outputs(request: Any, known: list[str]) -> list[str]:
    """The outputs asked for; all where none are named."""
    names = [output.name for output in request.outputs]
    for n, name in enumerate(names):
        if name not in known:
            raise InputError(f"no output named {name[:100]!r}; this model has {', '.join(known)}.").at(
                f"outputs[{n}].name"
            )
    return list(dict.fromkeys(names)) or known
