"""What the compiler finds out about a model before it emits anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from onnxplain.compile import tokens
from onnxplain.compile.bias_gradients import pictures
from onnxplain.compile.contract import Request, Resolved, no_attribution, require_computed, require_reached, tensors
from onnxplain.compile.feature_maps import (
    attributing_said,
    default_layer,
    default_said,
    layout_of,
    named_layer,
    require_pooled_head,
)
from onnxplain.compile.patch_grids import PatchGrid, patch_grids
from onnxplain.composites import Composite, places
from onnxplain.errors import OnnxplainError, UnsupportedModel, UsageError
from onnxplain.graph import masks, signs, streams
from onnxplain.graph.backward_builder import Backward, Facts
from onnxplain.graph.node import Node, dims, draws_at_random, is_float, rank
from onnxplain.graph.patterns import recognise
from onnxplain.graph.walk import Rule, active_values, dependent_values, inputs_of, needed_nodes
from onnxplain.rules.finishes import Finish
from onnxplain.vjp import axis_rules, lookup, mask_steps, sign_rules


class Analysis:
    """The path relevance takes through a model, and what is known along it.

    explained: forward tensors. wanted: attributed tensor → its name. nodes: forward steps, patterns recognised. path:
    those between explained and wanted, last first. active: tensors relevance can reach wanted through. places: where
    each node of the path stands, seen from the inputs of the model whatever is attributed. sources: inputs that
    relevance may go to. op: the builder, which knows batch axes, signs and constants. notes: for the user. finish:
    one that makes maps attributes to the last feature map by default. layer: that whose map weighs what it gives.
    grids: of attributed tokens that are patches of a picture. strict: raise for nodes without a derivative; else leave
    them out of `places`.
    """

    def __init__(
        self, model: ir.Model, resolved: Resolved, composite: Composite, request: Request,
        finish: Finish | None = None, strict: bool = True,
    ) -> None:  # fmt: skip
        self.graph, self.resolved, self.request = model.graph, resolved, request
        self.notes: list[str] = list(resolved.notes)
        self.mixed: list[str] = []  # why integers were left out
        self.values = tensors(self.graph)
        self.explained = [self.value(name) for name in resolved.explained]
        self.inputs = [value for value in self.graph.inputs if value.name not in self.graph.initializers]
        opset = self.graph.opset_imports.get("", 18)
        single = [Node.of(node, opset) for node in self.graph]
        protected = {self.value(name) for name in resolved.protected}
        by_rules = composite.relevance or bool(composite.differences)
        self.nodes = recognise(single, protected) if by_rules else single
        maps = finish is not None and finish.maps
        self.layer: ir.Value | None = None
        self.grids: dict[ir.Value, PatchGrid] = {}
        self.layout = layout_of(self.nodes) if finish is not None and finish.biases is not None else None
        self.wanted = {} if maps and not request.attribute_to else self._wanted()
        axes = streams.track(single, self.inputs, axis_rules())
        constants = set(self.values.values()) | set(self.graph.initializers.values())
        constants -= dependent_values(single, [*self.inputs, *self.wanted, *_random(single)])
        facts = Facts(
            axes,
            False,
            signs.nonnegative(single, sign_rules(), moving=self.wanted),  # looped methods move what is attributed
            constants,
            masks=masks.masks(single, self.inputs, mask_steps()),
        )
        self.op = Backward(self.graph, facts)
        left_out = self._leave_out_mixed()
        self.sources = [value for value in self.inputs if value not in left_out]
        if finish is not None and (maps or finish.weight is not None):
            facts.channels = self._layers(maps)
        if self.layout is not None:
            require_reached(model.graph, resolved.explained)
            facts.channels = pictures(self.layout, self.wanted, bool(request.attribute_to))
            self.wanted = {value: name for value, name in self.wanted.items() if value in facts.channels}
        if finish is not None and finish.pooled_head:
            for value, channels in facts.channels.items():
                above = active_values(self.nodes, [value], self.passes, tokens.moves)
                path = needed_nodes(self.nodes, self.explained, above, self.passes)
                require_pooled_head(self.op, value, channels, path)
        receptive = active_values(self.nodes, [*self.sources, *self.wanted], self.passes, tokens.moves)
        facts.receptive = receptive
        self.active = active_values(self.nodes, self.wanted, self.passes, tokens.moves)
        self.path = needed_nodes(self.nodes, self.explained, self.active, self.passes)
        self._check_reached()
        facts.free = self._streams_are_free()
        facts.unbounded = self._unbounded()
        if strict:
            for node in reversed(self.path):
                lookup(node)  # an op nobody knows is said before anything else is
        whole = needed_nodes(self.nodes, self.explained, receptive, self.passes)
        found = places(self.op, [node for node in whole if _has_derivative(node)])
        self.places = {node: found[node] for node in self.path if node in found}

    def passes(self, node: Node, index: int) -> bool:
        """May relevance flow from `node` back into its input `index`?"""
        return tokens.passes(self.op, node, index)

    def value(self, name: str) -> ir.Value:
        """A tensor by name."""
        require_computed(self.graph, name)
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

    def maps(self) -> dict[str, dict[str, Any]]:
        """For provenance, of each tensor that a map is made of: the axis of its channels, which tokens are patches."""
        patches = {value: {"patches": grid.content()} for value, grid in self.grids.items()}
        return {str(v.name): {"channels": n, **patches.get(v, {})} for v, n in self.op.facts.channels.items()}

    def _wanted(self) -> dict[ir.Value, str]:
        """Attributed tensors → name of the relevance."""
        if self.request.attribute_to:
            named = {self.value(name): name for name in self.request.attribute_to}
            for value, name in named.items():
                if not is_float(value) and not value.is_graph_input():
                    raise UsageError(f"--attribute-to {name}: it is {value.dtype}, and relevance needs a float tensor.")
            return named
        return {value: str(value.name) for value in self.inputs if value.dtype not in (None, ir.DataType.BOOL)}

    def _layers(self, maps: bool) -> dict[ir.Value, int]:
        """The axis of the channels of each tensor that a map is made of; maps: these are the attributed ones.

        By default it is the last feature map, which is put among the wanted, or else is what weighs them.
        """
        layout = layout_of(self.nodes)
        if maps and self.wanted:
            named = {value: named_layer(self.op, layout, value) for value in self.wanted}
            self.grids = patch_grids(self.op, self.nodes, layout, named)
            return named
        active = active_values(self.nodes, self.sources, self.passes, tokens.moves)
        path = needed_nodes(self.nodes, self.explained, active, self.passes)
        if not path:  # no input reaches what is explained, which is said of the inputs
            self.wanted = self._wanted()
            if maps and (ends := [value for value in self.explained if value in self.wanted]):
                raise UsageError(f"{ends[0].name} is an input of the model, and no feature map lies below it.")
            return {}
        value, channels = default_layer(
            self.op, layout, path, self.explained, lambda node, i, x: x in active and self.passes(node, i)
        )
        if maps:
            self.wanted[value] = str(value.name)
            self.grids = patch_grids(self.op, self.nodes, layout, [value])
            self.notes.append(attributing_said(value, layout))
        else:
            self.layer = value
            self.notes.append(f"weighed by the map of {default_said(value, layout)}")
        return {value: channels}

    def _leave_out_mixed(self) -> set[ir.Value]:
        """Inputs that no relevance goes to: truth values, and integers that cannot be followed to the end.

        By default these get none rather than a part of it, and a note says so.
        """
        left_out = {value for value in self.inputs if value.dtype in (None, ir.DataType.BOOL)}
        for value in [value for value in self.inputs if value not in left_out and not is_float(value)]:
            active = active_values(self.nodes, [value], self.passes, tokens.moves)
            path = needed_nodes(self.nodes, self.explained, active, self.passes)
            reasons = [reason for node in path if (reason := tokens.problem(self.op, node, active)) is not None]
            if reasons:
                left_out.add(value)
            if reasons and value in self.wanted and not self.request.attribute_to:
                del self.wanted[value]
                self.mixed.append(reasons[-1])
                self.notes.append(f"no relevance for {value.name}: {reasons[-1]}")
        return left_out

    def _check_reached(self) -> None:
        """Tensors no relevance reaches are no longer wanted; say why, refuse where none is left or one was named."""
        reached = {
            value for node in self.path for i, value in inputs_of(node) if value in self.active and self.passes(node, i)
        } | set(self.explained)
        missing = {value: self._why_not(value) for value in self.wanted if value not in reached}
        for value in missing:
            del self.wanted[value]
        reasons = list(dict.fromkeys(missing.values()))
        if self.request.attribute_to and missing:
            raise UsageError(" ".join(reasons))
        if not self.wanted:
            said = " ".join(
                [f"{reason}." for reason in self.mixed] + reasons
                or [f"no input reaches {', '.join(self.resolved.explained)}."]
            )
            raise no_attribution(self.graph, said)
        self.notes += [f"no relevance for {value.name}: {reason}" for value, reason in missing.items()]

    def _why_not(self, value: ir.Value) -> str:
        """Why no relevance reaches a tensor, in a sentence that names the node where it ends."""
        explained = ", ".join(self.resolved.explained)
        depending = dependent_values(self.nodes, [value])
        if not depending.intersection(self.explained):
            return f"{explained} does not depend on {value.name}."
        carrying = active_values(self.nodes, [value], self.passes, tokens.moves)
        path = needed_nodes(self.nodes, self.explained, depending)
        ends = [
            node
            for node in reversed(path)
            if any(v in carrying and not self.passes(node, i) for i, v in inputs_of(node))
        ]
        where = f" at {ends[0]}" if ends else ""
        if is_float(value):
            return f"every path from {value.name} to {explained} has a derivative of zero{where}."
        return f"{value.name} is used as a mask, length or index only{where}."

    def _unbounded(self) -> set[ir.Value]:
        """Tensors below an op whose derivative may be infinite."""
        found: set[ir.Value] = set()
        for node in self.path:
            if any(y in found for y in node.outputs) or (_has_derivative(node) and lookup(node).unbounded):
                found.update(value for _, value in inputs_of(node))
        return found

    def _streams_are_free(self) -> bool:
        """Whether the batch axis is proven on every tensor the backward pass touches."""
        axes = self.op.facts.axes
        touched = {value for node in self.path for _, value in inputs_of(node)}
        touched |= {value for node in self.path for value in node.outputs}
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
                reached.update(value for _, value in inputs_of(node))
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
    if any(axis == streams.UNPROVEN for axis in outputs.values()) or any(draws_at_random(n) for n in graph):
        return None
    return {str(value.name): 0 for value in inputs} | {n: a for n, a in outputs.items() if a != streams.CONSTANT}


def _has_derivative(node: Node) -> bool:
    try:
        lookup(node)
    except OnnxplainError:
        return False
    return True


def _random(nodes: Sequence[Node]) -> list[ir.Value]:
    """Results of random generators: they depend on nothing and are no constants."""
    return [value for node in nodes if draws_at_random(node) for value in node.outputs]
