"""Append the backward pass to a normalised model and give both the names of the contract."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxplain import __version__
from onnxplain.compile import provenance
from onnxplain.compile.analysis import Analysis
from onnxplain.compile.contract import Request, Resolved
from onnxplain.compile.feature_maps import weigh
from onnxplain.compile.fold import fold, share
from onnxplain.compile.ledger import COLUMNS, LEDGER, Ledger
from onnxplain.compile.reference_forward import FED, Baseline, add_reference, drop_unread, require_followed
from onnxplain.compile.seeds import Seeds
from onnxplain.compile.tokens import token_rule
from onnxplain.composites import Composite
from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.frontend.normalise import Normalised
from onnxplain.graph.backward_builder import STREAMS
from onnxplain.graph.node import Node, is_float, rank
from onnxplain.graph.relevance import Relevance
from onnxplain.graph.stored_graph import HoldsModel
from onnxplain.graph.walk import Rule, backward, prune
from onnxplain.rules import RULES, RuleCall
from onnxplain.rules.contrast import DERIVATIVE, LAST_LAYER_RULES
from onnxplain.rules.finishes import Finish
from onnxplain.rules.starts import Start
from onnxplain.vjp import lookup


@dataclass(frozen=True)
class Propagation:
    """How relevance is made. name and recipe say for whom; passes: what each pass does to the last rule.

    baseline: the reference that rules of differences compare with; FED: inputs `<input>.reference`; None: no reference.
    """

    name: str
    composite: Composite
    start: Start
    finish: Finish
    passes: tuple[str, ...] = ("",)
    recipe: dict[str, Any] = field(default_factory=dict)
    baseline: Baseline | None = None


@dataclass
class Compiled(HoldsModel):
    """A compiled explanation graph. streams: whether the stream count is free.

    relevances: output → source tensor; references: reference input → the input it is the reference of.
    """

    model: ir.Model
    seeds: dict[str, str]
    relevances: dict[str, str]
    streams: bool
    provenance: dict[str, Any]
    notes: list[str]
    seconds: float
    references: dict[str, str] = field(default_factory=dict)


def compile_graph(normalised: Normalised, resolved: Resolved, propagation: Propagation, request: Request) -> Compiled:
    """The explanation graph of a normalised model. Raises UnsupportedOp, UnsupportedModel, UsageError."""
    begun = time.perf_counter()
    model = normalised.model.clone()
    job = _Job(model, normalised, resolved, propagation, request)
    with job.op.arithmetic():
        job.build()
    return job.finish(time.perf_counter() - begun)


def survey(
    normalised: Normalised, resolved: Resolved, propagation: Propagation, request: Request
) -> tuple[dict[str, str], dict[str, str]]:
    """The rule every node on the path would get, and for each node that has none the reason. Nothing is emitted."""
    model, finish = normalised.model.clone(), propagation.finish
    found = Analysis(model, resolved, propagation.composite, request, finish, strict=False)
    rules, blocked = found.rules(propagation.composite)
    return (
        {step_name(node): rule_text(rule, node) for node, rule in rules.items()},
        {step_name(node): reason for node, reason in blocked.items()},
    )


def step_name(node: Node) -> str:
    """How a report names a node."""
    return node.name or str(node.y.name)


class _Job:
    """One compilation."""

    def __init__(
        self, model: ir.Model, normalised: Normalised, resolved: Resolved, propagation: Propagation, request: Request
    ) -> None:
        self.model, self.graph = model, model.graph
        self.normalised, self.resolved, self.propagation, self.request = normalised, resolved, propagation, request
        self.forward_count = len(list(self.graph))
        self.found = Analysis(model, resolved, propagation.composite, request, propagation.finish)
        self.op = self.found.op
        if (baseline := FED if request.reference else propagation.baseline) is not None:
            add_reference(self.op, self.found.sources, baseline)
        if propagation.composite.differences:
            require_followed(self.op, self.found.path, self.found.nodes, self.found.sources, self.found.passes)
        self.rules = {node: propagation.composite.rule_for(place) for node, place in self.found.places.items()}
        propagation.composite.check_assignments(self.found.places.values())
        self._say_missed_boxes()
        self.seeds = Seeds(self.op, request.seed, list(self.found.values))
        self.relevances: dict[str, str] = {}
        self.references: dict[str, str] = {}
        self.ledger_rows: list[str] = []

    def _say_missed_boxes(self) -> None:
        """Where the bounds of the input do not say where the first layer's input lies, another rule stands in."""
        for node, place in self.found.places.items():
            if (missed := self.propagation.composite.missed(place)) is not None:
                self.found.notes.append(
                    f"{node} has {rule_text(self.rules[node], node)} in place of {missed.name}: the bounds of the "
                    f"model's input do not say where this layer's input lies (give --rule first=box(low=…,high=…) in "
                    f"its unit)"
                )

    def _check_spread(self) -> None:
        """Relevance on units near 0 must not be divided by them on its way to the first layer with weights."""
        for node, rule in self.rules.items():
            if not self.found.places[node].top or not isinstance(rule, RuleCall) or self.op.is_nonnegative(node.y):
                continue
            if RULES[rule.name].by_output:
                raise UsageError(
                    f"{self.propagation.name} gives the other classes relevance whatever their logits are, and {node} "
                    f"has the rule {rule.name}, which divides by them: a logit near 0 would take over the map. Use "
                    f"clrp2, or another rule there (--rule last=z_plus)."
                )

    def build(self) -> None:
        """Seeds, passes, outputs."""
        op = self.op
        poison: list[ir.Value] = []
        starts: list[dict[ir.Value, Relevance]] = [{} for _ in self.propagation.passes]
        first_seed: ir.Value | None = None
        for y in self.found.explained:
            seed, invalid = self.seeds.declare(y)
            poison += [] if invalid is None else [invalid]
            first_seed = first_seed or seed
            for start, r in zip(starts, self.propagation.start.initial(op, seed, y), strict=True):
                op.reshaped(r.value, op.stream_shape(y))  # inference cannot tell streams from the batch
                start[y] = r
        assert first_seed is not None
        if self.propagation.start.spreads:
            self._check_spread()
        ledger = Ledger(op, first_seed, 0 if op.facts.free else None) if self.request.ledger else None
        arrived = [self._walk(start, how, ledger) for start, how in zip(starts, self.propagation.passes, strict=True)]
        weigh(op, self.found.layer, self.propagation.finish, arrived, self.found.wanted)
        outputs = list(self.graph.outputs)
        names = [str(value.name) for value in self.normalised.model.graph.outputs]
        del self.graph.outputs[:]
        self.graph.outputs.extend(outputs[: len(names)])
        for value, name in self.found.wanted.items():
            self._output(
                self._relevance(value, [found.get(value) for found in arrived], first_seed, poison),
                f"{name}.relevance",
                name,
            )
        for name in self.request.keep:
            if self.found.values[name] not in self.graph.outputs:
                self.graph.outputs.append(self.found.values[name])
        if ledger is not None:
            result = ledger.emit()
            self._output(result, LEDGER, "")
            self.ledger_rows = ledger.rows
        self.references = drop_unread(op, self.propagation.name)
        prune(self.graph, self.forward_count)
        share(self.graph, self.forward_count)
        if self.request.fold:
            fold(self.model, self.forward_count)

    def _walk(self, start: dict[ir.Value, Relevance], how: str, ledger: Ledger | None) -> dict[ir.Value, Relevance]:
        applied: dict[Node, Rule] = {}

        def rule_of(node: Node) -> Rule:
            rule = lookup(node).rule if how == DERIVATIVE else self.rules[node]
            if how in LAST_LAYER_RULES and self.found.places[node].last and self.found.places[node].kind == "linear":
                rule = LAST_LAYER_RULES[how](rule)  # type: ignore[arg-type]
            if ledger is not None:
                ledger.begin()
            token = token_rule(self.op, node, self.found.active, self.propagation.finish)
            applied[node] = token or rule
            return applied[node]

        def done(node: Node, outputs: list[Relevance | None], inputs: list[Relevance | None]) -> None:
            if ledger is not None:
                ledger.add(node, applied[node], outputs, inputs)

        return backward(self.op, self.found.path, start, self.found.active, rule_of, lookup, self.found.passes, done)

    def _relevance(
        self, value: ir.Value, passes: list[Relevance | None], seed: ir.Value, poison: list[ir.Value]
    ) -> ir.Value:
        op = self.op
        if all(r is None for r in passes):
            self.found.notes.append(f"the relevance of {value.name} is zero: no rule gives it any")
            return op.zeros(seed, value)
        rs = [op.zeros(seed, value) if r is None else r.value for r in passes]
        if is_float(value):
            result = self.propagation.finish.combine(op, rs, value)
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
        return op.reshaped(result, self.propagation.finish.shape(op, value))

    def _output(self, value: ir.Value, name: str, source: str) -> None:
        if name in self.found.values:
            raise UnsupportedModel(
                f"the model has a tensor named {name!r}, which the compiled graph needs for an output. Rename it."
            )
        if value.is_graph_input() or value in self.graph.outputs or value.producer() is None:
            value = self.op.Identity(value)
        value.name = name
        self.graph.outputs.append(value)
        if source:
            self.relevances[name] = source

    def finish(self, seconds: float) -> Compiled:
        """Provenance and the model's outside."""
        free = self.op.facts.free
        content: dict[str, Any] = {
            "version": __version__,
            "sha256": self.normalised.source.sha256,
            "method": self.propagation.name,
            "recipe": {
                "composite": self.propagation.composite.name,
                "entries": self.propagation.composite.text(),
                "passes": list(self.propagation.passes),
                **self.propagation.recipe,
            },
            "seeds": self.seeds.names,
            "relevances": self.relevances,
            "heads": dict(self.resolved.heads),
            "streams": STREAMS if free else "exact",
            "stream_axis": {
                name: self.op.facts.axes.get(self.found.values[source], 0) if free else None
                for name, source in self.relevances.items()
            },
            "rules": {step_name(node): rule_text(self.rules[node], node) for node in self.found.path},
            "changes": list(self.normalised.changes),
            "forward_nodes": self.forward_count,
        }
        if self.references:
            content["references"] = self.references
        if self.op.facts.channels:
            content["maps"] = {str(value.name): {"channels": n} for value, n in self.op.facts.channels.items()}
        if self.request.ledger:
            content["ledger"] = {"rows": self.ledger_rows, "columns": list(COLUMNS)}
        provenance.write(self.model, content)
        self._restore_ports()
        self.model.producer_name, self.model.producer_version = "onnxplain", __version__
        notes = [*self.normalised.notes, *self.found.notes]
        return Compiled(self.model, self.seeds.names, self.relevances, free, content, notes, seconds, self.references)

    def _restore_ports(self) -> None:
        """The model's own inputs and outputs as the source declares them: inference named their open lengths."""
        source = self.normalised.source.model.graph
        declared = {value.name: value for value in (*source.inputs, *source.outputs)}
        for value in (*self.graph.inputs, *self.graph.outputs):
            if (original := declared.get(value.name)) is not None:
                value.shape = None if original.shape is None else original.shape.copy()


def rule_text(rule: Rule, node: Node) -> str:
    """How a report names a rule: as the command line writes it, `vjp` for the derivative."""
    return "vjp" if rule == lookup(node).rule else str(rule)
