"""Arrays to tensors of both protocols and back. What a client claims about its bytes is checked before numpy sees it.

Datatypes are the Open Inference Protocol's words. Raw bytes are row-major and little-endian without padding, and become
an array without another copy, read-only. Strings (BYTES) are UTF-8, as ONNX's are; their arrays hold `str` objects.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from onnxplain.errors import InputError, UnsupportedModel
from onnxplain.v1 import tensor_pb2

Array = NDArray[Any]

RANK = 16  # axes of a tensor; numpy has 64, ONNX models hardly 8
ELEMENTS = 2**31  # of a tensor; what one protobuf message cannot hold anyway
INPUTS = 1024  # of a request
SHARED_MEMORY = "shared_memory_region"  # the parameter with which a tensor says that its bytes lie elsewhere

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{
        f"{sign}INT{8 * size}": np.dtype(f"<{sign.lower() or 'i'}{size}") for sign in ("U", "") for size in (1, 2, 4, 8)
    },
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
OF_NUMPY = {dtype.name: datatype for datatype, dtype in DATATYPES.items()}
CONTENTS = {  # the field of InferTensorContents that carries a datatype; FP16 and BF16 have none
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@cache  # numpy makes a dtype's name anew each time it is asked, and a request asks for several
def datatype_of(dtype: DTypeLike) -> str:
    """The wire's word for a numpy dtype or its name. Raises UnsupportedModel where there is none, as for complex64."""
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if dtype.kind in "US":
        return "BYTES"
    if dtype.name not in OF_NUMPY:
        raise UnsupportedModel(f"{dtype.name} tensors cannot be sent; add a Cast to one of {', '.join(OF_NUMPY)}.")
    return OF_NUMPY[dtype.name]


def size_of(datatype: str, shape: Sequence[int], field: str) -> tuple[int, int]:
    """(elements, bytes) that a tensor claims to have, for BYTES the least. Raises InputError at the wrong field."""
    if datatype not in DATATYPES:
        known = ", ".join(DATATYPES)
        raise InputError(f"{field}: no datatype named {quoted(datatype)}. Known: {known}.").at(f"{field}.datatype")
    if len(shape) > RANK:
        raise InputError(f"{field}: {len(shape)} axes, at most {RANK} are taken.").at(f"{field}.shape")
    if any(side < 0 for side in shape):
        raise InputError(f"{field}: shape {list(shape)} has a negative side. Give the data's own.").at(f"{field}.shape")
    if math.prod(max(side, 1) for side in shape) > ELEMENTS:  # beside a side of 0 as well: numpy overflows there
        raise InputError(f"{field}: shape {list(shape)} is beyond {ELEMENTS} elements.").at(f"{field}.shape")
    count = math.prod(shape)
    return count, count * (4 if datatype == "BYTES" else DATATYPES[datatype].itemsize)


def to_array(datatype: str, shape: Sequence[int], raw: bytes, field: str, raw_field: str = "") -> Array:
    """The array that raw bytes stand for, read-only. raw_field: where the bytes lie, default `<field>.raw`."""
    where = raw_field or f"{field}.raw"
    count, size = size_of(datatype, shape, field)
    if datatype == "BYTES":
        return _objects(_strings(raw, count, where), shape)
    if len(raw) != size:
        raise InputError(f"{where}: {len(raw)} bytes, {datatype} of shape {list(shape)} takes {size}.").at(where)
    if datatype == "BOOL" and size and np.frombuffer(raw, np.uint8).max() > 1:
        raise InputError(f"{where}: a BOOL is the byte 0 or 1.").at(where)
    return np.frombuffer(raw, DATATYPES[datatype]).reshape(tuple(shape))


def to_raw(array: Array) -> bytes:
    """The bytes of an array, whatever its strides and byte order."""
    datatype = datatype_of(array.dtype)
    if datatype != "BYTES":
        return array.astype(DATATYPES[datatype], copy=False).tobytes()
    encoded = [text if isinstance(text, bytes) else str(text).encode() for text in array.reshape(-1).tolist()]
    return b"".join(part for text in encoded for part in (struct.pack("<I", len(text)), text))


def converted(array: Array, datatype: str, field: str = "output_format.datatype") -> Array:
    """The array in another datatype, "" its own. Values beyond the new type's range become infinite."""
    if not datatype:
        return array
    if datatype not in DATATYPES or (datatype == "BYTES") != (datatype_of(array.dtype) == "BYTES"):
        raise InputError(f"{field}: {array.dtype.name} cannot be sent as {quoted(datatype)}; give FP32 or FP16.").at(
            field
        )
    with np.errstate(over="ignore"):
        return array.astype(DATATYPES[datatype], copy=False)


def v1_array(tensor: tensor_pb2.Tensor, field: str) -> Array:
    """The array of a tensor of our own protocol."""
    if tensor.WhichOneof("content") == "chunked":
        where = f"{field}.chunked"
        raise InputError(f"{where}: chunks come on a stream only. Send `raw`, or use ExplainStream.").at(where)
    return to_array(tensor.datatype, tensor.shape, tensor.raw, field)


def v1_tensor(name: str, array: Array, datatype: str = "") -> tensor_pb2.Tensor:
    """A tensor of our own protocol. datatype: to convert to, "" keeps the array's."""
    array = converted(array, datatype)
    return tensor_pb2.Tensor(name=name, datatype=datatype_of(array.dtype), shape=array.shape, raw=to_raw(array))


def v1_arrays(tensors: Sequence[tensor_pb2.Tensor], field: str = "inputs") -> dict[str, Array]:
    """The arrays of several tensors of our own protocol, by name."""
    _few(tensors, field)
    arrays: dict[str, Array] = {}
    for place, tensor in enumerate(tensors):
        _new(tensor.name, arrays, f"{field}[{place}]")
        arrays[tensor.name] = v1_array(tensor, f"{field}[{place}]")
    return arrays


def infer_arrays(request: Any) -> dict[str, Array]:
    """The inputs of a ModelInferRequest by name."""
    inputs, raw = request.inputs, request.raw_input_contents
    _few(inputs, "inputs")
    for place, tensor in enumerate(inputs):
        if SHARED_MEMORY in tensor.parameters:
            where = f"inputs[{place}].parameters[{SHARED_MEMORY}]"
            raise InputError(f"{where}: there is no shared memory here. Send the bytes.").at(where)
    if raw and len(raw) != len(inputs):
        message = f"raw_input_contents: {len(raw)} entries for {len(inputs)} inputs; give one each, in order, or none."
        raise InputError(message).at("raw_input_contents")
    arrays: dict[str, Array] = {}
    for place, tensor in enumerate(inputs):
        field = f"inputs[{place}]"
        _new(tensor.name, arrays, field)
        if not raw:
            arrays[tensor.name] = _typed(tensor, field)
        elif tensor.contents.ListFields():
            message = f"{field}.contents: beside raw_input_contents. Send the one or the other."
            raise InputError(message).at(f"{field}.contents")
        else:
            where = f"raw_input_contents[{place}]"
            arrays[tensor.name] = to_array(tensor.datatype, tensor.shape, raw[place], field, where)
    return arrays


def infer_outputs(response: Any, arrays: Mapping[str, Array]) -> None:
    """Add arrays to a ModelInferResponse, always raw: FP16 and BF16 have no other form, and clients take both."""
    for name, array in arrays.items():
        response.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        response.raw_output_contents.append(to_raw(array))


def quoted(text: str, most: int = 64) -> str:
    """A client's words for a message: on one line, and cut, because error texts travel in headers."""
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def _few(tensors: Sequence[Any], field: str) -> None:
    if len(tensors) > INPUTS:
        raise InputError(f"{field}: {len(tensors)} tensors, at most {INPUTS} are taken.").at(field)


def _new(name: str, arrays: Mapping[str, Array], field: str) -> None:
    if name in arrays:
        raise InputError(f"{field}: {quoted(name)} is given twice.").at(f"{field}.name")


def _typed(tensor: Any, field: str) -> Array:
    """An input whose elements come one by one."""
    where, datatype = f"{field}.contents", tensor.datatype
    count, _ = size_of(datatype, tensor.shape, field)
    if datatype not in CONTENTS:
        raise InputError(f"{where}: {datatype} has no typed contents; use raw_input_contents.").at(where)
    name = CONTENTS[datatype]
    for described, _ in tensor.contents.ListFields():
        if described.name != name:
            raise InputError(f"{where}: {described.name} given, {datatype} is in {name}.").at(
                f"{where}.{described.name}"
            )
    where, values = f"{where}.{name}", getattr(tensor.contents, name)
    if len(values) != count:
        shape = list(tensor.shape)
        raise InputError(f"{where}: {len(values)} elements, shape {shape} takes {count}.").at(where)
    if datatype == "BYTES":
        return _objects((_decoded(text, number, where) for number, text in enumerate(values)), tensor.shape)
    dtype = DATATYPES[datatype]
    wide = np.fromiter(values, {"i": np.int64, "u": np.uint64}.get(dtype.kind, dtype), count)
    narrow = wide.astype(dtype, copy=False)
    if dtype.kind in "iu" and not np.array_equal(wide, narrow):
        raise InputError(f"{where}: a value is out of the range of {datatype}.").at(where)
    return narrow.reshape(tuple(tensor.shape))


def _strings(raw: bytes, count: int, where: str) -> list[str]:
    """Strings of raw BYTES: each its length in four bytes, then itself."""
    if len(raw) < 4 * count:
        raise InputError(f"{where}: {len(raw)} bytes, {count} strings take at least {4 * count}.").at(where)
    strings, at = list[str](), 0
    for number in range(count):
        end = at + 4 + struct.unpack_from("<I", raw, at)[0] if at + 4 <= len(raw) else len(raw) + 1
        if end > len(raw):
            raise InputError(f"{where}: string {number} ends beyond the {len(raw)} bytes.").at(where)
        strings.append(_decoded(raw[at + 4 : end], number, where))
        at = end
    if at != len(raw):
        raise InputError(f"{where}: {len(raw) - at} bytes behind the last of {count} strings.").at(where)
    return strings


def _decoded(text: bytes, number: int, where: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: string {number} is not UTF-8, as ONNX's strings are.").at(where) from error


def _objects(values: Iterable[str], shape: Sequence[int]) -> Array:
    array = np.empty(math.prod(shape), object)
    array[:] = list(values)
    return array.reshape(tuple(shape))
