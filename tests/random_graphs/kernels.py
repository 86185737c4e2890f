"""Evaluation of drawn graphs in float64: the corrected kernels of `support`, and those that onnx's evaluator lacks."""

from __future__ import annotations

import numpy as np
import onnx
import support
from nets import widened
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = np.ndarray


class FusedMatMul(OpRun):
    """alpha a b, with the last two axes of either transposed: onnxruntime's own op, which no shape inference knows."""

    op_domain = "com.microsoft"

    def _run(self, a, b, alpha=1.0, transA=0, transB=0):  # type: ignore[override]  # noqa: N803
        return (alpha * np.matmul(np.swapaxes(a, -1, -2) if transA else a, np.swapaxes(b, -1, -2) if transB else b),)


class BatchNormalization(OpRun):
    """onnx's evaluator has another one below opset 14, off by a tenth."""

    op_domain = ""

    def _run(self, x, scale, bias, mean, var, epsilon=1e-5, **attributes):  # type: ignore[override]
        scale, bias, mean, var = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, bias, mean, var))
        return ((x - mean) / np.sqrt(var + epsilon) * scale + bias,)


class Optional(OpRun):
    """onnx's evaluator makes a list of it, which OptionalGetElement does not undo."""

    op_domain = ""

    def _run(self, x=None, type=None):  # type: ignore[override]
        return (x,)


def elementwise(name: str, function):
    """A kernel of one input that computes in the type of its input."""

    class Kernel(OpRun):
        op_domain = ""

        def _run(self, x, **attributes):  # type: ignore[override]
            return (np.asarray(function(x, **attributes), x.dtype),)

    Kernel.__name__ = name
    return Kernel


OWN = [
    *support.OWN_KERNELS,
    BatchNormalization,
    FusedMatMul,
    Optional,
    elementwise("Softplus", lambda x: np.logaddexp(0, x)),
    elementwise("Mish", lambda x: x * np.tanh(np.logaddexp(0, x))),
    elementwise("HardSwish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
]


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """onnx's evaluator with the kernels above."""
    return ReferenceEvaluator(model, new_ops=OWN)


def wide(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in float64, round trips through float16 included: rounding is the identity to a derivative."""
    model = widened(model)
    narrow = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

    def graph(g: onnx.GraphProto) -> None:
        for node in g.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    graph(attribute.g)
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i in narrow:
                    attribute.i = onnx.TensorProto.DOUBLE

    graph(model.graph)
    return model


def rounds(model: onnx.ModelProto) -> bool:
    """Whether values pass through float16 on the way."""
    casts = [a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"]
    return onnx.TensorProto.FLOAT16 in casts
