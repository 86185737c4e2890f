"""Arrays by name as bytes and back: an ONNX graph of nothing but tensors, so that every type ONNX has can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


def to_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Arrays of numbers and texts. Raises TypeError for anything else, such as sequences and maps."""
    graph = onnx.GraphProto()
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} is no array")
        graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
    return graph.SerializeToString()


def from_bytes(content: bytes | memoryview) -> dict[str, np.ndarray]:
    """What `to_bytes` was given."""
    graph = onnx.GraphProto()
    graph.ParseFromString(bytes(content))
    return {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in graph.initializer}
