"""bfloat16 arrays: ml_dtypes has the type, numpy and onnxruntime's Python do not know it. Here they meet.

onnxruntime takes such an array as a value of its own and gives none back as an array: it is copied out of its memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
from onnx import TensorProto

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TYPE = "tensor(bfloat16)"  # onnxruntime's word


def is_floating(array: np.ndarray) -> bool:
    """Whether the numbers are floating point: of bfloat16, numpy's own test says that they are not."""
    return array.dtype.kind == "f" or array.dtype == BFLOAT16


def widened(array: np.ndarray) -> np.ndarray:
    """The same numbers, as float32 where they are bfloat16, so that all of numpy can work with them."""
    return array.astype(np.float32) if array.dtype == BFLOAT16 else array


def run(
    session: onnxruntime.InferenceSession,
    names: Sequence[str],
    feeds: Mapping[str, np.ndarray],
    options: onnxruntime.RunOptions,
) -> list[Any]:
    """As `session.run`, of a session with bfloat16 among its inputs or outputs; of those fed, of those returned."""
    values = {name: _fed(array) for name, array in feeds.items()}
    types = {value.name: value.type for value in session.get_outputs()}
    if not any(types.get(name) == TYPE for name in names):
        return list(session.run(names, values, options))
    ready = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }
    return [_fetched(value) for value in session.run_with_ort_values(names, ready, options)]


def mentioned(session: onnxruntime.InferenceSession) -> bool:
    """Whether any input or output is bfloat16."""
    return any(value.type == TYPE for value in (*session.get_inputs(), *session.get_outputs()))


def _fed(array: np.ndarray) -> Any:
    if array.dtype != BFLOAT16:
        return array
    bits = np.ascontiguousarray(array).view(np.uint16).reshape(array.shape)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)


def _fetched(value: Any) -> Any:
    if value.data_type() != TYPE:
        return value.numpy()
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape, dtype=np.int64)))
    return np.frombuffer(raw, BFLOAT16).reshape(shape)
