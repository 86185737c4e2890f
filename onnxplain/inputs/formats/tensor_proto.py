"""ONNX test data: one TensorProto in a .pb file. The only file of the inputs that knows onnx."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
from onnx import numpy_helper

from onnxplain.errors import InputError
from onnxplain.inputs.formats.registry import Contents, reader
from onnxplain.inputs.paths import read_bytes


@reader(".pb", holds="named array")
def tensor_proto(path: Path) -> Contents:
    """The tensor's values by its name ("" if it has none)."""
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(read_bytes(path))
        if tensor.data_type == onnx.TensorProto.UNDEFINED:
            raise InputError(f"{path}: holds no ONNX tensor. Give a TensorProto as in a model's test_data_set folder.")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(f"{path}: its values lie in another file. Save them inside the tensor.")
        return Contents(path, {tensor.name: numpy_helper.to_array(tensor)})
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not an ONNX tensor, or cut short ({error}).") from error
