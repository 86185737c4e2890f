"""What the compiler finds out about a model before it emits anything."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.compile.contract import Request, Resolved, candidates, tensors
from onnxplain.composites import Composite, places
from onnxplain.errors import OnnxplainError, UnsupportedModel, UsageError
from onnxplain.graph import signs, streams
from onnxplain.graph.backward import Backward, Facts
from onnxplain.graph.node import Node, dims, is_float, rank
from onnxplain.graph.patterns import recognise
from onnxplain.graph.walk import Rule, active_values, needed_nodes
from onnxplain.vjp import OPS, axis_rules, lookup, sign_rules


class Analysis:
    """The path relevance takes through a model, and what is known along it.

    explained: forward tensors. wanted: attributed tensor → its name. nodes: forward steps, patterns recognised. path:
    those between explained and wanted, last first. active: tensors relevance can reach wanted through. places: where
    each node of the path stands. op: the builder, which knows batch axes, signs and constants. notes: for the user.
    strict: raise for nodes without a derivative; else leave them out of `places`.
    """

    def __init__(
        self, model: ir.Model, resolved: Resolved, composite: Composite, request: Request, strict: bool = True
    ) -> None:
        self.graph, self.resolved, self.request = model.graph, resolved, request
        self.notes: list[str] = list(resolved.notes)
        self.values = tensors(self.graph)
        self.explained = [self.value(name) for name in resolved.explained]
        self.inputs = [value for value in self.graph.inputs if value.name not in self.graph.initializers]
        opset = self.graph.opset_imports.get("", 18)
        single = [Node.of(node, opset) for node in self.graph]
        protected = {self.value(name) for name in resolved.protected}
        self.nodes = recognise(single, protected) if composite.relevance else single
        axes = streams.track(single, self.inputs, axis_rules())
        facts = Facts(axes, False, signs.nonnegative(single, sign_rules()), self._constants())
        self.op = Backward(self.graph, facts)
        self.wanted = self._wanted()
        self.active = active_values(self.nodes, self.wanted, self._passes)
        self.path = needed_nodes(self.nodes, self.explained, self.active, self._passes)
        self._check_reached()
        facts.free = self._streams_are_free()
        known = self.path if strict else [node for node in self.path if _has_derivative(node)]
        self.places = places(self.op, known)

    def value(self, name: str) -> ir.Value:
        """A tensor by name."""
        if name not in self.values:
            raise UnsupportedModel(f"tensor {name!r} did not survive normalisation.")
        return self.values[name]

    def rules(self, composite: Composite) -> tuple[dict[Node, Rule], dict[Node, str]]:
        """The rule of every node of the path, and for those that have none the reason."""
        found: dict[Node, Rule] = {}
        blocked: dict[Node, str] = {}
        for node in reversed(self.path):
            try:
                lookup(node)
                if node in self.places:
                    found[node] = composite.rule_for(self.places[node])
            except OnnxplainError as error:
                blocked[node] = str(error)
        return found, blocked

    def _constants(self) -> set[ir.Value]:
        """Tensors that depend on no input of the model."""
        found = set(self.graph.initializers.values())
        for node in self.graph:
            if node.op_type.startswith("Random"):
                continue
            if all(value is None or value in found for value in node.inputs) and not _has_graph(node):
                found.update(node.outputs)
        return found

    def _wanted(self) -> dict[ir.Value, str]:
        """Attributed tensors → name of the relevance."""
        if self.request.attribute_to:
            named = {self.value(name): name for name in self.request.attribute_to}
            for value, name in named.items():
                if not is_float(value) and not value.is_graph_input():
                    raise UsageError(f"--attribute-to {name}: it is {value.dtype}, and relevance needs a float tensor.")
            return named
        return {value: str(value.name) for value in self.inputs if value.dtype is not None}

    def _passes(self, node: Node, index: int) -> bool:
        """May relevance flow from `node` back into its input `index`?"""
        value = node.inputs[index]
        if value is None or value in self.op.facts.constants:
            return False
        if is_float(value):
            return any(is_float(out) for out in node.outputs)
        if node.op_type == "Gather" and index == 1:
            return node.inputs[0] in self.op.facts.constants and is_float(node.y)
        if ir.DataType.BOOL in (value.dtype, node.y.dtype):
            return False
        if index == 0 and node.op_type == "Cast":
            return True
        entry = OPS.get(node.op_type)
        return index == 0 and entry is not None and entry.kind == "routing" and not is_float(node.y)

    def _check_reached(self) -> None:
        reached = {
            v for node in self.path for i, v in enumerate(node.inputs) if v is not None and self._passes(node, i)
        } | set(self.explained)
        missing = [name for value, name in self.wanted.items() if value not in reached]
        for value in [value for value in self.wanted if value not in reached]:
            del self.wanted[value]
        if self.request.attribute_to and missing:
            raise UsageError(
                f"{', '.join(self.resolved.explained)} does not depend on {', '.join(missing)} in a way that relevance "
                "can follow."
            )
        if not self.wanted:
            near = ", ".join(candidates(self.graph))
            raise UnsupportedModel(
                f"nothing to attribute to: no input reaches {', '.join(self.resolved.explained)} as a float, by table "
                f"look-up or by Cast. Name a tensor by --attribute-to: {near}."
            )
        if missing:
            self.notes.append(f"no relevance for {', '.join(missing)}: used as a mask, length or index only")

    def _streams_are_free(self) -> bool:
        """Whether the batch axis is proven on every tensor the backward pass touches."""
        axes = self.op.facts.axes
        touched = {value for node in self.path for value in (*node.inputs, *node.outputs) if value is not None}
        touched |= {value for node in self.path for member in node.members for value in member.outputs}
        lost = [
            v for v in touched if v not in self.op.facts.constants and axes.get(v, streams.UNPROVEN) == streams.UNPROVEN
        ]
        lost += [v for v in touched if v in self.active and is_float(v) and axes.get(v) == streams.CONSTANT]
        lost += self._other_batches()
        heads_ok = all(value.shape is not None and rank(value) and axes.get(value) == 0 for value in self.explained)
        if lost or not heads_ok:
            where = min((str(v.name) for v in lost), default=self.resolved.explained[0])
            self.notes.append(
                f"the batch axis cannot be followed through {where}: seeds have exactly the explained tensor's shape, "
                "one target a run"
            )
            return False
        return True

    def _other_batches(self) -> list[ir.Value]:
        """Inputs of the explained tensors whose axis 0 is not known to be as long as the first one's.

        Such an input may be one row beside a batch, and then its relevance has to be summed over the batch.
        """
        reached = set(self.explained)
        for node in reversed(self.nodes):
            if any(value in reached for value in node.outputs):
                reached.update(value for value in node.inputs if value is not None)
        batched = [value for value in self.inputs if value in reached and value.shape is not None and rank(value)]
        return [value for value in batched if dims(value)[0] != dims(batched[0])[0]]


def batch_axes(graph: ir.Graph) -> dict[str, int] | None:
    """The axis of each input and output along which rows lie, where no row can change another's result; else None.

    None as well where the batch is a fixed number, so that rows cannot be put together. Outputs that do not depend on
    the inputs are left out.
    """
    opset = graph.opset_imports.get("", 18)
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    axes = streams.track([Node.of(node, opset) for node in graph], inputs, axis_rules())
    sizes = {dims(value)[0] if value.shape is not None and rank(value) else 1 for value in inputs}
    if len(sizes) != 1 or isinstance(next(iter(sizes)), int):
        return None
    outputs = {str(value.name): axes.get(value, streams.UNPROVEN) for value in graph.outputs}
    if any(axis == streams.UNPROVEN for axis in outputs.values()) or any(n.op_type.startswith("Random") for n in graph):
        return None
    return {str(value.name): 0 for value in inputs} | {n: a for n, a in outputs.items() if a != streams.CONSTANT}


def _has_derivative(node: Node) -> bool:
    try:
        lookup(node)
    except OnnxplainError:
        return False
    return True


def _has_graph(node: ir.Node) -> bool:
    return any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    )
