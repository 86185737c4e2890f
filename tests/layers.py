"""Layers with weights to try the linear rules on: some by hand, and small cases of every registered linear op."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from support import evaluate, one_node, run, sample

from onnxplain.graph.node import Node
from onnxplain.rules import parse_rule
from onnxplain.vjp import OPS, Case, case

BY_HAND = {
    "Gemm": case(x=(1, 5), w=(4, 5), b=(4,), transB=1),
    "Gemm alpha": case(x=(1, 5), w=(5, 4), b=(4,), alpha=-0.5, beta=2.0),
    "MatMul": case(x=(1, 5), w=(5, 4)),
    "Conv": case(x=(1, 2, 5, 6), w=(4, 2, 3, 3), b=(4,), strides=[2, 1], pads=[1, 1, 0, 1]),
    "Conv grouped": case(x=(1, 4, 4, 4), w=(4, 2, 2, 2), group=2, dilations=[2, 1]),
    "Conv 1d": case(x=(1, 3, 7), w=(2, 3, 3), b=(2,)),
    "ConvTranspose": case(x=(1, 3, 3, 3), w=(3, 2, 3, 3), b=(2,), strides=[2, 2]),
}
LARGEST = 30  # numbers in the input of a registered case: its matrix takes a run each


def layers() -> dict[str, Case]:
    """By hand; of other linear ops the small registered cases in which one activation x meets one weight."""
    found = dict(BY_HAND)
    for op_type, entry in OPS.items():
        if entry.kind == "linear" and not any(name.split()[0] == op_type for name in BY_HAND):
            found.update(
                (f"{op_type} {i}", registered)
                for i, registered in enumerate(entry.cases)
                if (0, 1) in weights_of(op_type, registered)
                and isinstance(registered.inputs["x"], tuple)
                and math.prod(registered.inputs["x"]) <= LARGEST
            )
    return found


def weights_of(op_type: str, registered: Case) -> Sequence[tuple[int, int]]:
    """Which operands of a case may be activation and weight."""
    weights = OPS[op_type].weights
    return () if weights is None else weights.operands(Node(op_type, (), (), registered.attributes))


LAYERS = layers()


def relevance(rule: str, op_type: str, layer: Case, feeds, r: np.ndarray, dtype=np.float64, positive: bool = False):
    """Relevance of x by a rule, in float64 by onnx's evaluator, in float32 by onnxruntime."""
    built = one_node(op_type, layer, dtype, rule=parse_rule(rule), positive=positive)
    run_with = evaluate if dtype == np.float64 else run
    return run_with(built.proto, {**feeds, "seed": r.astype(dtype)})["x.relevance"]


def fixed(layer: Case) -> tuple[Case, np.ndarray]:
    """The layer with numbers for its weights, and an input."""
    feeds = sample(layer, np.random.default_rng(0), np.float64)
    weights = {k: v for k, v in feeds.items() if k != "x"}
    return case(x=layer.inputs["x"], **weights, **layer.attributes), feeds["x"]
