"""What is laid over pictures beside what arrives at them: the map of an inner layer, all bias gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxplain.compile.analysis import Analysis
from onnxplain.compile.bias_gradients import bias_gradients
from onnxplain.compile.feature_maps import weigh
from onnxplain.graph.node import Node
from onnxplain.graph.relevance import Relevance
from onnxplain.rules.finishes import Finish


def lay_over_pictures(
    found: Analysis, finish: Finish, arrived: Sequence[dict[ir.Value, Relevance]],
    sent: Mapping[Node, Sequence[Relevance | None]],
) -> None:  # fmt: skip
    """Change what arrives at the attributed pictures as the finish says.

    arrived: of each pass, at every tensor. sent: what each node gave its inputs, in the last pass.

    Raises UsageError, UnsupportedModel.
    """
    op = found.op
    weigh(op, found.layer, finish, arrived, found.wanted)
    if found.layout is None or finish.biases is None:
        return
    biases = bias_gradients(op, arrived[0], sent, found.layout)
    for x in found.wanted:
        if (r := arrived[0].get(x)) is not None:
            arrived[0][x] = r.but(finish.biases(op, r.value * op.real(x), biases, x))
