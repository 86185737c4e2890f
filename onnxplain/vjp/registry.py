"""The registry of derivatives: `@vjp("Relu", ...)` says all the library knows of an op, in one place.

A derivative has the form `(op, node, g) -> [gradient per input or None]`: op emits nodes, node is the forward step,
g the gradient at its output, with axes (S, *output axes) where S streams stand in the place of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.bounds import BoundStep
from onnxplain.graph.masks import MaskStep
from onnxplain.graph.node import Node
from onnxplain.graph.relevance import Portion, Relevance, values
from onnxplain.graph.signs import SignRule
from onnxplain.graph.streams import AxisRule
from onnxplain.graph.walk import Arrived, Derivative, Gradient
from onnxplain.vjp.facts import Claim, Head, Kind, SilentRule, TokenInput, Weights, claim, never
from onnxplain.vjp.underived import UNDERIVED, underived

Sample = Literal["normal", "positive", "apart", "unit", "away", "above"]
"""How test inputs are drawn. apart: no two values within 0.1 (maxima). unit: inside (-0.9, 0.9). away: |x| >= 0.2
(kinks at 0). above: between 1.2 and 3."""


@dataclass(frozen=True)
class Case:
    """One test of a derivative: tuples are shapes of random float inputs, arrays constants, the rest attributes."""

    inputs: dict[str, tuple[int, ...] | np.ndarray | None]
    attributes: dict[str, Any]
    sample: Sample = "normal"
    outputs: int = 1
    opset: int = 18
    constant: tuple[str, ...] = ()


def case(
    sample: Sample = "normal", outputs: int = 1, opset: int = 18, constant: tuple[str, ...] = (), **given: Any
) -> Case:
    """A case: `case(x=(2, 3), w=(3, 4), transB=1)`. None is an absent input; `constant` names inputs held fixed."""
    inputs = {k: v for k, v in given.items() if v is None or isinstance(v, (tuple, np.ndarray))}
    return Case(inputs, {k: v for k, v in given.items() if k not in inputs}, sample, outputs, opset, constant)


@dataclass(frozen=True)
class Op:
    """All that is registered of an op type, in the words of `vjp`."""

    types: tuple[str, ...]
    vjp: Derivative
    kind: Kind
    linear: bool = False
    broadcasts: bool = False
    all_outputs: bool = False
    streams: AxisRule | None = None
    sign: SignRule | None = None
    cases: Sequence[Case] = field(default_factory=tuple)
    domain: str = ""
    silent: SilentRule = lambda node: ()
    unbounded: bool = False
    alone: Callable[[int], Kind] | None = None
    weights: Weights | None = None
    own_rule: str = ""
    commutes: bool = False
    zero_at_zero: Claim = never
    rectifies: Claim = never
    zero_or_input: bool = False
    converts: bool = False
    pads: bool = False
    token: TokenInput | None = None
    mask: MaskStep = ""
    bounds: BoundStep | None = None
    head: Head = ""
    lengths: bool = False

    def routes(self, node: Node) -> bool:
        """Whether every output is a copy of an input, so that relevance follows the value it belongs to."""
        return self.kind == "routing" and node.attr("reduction", "none") == "none"

    def rule(self, op: Backward, node: Node, r: Arrived) -> Sequence[Portion]:
        """The derivative as a rule: what moves values moves what is known of their relevance, the rest forgets it."""
        arrived = r if isinstance(r, list) else [r]
        given: Any = values(arrived) if isinstance(r, list) else arrived[0] and arrived[0].value
        routed = self.routes(node) and all(
            relevance is None or y in relevance.zero_with for y, relevance in zip(node.outputs, arrived, strict=False)
        )
        return [
            None if g is None else Relevance(g, frozenset([x]) if routed and x is not None else frozenset())
            for x, g in zip(node.inputs, self.vjp(op, node, given), strict=True)
        ]

    def forgets(self, node: Node, index: int) -> UnsupportedOp:
        """An input depends on what is attributed, and the derivative has nothing for it."""
        value = (*node.inputs, *node.captured)[index]
        inside = " inside its body" if index >= len(node.inputs) else ""
        return UnsupportedOp(
            f"{node}: {value.name if value is not None else index}, its input {index}, is computed from what is "
            f"attributed{inside}, and the derivative of {node.op_type} does not cover that input. Explain a tensor "
            f"below it (--explain), or attribute to one above it (--attribute-to)."
        )

    def unsupported(self, node: Node) -> UnsupportedOp:
        """Relevance arrived at a second output."""
        return UnsupportedOp(
            f"{node}: the explained tensor depends on output 1 or later "
            f"({', '.join(v.name or '' for v in node.outputs[1:])}), and the derivative of {node.op_type} covers "
            f"output 0 only. Explain another tensor (--explain)."
        )


OPS: dict[str, Op] = {}
STEPS: dict[str, Op] = {}
"""Ops whose output does not move with their input."""


def vjp(
    *op_types: str,
    kind: Kind,
    linear: bool = False,
    broadcasts: bool = False,
    all_outputs: bool = False,
    streams: AxisRule | None = None,
    sign: SignRule | None = None,
    cases: Sequence[Case] = (),
    domain: str = "",
    silent: Sequence[int] | SilentRule = (),
    unbounded: bool = False,
    alone: Callable[[int], Kind] | None = None,
    weights: Weights | None = None,
    own_rule: str = "",
    commutes: bool = False,
    zero_at_zero: bool | Claim = False,
    rectifies: bool | Claim = False,
    zero_or_input: bool = False,
    converts: bool = False,
    pads: bool = False,
    token: TokenInput | None = None,
    mask: MaskStep = "",
    bounds: BoundStep | None = None,
    head: Head = "",
) -> Callable[[Derivative], Derivative]:
    """Register the derivative of one or several op types.

    linear: the op is linear in its first input (tested by the adjoint identity in float32). broadcasts: inputs may be
    stretched; the walk sums gradients back. all_outputs: g is a list with one gradient or None per output. streams: how
    the batch axis moves (`graph.streams`); None: not proven. sign: when the output cannot be negative (`graph.signs`).
    cases: tests; at least one per op type, used for each of them. silent: inputs that carry no derivative by nature.
    Every other input that depends on an attributed tensor must get a gradient. unbounded: the derivative may be
    infinite where the output is not (a square root at 0). alone: the kind where one input only (at that index) can
    receive relevance, if that is another.

    What rules ask. weights: of kind linear, which operands are weights and bias (`facts.Weights`). own_rule: the rule
    that was made for this op, where its kind's is another or is for this op only. commutes: of a sum or product: its
    operands may be exchanged; where they may not, the second one counts negated (Sub) or inverted (Div). zero_at_zero:
    the output is zero wherever the first input is. rectifies: negative inputs become 0 (Relu). zero_or_input: the
    output is the input wherever it is not zero, and onnxruntime fuses the op with the layer before (Relu).

    What the compiler asks. converts: it changes the type of values and nothing else (Cast). pads: what of a relevance
    it loses fell on padding. token: where it reads integers as tokens. mask: what it does to a mask that holds -inf
    (`graph.masks`). bounds: how the bounds of its input go through (`graph.bounds`); None: nothing is known. head: what
    it is at the end of a model.
    """

    def register(function: Derivative) -> Derivative:
        for op_type in op_types:
            if op_type in OPS:
                raise ValueError(f"the derivative of {op_type} is registered twice")
            OPS[op_type] = Op(
                types=op_types,
                vjp=function,
                kind=kind,
                linear=linear,
                broadcasts=broadcasts,
                all_outputs=all_outputs,
                streams=streams,
                sign=sign,
                cases=tuple(cases),
                domain=domain,
                silent=silent if callable(silent) else lambda node: silent,
                unbounded=unbounded,
                alone=alone,
                weights=weights,
                own_rule=own_rule,
                commutes=commutes,
                zero_at_zero=claim(zero_at_zero),
                rectifies=claim(rectifies),
                zero_or_input=zero_or_input,
                converts=converts,
                pads=pads,
                token=token,
                mask=mask,
                bounds=bounds,
                head=head,
            )
        return function

    return register


def _nothing(op: Backward, node: Node, g: Any) -> list[Gradient]:
    return [None] * len(node.inputs)


def steps(*op_types: str, **options: Any) -> None:
    """Declare ops that carry no derivative at all: comparisons, positions, shapes.

    Options streams, token, mask as for `vjp`; lengths: it reads the lengths of its input, not its values.
    """
    for op_type in op_types:
        STEPS[op_type] = Op(op_types, _nothing, "flat", broadcasts=True, **options)


def known(node: Node) -> Op | None:
    """What is registered of a node's op; None for one that nobody knows, and for those of STEPS."""
    entry = OPS.get(node.op_type)
    return entry if entry is not None and node.domain in ("", entry.domain) else None


def registered(node: Node) -> Op | None:
    """As `known`, with the ops of STEPS."""
    return STEPS[node.op_type] if node.domain == "" and node.op_type in STEPS else known(node)


def silent_inputs(node: Node) -> Collection[int]:
    """Inputs of a node that carry no derivative by nature; none for an op that nobody knows."""
    everything = range(len(node.inputs) + len(node.captured))
    entry = registered(node)
    if entry is None:
        return ()
    return everything if entry.kind == "flat" else entry.silent(node)


def lookup(node: Node) -> Op:
    """The entry for a node, or an error that says what to do."""
    entry = registered(node)
    if entry is not None:
        return entry
    if (blocking := underived(node)) is not None:
        raise UnsupportedOp(f"{node}: {blocking.why}")
    domain = f"{node.domain}::" if node.domain else ""
    raise UnsupportedOp(
        f"{node}: no derivative for {domain}{node.op_type} (opset {node.version}), which lies between the "
        f"explained tensor and the input. Explain a tensor below it (--explain), or attribute to one above it "
        f"(--attribute-to); `onnxplain inspect` lists both."
    )


def weight_and_bias(op: Backward, node: Node) -> tuple[int, int, Gradient] | None:
    """(index of the activation, index of the weight, bias) of a linear node with one constant operand, else None."""
    weights = lookup(node).weights
    bias = node.input(2)
    if weights is None or not op.is_constant(bias):
        return None
    for activation, weight in weights.operands(node):
        if op.is_constant(node.input(weight)) and not op.is_constant(node.input(activation)):
            return activation, weight, bias
    return None


def of_family(family: str) -> list[str]:
    """The op types whose layers are of a family."""
    return [name for name, entry in OPS.items() if entry.weights is not None and entry.weights.family == family]


def axis_rules() -> dict[str, AxisRule]:
    """How the batch axis moves through every op type known."""
    entries = {**STEPS, **OPS}
    followed = {name: entry.streams for name, entry in entries.items() if entry.streams is not None}
    return {name: entry.streams for name, entry in UNDERIVED.items()} | followed


def sign_rules() -> dict[str, SignRule]:
    """When the output of an op type is known not to be negative."""
    return {name: entry.sign for name, entry in OPS.items() if entry.sign is not None}


def mask_steps() -> dict[str, MaskStep]:
    """What op types do to a mask."""
    return {name: entry.mask for name, entry in {**STEPS, **OPS}.items() if entry.mask}


def bound_steps() -> Mapping[str, BoundStep]:
    """How bounds go through op types."""
    return {name: entry.bounds for name, entry in OPS.items() if entry.bounds is not None}
