"""ONNX test data: one TensorProto in a .pb file. The only file here that knows onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxplain.errors import InputError
from onnxplain.inputs.paths import read_bytes


def read_tensor(path: Path) -> tuple[str, NDArray[Any]]:
    """The tensor's name ("" if it has none) and its values."""
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(read_bytes(path))
        if tensor.data_type == onnx.TensorProto.UNDEFINED:
            raise InputError(f"{path}: holds no ONNX tensor. Give a TensorProto as in a model's test_data_set folder.")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(f"{path}: its values lie in another file. Save them inside the tensor.")
        return tensor.name, numpy_helper.to_array(tensor)
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not an ONNX tensor, or cut short ({error}).") from error
