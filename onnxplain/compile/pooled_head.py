"""A new head for a model: the mean of a feature map over its positions, and one linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxplain.compile.cut import check, cut_graph, typed
from onnxplain.compile.written import Sample, WrittenModel, by_name, write
from onnxplain.errors import UnsupportedModel
from onnxplain.frontend.load import load
from onnxplain.frontend.passes.names import Names, initializer
from onnxplain.frontend.verify import reference
from onnxplain.graph.node import dims

AXES_ARE_AN_INPUT = 18  # opset from which the axes of a mean are an input, no attribute


def write_pooled_head(
    model: str | Path, path: str | Path, *, layer: str, channels: int, weights: NDArray[Any], bias: NDArray[Any],
    explained: str, head: str = "", sample: Sample = None, shapes: Mapping[str, Sequence[int]] | None = None,
) -> WrittenModel:  # fmt: skip
    """Write the model with all above `layer` replaced: logits = weights · mean of the layer over its positions + bias.

    The graph below is taken as it is written: weights, opset, functions and names stay. explained: name of the tensor
    of the scores, which the logits get. head: op that the model has behind it, such as Softmax; its output keeps its
    name. channels: the axis of the layer's channels; the others, but the first, are positions. weights (K, C), bias
    (K,). sample, shapes: input to verify on. Raises UsageError, UnknownName, UnsupportedModel, ConversionChanged.
    """
    source = load(Path(model))
    check(source.model.graph, (), [layer])
    whole = reference(source, [layer], by_name(sample, source.model), shapes)
    part = typed(source, (), [layer], whole)
    outputs = list(part.graph.outputs)
    notes = cut_graph(part, (), [layer])
    graph, (below,) = part.graph, part.graph.outputs
    if below.dtype is None or below.shape is None:
        raise UnsupportedModel(f"{layer}: its type and shape are not known, and a head is made for those.")
    last = next((value for value in outputs if value.name == explained), outputs[0])
    names, dtype = Names(graph), below.dtype
    space = [axis for axis in range(1, len(below.shape)) if axis != channels]
    rows, classes = dims(below)[0], len(bias)

    def node(kind: str, inputs: Sequence[ir.Value], name: str, width: int, **attributes: Any) -> ir.Value:
        made = ir.node(kind, list(inputs), attributes, name=f"fitted_head/{kind}")
        graph.append(made)
        (value,) = made.outputs
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape([rows, width])
        return value

    opset, width = graph.opset_imports.get("", 1), weights.shape[1]
    pooled = names.free("fitted_head.features")
    if opset < AXES_ARE_AN_INPUT:
        mean = node("ReduceMean", [below], pooled, width, axes=space, keepdims=0)
    else:
        positions = initializer(names, "fitted_head.positions", np.array(space), ir.DataType.INT64)
        mean = node("ReduceMean", [below, positions], pooled, width, keepdims=0)
    numbers = {"weight": weights, "bias": bias}
    operands = [initializer(names, f"fitted_head.{name}", array, dtype) for name, array in numbers.items()]
    final = node("Gemm", [mean, *operands], explained, classes, transB=1)
    if head:
        final = node(head, [final], str(last.name), classes, axis=1)
    del graph.outputs[:]
    graph.outputs.append(final)
    features = np.asarray(whole.outputs[layer], np.float64).mean(tuple(space))
    expected = features @ weights.astype(np.float64).T + bias
    if head:
        expected = np.exp(expected - expected.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
    answer = {str(final.name): expected.astype(dtype.numpy())}
    lost = [str(value.name) for value in outputs if value is not last]
    if lost:
        notes.append(f"no longer among the outputs: {', '.join(lost)}")
    feeds = {str(value.name): whole.feeds[str(value.name)] for value in graph.inputs}
    return write(part, Path(path), [source], replace(whole, feeds=feeds, outputs=answer), notes)
