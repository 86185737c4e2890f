"""Are two answers the same but for rounding?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain.bfloat16 import BFLOAT16, is_floating

TOLERANCE = 1e-5  # of the largest value
HALF_TOLERANCE = 1e-2  # the same where anything is computed in 16 bits
HALF = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def tolerance(model: ir.Model) -> float:
    """How far two forms of a model may differ, by the coarsest precision inside; its ports may be finer.

    float32 rounds at 6e-8, float16 at 5e-4, bfloat16 at 4e-3. TOLERANCE is 170 roundings of float32, HALF_TOLERANCE 20
    of float16: a folded BatchNormalization rounds every weight once more, a joined bias saves one rounding a layer.
    A wrong rewrite is off by far more than 1 %.
    """
    owners = [model.graph, *(function.graph for function in model.functions.values())]
    if any(value.dtype in HALF for value in (*model.graph.inputs, *model.graph.initializers.values())):
        return HALF_TOLERANCE
    for owner in owners:
        for node in owner.all_nodes():
            to = node.attributes.get("to" if node.op_type == "Cast" else "dtype")
            if to is not None and to.type == ir.AttributeType.INT and to.as_int() in HALF:
                return HALF_TOLERANCE
            fill = node.attributes.get("value")
            if fill is not None and fill.type == ir.AttributeType.TENSOR and fill.as_tensor().dtype in HALF:
                return HALF_TOLERANCE
            if any(value.dtype in HALF for value in node.outputs):
                return HALF_TOLERANCE
    return TOLERANCE


def mismatch(
    expected: Mapping[str, Any],
    outputs: Mapping[str, Any],
    bounded: Collection[str] = frozenset(),
    tolerance: float = TOLERANCE,
) -> str | None:
    """How outputs differ from the expected ones beyond rounding; None where they do not.

    bounded: outputs of Sigmoid and the like, whose scale is 1 however small they are. tolerance: of the largest value.
    """
    before, after = arrays(expected), arrays(outputs)
    for name, y in before.items():
        if name not in after:
            return f"the output {name} is missing"
        problem = _mismatch(y, after[name], 1.0 if name in bounded else 0.0, tolerance)
        if problem is not None:
            return f"output {name}: {problem}"
    return None


def arrays(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Outputs as arrays; sequences and maps become one array an entry."""
    result: dict[str, np.ndarray] = {}
    for name, value in outputs.items():
        if isinstance(value, np.ndarray):
            result[name] = value
        elif isinstance(value, Mapping):
            result.update(arrays({f"{name}[{key}]": np.asarray(entry) for key, entry in value.items()}))
        elif isinstance(value, (list, tuple)):
            result.update(arrays({f"{name}[{i}]": entry for i, entry in enumerate(value)}))
        elif value is not None:
            result[name] = np.asarray(value)
    return result


def _mismatch(y: np.ndarray, other: np.ndarray, scale: float, tolerance: float) -> str | None:
    if y.shape != other.shape or y.dtype != other.dtype:
        return f"was {y.dtype}{list(y.shape)}, is {other.dtype}{list(other.shape)}"
    if not is_floating(y):
        wrong = int((y != other).sum())
        return f"{wrong} of {y.size} values differ" if wrong else None
    if y.size == 0:
        return None
    if y.dtype in (np.float16, BFLOAT16):
        tolerance = max(tolerance, HALF_TOLERANCE)
    with np.errstate(all="ignore"):
        finite = np.isfinite(y)
        if not np.array_equal(finite, np.isfinite(other)):
            return "other values are infinite or not a number"
        if not finite.any():
            return None
        y, other = y[finite].astype(np.float64), other[finite].astype(np.float64)
        worst = float(np.abs(y - other).max()) / max(float(np.abs(y).max()), scale, 1e-30)
    return f"differs by {worst:.1e} of its largest value" if worst > tolerance else None
