"""The registry of derivatives: `@vjp("Relu", ...)` says all the library knows of an op, in one place.

A derivative has the form `(op, node, g) -> [gradient per input or None]`: op emits nodes, node is the forward step,
g the gradient at its output, with axes (S, *output axes) where S streams stand in the place of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.relevance import Portion, Relevance, values
from onnxplain.graph.signs import SignRule
from onnxplain.graph.streams import AxisRule
from onnxplain.graph.walk import Arrived, Derivative

Kind = Literal[
    "linear", "sum", "mean", "product", "affine", "routing", "activation", "softmax", "normalisation", "flat", "other"
]
"""What an op is to relevance; composites go by it.

linear: weights times one activation (Conv, Gemm, MatMul). sum: of several activations (Add). mean: an average or sum
over axes of one. product: of several activations (Mul). affine: a sum or product of one activation with what takes no
relevance (where the node stands: never registered). routing: every output is a copy of an input (Reshape, MaxPool).
activation: elementwise. softmax, normalisation: as they say. flat: derivative zero everywhere. other: gradient only.
"""
SilentRule = Callable[[Node], Collection[int]]
"""Indices of the inputs of a node that carry no derivative by nature: shapes, indices, conditions, lengths."""
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
    """All that is registered of an op type."""

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
STEPS: dict[str, AxisRule | None] = {}
"""Ops whose output does not move with their input, and how the batch axis goes through them."""


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
) -> Callable[[Derivative], Derivative]:
    """Register the derivative of one or several op types.

    linear: the op is linear in its first input (tested by the adjoint identity in float32). broadcasts: inputs may be
    stretched; the walk sums gradients back. all_outputs: g is a list with one gradient or None per output. streams: how
    the batch axis moves (`graph.streams`); None: not proven. sign: when the output cannot be negative (`graph.signs`).
    cases: tests; at least one per op type, used for each of them. silent: inputs that carry no derivative by nature.
    Every other input that depends on an attributed tensor must get a gradient. unbounded: the derivative may be
    infinite where the output is not (a square root at 0). alone: the kind where one input only (at that index) can
    receive relevance, if that is another.
    """
    which: SilentRule = silent if callable(silent) else lambda node: silent

    def register(function: Derivative) -> Derivative:
        for op_type in op_types:
            if op_type in OPS:
                raise ValueError(f"the derivative of {op_type} is registered twice")
            OPS[op_type] = Op(
                op_types,
                function,
                kind,
                linear,
                broadcasts,
                all_outputs,
                streams,
                sign,
                tuple(cases),
                domain,
                which,
                unbounded,
                alone,
            )
        return function

    return register


def steps(*op_types: str, streams: AxisRule | None = None) -> None:
    """Declare ops that carry no derivative at all: comparisons, positions, shapes. streams: as for `vjp`."""
    STEPS.update(dict.fromkeys(op_types, streams))


def known(node: Node) -> Op | None:
    """What is registered of a node's op; None for one that nobody knows, and for those of STEPS."""
    entry = OPS.get(node.op_type)
    return entry if entry is not None and node.domain in ("", entry.domain) else None


STEP = Op((), lambda op, node, g: [None] * len(node.inputs), "flat", broadcasts=True)
"""What every op of STEPS is to the walk."""


def silent_inputs(node: Node) -> Collection[int]:
    """Inputs of a node that carry no derivative by nature; none for an op that nobody knows."""
    everything = range(len(node.inputs) + len(node.captured))
    if node.domain == "" and node.op_type in STEPS:
        return everything
    entry = known(node)
    if entry is None:
        return ()
    return everything if entry.kind == "flat" else entry.silent(node)


def lookup(node: Node) -> Op:
    """The entry for a node, or an error that says what to do."""
    if node.domain == "" and node.op_type in STEPS:
        return STEP
    if node.op_type.startswith("TreeEnsemble"):
        raise UnsupportedOp(
            f"{node}: a tree ensemble is constant between its thresholds, so its derivative is zero everywhere and no "
            f"relevance rule applies. It needs a forward-only method (occlusion, LIME, KernelSHAP, permutation), which "
            f"this version does not have yet."
        )
    entry = known(node)
    if entry is None:
        domain = f"{node.domain}::" if node.domain else ""
        raise UnsupportedOp(
            f"{node}: no derivative for {domain}{node.op_type} (opset {node.version}), which lies between the "
            f"explained tensor and the input. Explain a tensor below it (--explain), or attribute to one above it "
            f"(--attribute-to); `onnxplain inspect` lists both."
        )
    return entry


def axis_rules() -> dict[str, AxisRule]:
    """How the batch axis moves through every op type known."""
    rules = {**STEPS, **{name: entry.streams for name, entry in OPS.items()}}
    return {name: rule for name, rule in rules.items() if rule is not None}


def sign_rules() -> dict[str, SignRule]:
    """When the output of an op type is known not to be negative."""
    return {name: entry.sign for name, entry in OPS.items() if entry.sign is not None}
