"""Append the backward pass to a normalised model and give both the names of the contract."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain import __version__
from onnxplain.compile import provenance
from onnxplain.compile.contract import Request, Resolved, candidates, tensors
from onnxplain.compile.fold import fold, share
from onnxplain.compile.ledger import COLUMNS, NAME, Ledger
from onnxplain.composites import LAST_RULES, Composite, places
from onnxplain.errors import OnnxplainError, UnsupportedModel, UsageError
from onnxplain.graph import signs, streams
from onnxplain.graph.backward import STREAMS, Backward, Facts
from onnxplain.graph.node import Node, dims, is_float, rank, static
from onnxplain.graph.normalise import Normalised
from onnxplain.graph.patterns import recognise
from onnxplain.graph.walk import Gradient, Rule, active_values, backward, needed_nodes, prune
from onnxplain.rules.endpoints import Finish, Start
from onnxplain.vjp import OPS, axis_rules, lookup, sign_rules


@dataclass(frozen=True)
class Recipe:
    """How relevance is made. name and options say whose recipe it is; passes: what each pass does to the last rule."""

    name: str
    composite: Composite
    start: Start
    finish: Finish
    passes: tuple[str, ...] = ("",)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Compiled:
    """A compiled explanation graph. streams: whether the stream count is free; relevances: output → source tensor."""

    model: ir.Model
    seeds: dict[str, str]
    relevances: dict[str, str]
    streams: bool
    provenance: dict[str, Any]
    notes: list[str]
    seconds: float


def compile_graph(normalised: Normalised, resolved: Resolved, recipe: Recipe, request: Request) -> Compiled:
    """The explanation graph of a normalised model. Raises UnsupportedOp, UnsupportedModel, UsageError."""
    begun = time.perf_counter()
    model = normalised.model.clone()
    job = _Job(model, normalised, resolved, recipe, request)
    with job.op.arithmetic():
        job.build()
    return job.finish(time.perf_counter() - begun)


def survey(
    normalised: Normalised, resolved: Resolved, recipe: Recipe, request: Request
) -> tuple[dict[str, str], dict[str, str]]:
    """The rule every node on the path would get, and for each node that has none the reason. Nothing is emitted."""
    job = _Job(normalised.model.clone(), normalised, resolved, recipe, request, strict=False)
    rules, blocked = {}, {}
    for node in reversed(job.path):
        name = node.name or str(node.y.name)
        try:
            lookup(node)
            place = job.places.get(node)
            rules[name] = "" if place is None else rule_text(recipe.composite.rule_for(place), node)
        except OnnxplainError as error:
            blocked[name] = str(error)
    return rules, blocked


class _Job:
    """One compilation: what is found once and used by several steps."""

    def __init__(
        self,
        model: ir.Model,
        normalised: Normalised,
        resolved: Resolved,
        recipe: Recipe,
        request: Request,
        strict: bool = True,
    ) -> None:
        self.model, self.graph = model, model.graph
        self.normalised, self.resolved, self.recipe, self.request = normalised, resolved, recipe, request
        self.notes: list[str] = [*normalised.notes, *resolved.notes]
        self.values = tensors(self.graph)
        self.explained = [self._value(name) for name in resolved.explained]
        self.inputs = [value for value in self.graph.inputs if value.name not in self.graph.initializers]
        opset = self.graph.opset_imports.get("", 18)
        self.forward_count = len(list(self.graph))
        single = [Node.of(node, opset) for node in self.graph]
        protected = {self._value(name) for name in resolved.protected}
        self.nodes = recognise(single, protected) if recipe.composite.relevance else single
        constants = self._constants()
        self.op = Backward(self.graph, Facts())
        self.op.facts = Facts(
            streams.track(single, self.inputs, axis_rules()),
            False,
            signs.nonnegative(single, sign_rules()),
            constants,
        )
        self.op.constants = set(constants)
        self.wanted = self._wanted()
        self.active = active_values(self.nodes, self.wanted, self._passes)
        self.path = needed_nodes(self.nodes, self.explained, self.active, self._passes)
        self._check_reached()
        self.op.facts.free = self._streams_are_free()
        known = self.path if strict else [node for node in self.path if _has_derivative(node)]
        self.places = places(self.op, known)
        self.rules: dict[Node, Rule] = {}
        self.seeds: dict[str, str] = {}
        self.relevances: dict[str, str] = {}
        self.ledger_rows: list[str] = []

    def _value(self, name: str) -> ir.Value:
        if name not in self.values:
            raise UnsupportedModel(f"tensor {name!r} did not survive normalisation.")
        return self.values[name]

    def _constants(self) -> set[ir.Value]:
        """Tensors that depend on no input of the model."""
        found = set(self.graph.initializers.values())
        for node in self.graph:
            if node.op_type.startswith("Random"):
                continue
            if all(value is None or value in found for value in node.inputs) and not _has_graph(node):
                found.update(node.outputs)
        return found

    # -- what is attributed ------------------------------------------------------------------------------------------

    def _wanted(self) -> dict[ir.Value, str]:
        """Attributed tensors → name of the relevance."""
        if self.request.attribute_to:
            named = {self._value(name): name for name in self.request.attribute_to}
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

    # -- streams -----------------------------------------------------------------------------------------------------

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

    # -- the graph ---------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Seeds, passes, outputs."""
        op = self.op
        self.rules = {node: self.recipe.composite.rule_for(place) for node, place in self.places.items()}
        poison: list[ir.Value] = []
        starts: list[dict[ir.Value, ir.Value]] = [{} for _ in self.recipe.passes]
        first_seed: ir.Value | None = None
        for y in self.explained:
            seed, invalid = self._seed(y)
            poison += [] if invalid is None else [invalid]
            first_seed = first_seed or seed
            for start, r in zip(starts, self.recipe.start(op, seed, y), strict=True):
                start[y] = r
        assert first_seed is not None
        ledger = Ledger(op, first_seed, 0 if op.facts.free else None) if self.request.ledger else None
        arrived = [self._walk(start, how, ledger) for start, how in zip(starts, self.recipe.passes, strict=True)]
        outputs = list(self.graph.outputs)
        names = [str(value.name) for value in self.normalised.model.graph.outputs]
        del self.graph.outputs[:]
        self.graph.outputs.extend(outputs[: len(names)])
        for value, name in self.wanted.items():
            self._output(
                self._relevance(value, [found.get(value) for found in arrived], poison), f"{name}.relevance", name
            )
        for name in self.request.keep:
            if self.values[name] not in self.graph.outputs:
                self.graph.outputs.append(self.values[name])
        if ledger is not None:
            result = ledger.emit()
            self._output(result, NAME, "")
            self.ledger_rows = ledger.rows
        prune(self.graph, self.forward_count)
        share(self.graph, self.forward_count)
        if self.request.fold:
            fold(self.model, self.forward_count)

    def _seed(self, y: ir.Value) -> tuple[ir.Value, ir.Value | None]:
        """The seed of one explained tensor, and for `--seed index` which streams have an index out of range."""
        op = self.op
        dtype = ir.DataType.DOUBLE if y.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
        if self.request.seed == "tensor":
            return self._exact(self._input(f"{y.name}.seed", op.stream_shape(y), dtype), y), None
        shape = op.stream_shape(y)
        if not shape:
            raise UsageError(f"--seed index: {y.name} has rank 0, there is nothing to index. Use --seed tensor.")
        count = len(shape) - 1
        if count == 0:
            raise UsageError(f"--seed index: {y.name} has no axis besides the batch. Use --seed tensor.")
        target = self._input(f"{y.name}.target", shape[:1] if count == 1 else [shape[0], count], ir.DataType.INT64)
        if count == 1:
            target = op.Unsqueeze(target, op.ints([1]))
        hits: ir.Value | None = None
        valid: ir.Value | None = None
        for axis in range(1, len(shape)):
            index = op.Slice(target, op.ints([axis - 1]), op.ints([axis]), op.ints([1])) if count > 1 else target
            length = shape[axis]
            size = op.ints([length]) if isinstance(length, int) else op.size(y, axis)
            inside = op.And(op.GreaterOrEqual(index, op.ints([0])), op.Less(index, size))
            valid = inside if valid is None else op.And(valid, inside)
            if isinstance(length, int):
                positions = op.constant(np.arange(length, dtype=np.int64), ir.DataType.INT64)
            else:
                scalar = op.Squeeze(size, op.ints([0]))
                positions = op.Range(op.constant(0, ir.DataType.INT64), scalar, op.constant(1, ir.DataType.INT64))
            hit = op.Equal(index, op.Unsqueeze(positions, op.ints([0])))  # (streams, length)
            spread = [i for i in range(1, len(shape)) if i != axis]
            hit = op.Unsqueeze(hit, op.ints(spread)) if spread else hit
            hits = hit if hits is None else op.And(hits, hit)
        seed = op.Cast(hits, to=int(dtype))
        self.op.reshaped(seed, shape)
        return self._exact(seed, y), op.Not(valid)

    def _exact(self, seed: ir.Value, y: ir.Value) -> ir.Value:
        """Where streams are not free, refuse a seed of another shape when it comes: onnxruntime compares no symbols."""
        if self.op.facts.free or static(y) is not None:
            return seed
        return self.op.reshaped(self.op.Reshape(seed, self.op.Shape(y)), dims(y))

    def _input(self, name: str, shape: Sequence[int | str | None], dtype: ir.DataType) -> ir.Value:
        if name in self.values:
            raise UnsupportedModel(
                f"the model has a tensor named {name!r}, which the compiled graph needs for its seed. Rename it."
            )
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.graph.inputs.append(value)
        self.seeds[name] = name.rsplit(".", 1)[0]
        return value

    def _walk(self, start: dict[ir.Value, ir.Value], how: str, ledger: Ledger | None) -> dict[ir.Value, ir.Value]:
        def rule_of(node: Node) -> Rule:
            rule = self.rules[node]
            if how and self.places[node].last and self.places[node].kind == "linear":
                rule = LAST_RULES[how](rule)  # type: ignore[arg-type]
            if ledger is not None:
                ledger.begin()
            token = self._token_rule(node, rule)
            return _group(rule) if node.members and rule is lookup(node).vjp else token or rule

        return backward(
            self.op,
            self.path,
            start,
            self.active,
            rule_of,
            lookup,
            None if ledger is None else ledger.add,
        )

    def _token_rule(self, node: Node, rule: Rule) -> Rule | None:
        """At a table look-up of integer tokens, or a Cast from integers, relevance turns to the integers."""
        if node.op_type == "Gather" and node.inputs[1] in self.active and node.inputs[0] not in self.active:
            return lambda op, n, g: [None, self._tokens(n, g)]
        if node.op_type == "Cast" and not is_float(node.x):
            if not is_float(node.y):
                return lambda op, n, g: [g]
            return lambda op, n, g: [self.recipe.finish.combine(op, [g], n.y)]
        return None

    def _tokens(self, node: Node, g: ir.Value) -> ir.Value:
        """Relevance per token: the finish at the embedding, summed over the feature axes."""
        op = self.op
        axis = node.attr("axis", 0) % rank(node.x)
        features = rank(node.x) - 1
        if axis != 0 or features < 1:
            raise UnsupportedModel(
                f"{node}: tokens are looked up along axis {axis}; only tables (tokens, features) are known."
            )
        if features > 1:
            indices = node.inputs[1]
            assert indices is not None
            flat = [0] * rank(indices) + [-1]
            g = op.Reshape(g, op.ints(flat))
            y = op.once(("flat features", node.y), lambda: op.Reshape(node.y, op.ints(flat)))
        else:
            y = node.y
        return self.recipe.finish.token(op, [g], y)

    def _relevance(self, value: ir.Value, passes: list[Gradient], poison: list[ir.Value]) -> ir.Value:
        op = self.op
        found = [r if r is not None else None for r in passes]
        if any(r is None for r in found):
            raise UnsupportedModel(f"no relevance arrives at {value.name}: every path to it has a derivative of zero.")
        rs = [r for r in found if r is not None]
        if is_float(value):
            result = self.recipe.finish.combine(op, rs, value)
        elif len(rs) > 1:
            raise UnsupportedModel(
                f"{value.name}: this method takes two passes, which tokens do not have. Use --form paper."
            )
        else:
            result = rs[0]
        for invalid in poison:
            axis = op.stream_axis(value)
            if axis is None:  # which rows belong to which seed is not known: all of them
                invalid = op.ReduceMax(op.Cast(invalid, to=int(ir.DataType.INT32)), keepdims=0)
                invalid = op.Cast(invalid, to=int(ir.DataType.BOOL))
            else:
                invalid = op.Reshape(invalid, op.ints([-1 if i == axis else 1 for i in range(rank(value))]))
            result = op.Where(invalid, float("nan"), result)
        return op.reshaped(result, op.stream_shape(value))

    def _output(self, value: ir.Value, name: str, source: str) -> None:
        if name in self.values:
            raise UnsupportedModel(
                f"the model has a tensor named {name!r}, which the compiled graph needs for an output. Rename it."
            )
        if value.is_graph_input() or value in self.graph.outputs or value.producer() is None:
            value = self.op.Identity(value)
        value.name = name
        self.graph.outputs.append(value)
        if source:
            self.relevances[name] = source

    # -- afterwards --------------------------------------------------------------------------------------------------

    def finish(self, seconds: float) -> Compiled:
        """Provenance and the model's outside."""
        free = self.op.facts.free
        content: dict[str, Any] = {
            "version": __version__,
            "sha256": self.normalised.source.sha256,
            "method": self.recipe.name,
            "recipe": {
                "composite": self.recipe.composite.name,
                "entries": self.recipe.composite.text(),
                "passes": list(self.recipe.passes),
                **self.recipe.options,
            },
            "seeds": self.seeds,
            "relevances": self.relevances,
            "heads": dict(self.resolved.heads),
            "streams": STREAMS if free else "exact",
            "stream_axis": {
                name: self.op.facts.axes.get(self.values[source], 0) if free else None
                for name, source in self.relevances.items()
            },
            "rules": {node.name or str(node.y.name): rule_text(self.rules[node], node) for node in self.path},
            "changes": list(self.normalised.changes),
        }
        if self.request.ledger:
            content["ledger"] = {"rows": self.ledger_rows, "columns": list(COLUMNS)}
        provenance.write(self.model, content)
        self._restore_ports()
        self.model.producer_name, self.model.producer_version = "onnxplain", __version__
        return Compiled(self.model, self.seeds, self.relevances, free, content, self.notes, seconds)

    def _restore_ports(self) -> None:
        """The model's own inputs and outputs as the source declares them: inference named their open lengths."""
        source = self.normalised.source.model.graph
        declared = {value.name: value for value in (*source.inputs, *source.outputs)}
        for value in (*self.graph.inputs, *self.graph.outputs):
            if (original := declared.get(value.name)) is not None:
                value.shape = None if original.shape is None else original.shape.copy()


def rule_text(rule: Rule, node: Node) -> str:
    """How a report names a rule: as the command line writes it, `vjp` for the derivative."""
    return "vjp" if rule is lookup(node).vjp else str(rule)


def _group(rule: Rule) -> Rule:
    """The derivative of a recognised pattern: the chain of its members'."""

    def apply(op: Backward, node: Node, g: ir.Value | list[Gradient]) -> list[Gradient]:
        wanted = {value for value in node.inputs if value is not None}
        active = active_values(node.members, wanted, lambda n, i: n.inputs[i] is not None and is_float(n.inputs[i]))  # type: ignore[arg-type]
        path = needed_nodes(node.members, node.outputs, active)
        assert isinstance(g, ir.Value)
        found = backward(op, path, {node.y: g}, active, lambda n: lookup(n).vjp, lookup)
        return [None if value is None else found.get(value) for value in node.inputs]

    return apply


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
