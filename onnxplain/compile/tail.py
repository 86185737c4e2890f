"""The part of a graph behind inner tensors, for whoever moves these: all that does not change with them is fed as well.

CUT leaves what goes around a tensor to the model's inputs; here it is cut too, as near as its rows go apart, so that
nothing is computed again at each point.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from onnxplain.compile import provenance
from onnxplain.compile.contract import tensors
from onnxplain.compile.needed import keep_needed
from onnxplain.errors import UsageError
from onnxplain.graph import streams
from onnxplain.graph.node import Node, captured, is_float
from onnxplain.graph.walk import dependent_values
from onnxplain.vjp import axis_rules


class GraphTail:
    """What lies behind the tensors `at` of a graph, up to `outputs`. Nothing is changed yet.

    companions: what else has to be fed, by name: inner tensors beside `at`, and inputs of the model, each with its
    samples along axis 0. free: inputs that are no samples' values, seeds. proven: whether axis 0 of each of `at` is
    known to count samples; moved: the axis where it is known to be another. Raises UsageError where a tensor of `at`
    cannot move.
    """

    def __init__(self, model: ir.Model, at: Sequence[str], outputs: Sequence[str], free: Collection[str] = ()):
        self.at, self.outputs, self._model, self._free = tuple(at), tuple(outputs), model, tuple(free)
        graph, values = model.graph, tensors(model.graph)
        opset = graph.opset_imports.get("", 18)
        nodes = [Node.of(node, opset) for node in graph]
        starts, seeds = [values[name] for name in at], [values[name] for name in free]
        own = [value for value in values.values() if value.is_graph_input() and value not in seeds]
        self._check(nodes, starts, [values[name] for name in outputs])
        axes = streams.track(nodes, [*own, *seeds], axis_rules())
        self.proven = all(axes.get(value) == 0 for value in starts)
        changing, fed = dependent_values(nodes, [*starts, *seeds]), dependent_values(nodes, own)
        apart = {v for v in fed - changing if axes.get(v) == 0 and v.shape is not None and v.dtype is not None}
        self.companions = [str(value.name) for value in _frontier([values[n] for n in outputs], starts, {*apart, *own})]

    def cut(self, companions: Sequence[str]) -> ir.Model:
        """The tail as a model of its own. companions: its own ones, and others that it may be fed too."""
        part = self._model.clone()
        graph, values = part.graph, tensors(part.graph)
        forward = provenance.read(part)
        first = set(list(graph)[: forward["forward_nodes"]]) if forward is not None else set()
        entries = {name: values[name] for name in (*self.at, *companions) if not values[name].is_graph_input()}
        for name, value in entries.items():
            entries[name] = entry = ir.Value(name=name, type=value.type, shape=value.shape)
            value.name = f"{name}.before_cut"
            value.replace_all_uses_with(entry, replace_graph_outputs=True)
        ports = [entries.get(name, values[name]) for name in (*self.at, *companions, *self._free)]
        keep_needed(part, ports, [values[name] for name in self.outputs])
        graph.inputs.extend(value for value in ports if value not in graph.inputs)
        if forward is not None:
            count = sum(node in first for node in graph)
            provenance.write(part, {**forward, "forward_nodes": count})
        return part

    def _check(self, nodes: Sequence[Node], starts: Sequence[ir.Value], ends: Sequence[ir.Value]) -> None:
        for value in starts:
            said = f"--attribute-to {value.name}"
            if not is_float(value):
                kind = value.dtype.name.lower() if value.dtype is not None else "no tensor"
                raise UsageError(f"{said}: it is {kind}, and a method moves float tensors.")
            if value in ends:
                raise UsageError(f"{said}: it is what is explained. Name a tensor below it.")
            behind = dependent_values(nodes, [value]) - {value}
            if behind.isdisjoint(ends):
                names = ", ".join(str(end.name) for end in ends)
                raise UsageError(f"{said}: {names} {'do' if len(ends) > 1 else 'does'} not depend on it.")
            if others := [str(other.name) for other in starts if other in behind]:
                raise UsageError(f"{said}: {others[0]} is computed from it, and both would move. Name one of the two.")


def _frontier(ends: Sequence[ir.Value], starts: Collection[ir.Value], stops: Collection[ir.Value]) -> list[ir.Value]:
    """Where the ways back from `ends` first meet `stops`, in order; those that lead to `starts` end there."""
    found: dict[ir.Value, None] = {}
    seen: set[ir.Value] = set()
    pending = list(ends)
    while pending:
        value = pending.pop()
        if value in seen or value in starts:
            continue
        seen.add(value)
        node = value.producer()
        if value in stops:
            found[value] = None
        elif node is not None:
            pending.extend(v for v in (*node.inputs, *captured(node)) if v is not None)
    return list(found)


def named(tails: Sequence[GraphTail]) -> list[str]:
    """The companions of several tails behind the same tensors, each once."""
    return list(dict.fromkeys(name for tail in tails for name in tail.companions))
