"""The smallest part of a failing graph that still fails in the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from random_graphs.draw import Drawn, needed
from random_graphs.judge import Outcome, runnable
from random_graphs.truth import tensor_values


def shrink(drawn: Drawn, judge: Callable[[Drawn], Outcome], rounds: int = 6) -> Drawn:
    """Take smaller graphs as long as `judge` gives them the same word."""
    word = judge(drawn).word
    for _ in range(rounds):
        before = drawn
        for smaller in _smaller(drawn):
            try:
                if not runnable(smaller) and judge(smaller).word == word:
                    drawn = smaller
                    break
            except Exception:  # a cut that makes no model
                continue
        if drawn is before:
            return drawn
        rounds += 1
    return drawn


def _smaller(drawn: Drawn) -> Iterator[Drawn]:
    """Graphs with one thing less, the boldest first."""
    model = drawn.model
    values = tensor_values(drawn)
    for node in model.graph.node:  # an earlier end
        for name in node.output:
            if name in values and values[name].dtype.kind == "f" and name != model.graph.output[0].name:
                yield _trimmed(drawn, [name], {})
    if len(model.graph.output) > 1:
        yield _trimmed(drawn, [model.graph.output[0].name], {})
    for node in reversed(model.graph.node):  # a step stepped over, or its result held fixed
        for name in node.output:
            if name not in values:
                continue
            alike = [i for i in node.input if i in values and values[i].shape == values[name].shape]
            for other in alike:
                if values[other].dtype == values[name].dtype:
                    yield _trimmed(drawn, [o.name for o in model.graph.output], {name: other})
            yield _trimmed(drawn, [o.name for o in model.graph.output], {name: values[name]})


def _trimmed(drawn: Drawn, outputs: list[str], instead: dict[str, str | np.ndarray]) -> Drawn:
    """The model with tensors replaced by others or by constants, and without what is no longer needed."""
    model = onnx.ModelProto.FromString(drawn.model.SerializeToString())
    graph = model.graph
    elem = graph.input[0].type.tensor_type.elem_type
    for name, other in instead.items():
        keep = [n for n in graph.node if name not in n.output]
        if len(keep) < len(graph.node):
            source = next(n for n in graph.node if name in n.output)
            if len(source.output) > 1:
                i = list(source.output).index(name)
                source.output[i] = f"{name}/gone"
                keep = list(graph.node)
        if isinstance(other, str):
            made = helper.make_node("Identity", [other], [name], name=f"{name}/same")
            position = next(i for i, n in enumerate(graph.node) if name in n.output or f"{name}/gone" in n.output)
            keep.insert(position, made)
            del graph.node[:]
            graph.node.extend(keep)
            _renamed(graph, name, other, outputs)
        else:
            array = (
                other.astype(np.float64 if elem == onnx.TensorProto.DOUBLE else np.float32)
                if other.dtype.kind == "f"
                else other
            )
            graph.initializer.append(numpy_helper.from_array(array, name))
            del graph.node[:]
            graph.node.extend(keep)
    nodes = needed(list(graph.node), outputs)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {i for n in _all(graph) for i in n.input}
    weights = [w for w in graph.initializer if w.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(n, elem, None) for n in outputs)
    inputs = [v for v in graph.input if v.name in used]
    del graph.input[:]
    graph.input.extend(inputs)
    feeds = {v.name: drawn.feeds[v.name] for v in inputs}
    made = {o for n in graph.node for o in n.output}
    attribute = tuple(n for n in drawn.attribute if n in made)
    return dataclasses.replace(drawn, model=model, feeds=feeds, attribute=attribute, explain=())


def _renamed(graph: onnx.GraphProto, name: str, other: str, outputs: list[str]) -> None:
    """Readers of `name` read `other`; an Identity stays only where an output needs the name."""
    for node in _all(graph):
        for i, value in enumerate(node.input):
            if value == name:
                node.input[i] = other


def _all(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [*graph.node, *(n for node in graph.node for a in node.attribute if a.HasField("g") for n in _all(a.g))]
