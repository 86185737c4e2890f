"""Read a model file: what it holds, or one line that says why it cannot be used."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxplain.errors import InputError, UnsupportedModel
from onnxplain.frontend.limits import check_sizes
from onnxplain.frontend.proto_graph import stored_bytes, tensors
from onnxplain.frontend.validate import check
from onnxplain.graph.inference import has_map
from onnxplain.graph.stored_graph import HoldsModel
from onnxplain.graph.weight_files import Content, File, Store, StoredTensor, sha256
from onnxplain.graph.weightless import weightless

MAX_OPSET = 26  # the newest that onnxruntime 1.31 runs
MAX_IR = 13  # likewise
MAX_BYTES = 1 << 31  # protobuf's own limit; larger models keep their weights in other files
EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}  # all that ONNX knows
SHARED = 4  # times that the bytes of a weights file may be used: tied weights are stored once

FORMATS = {  # first bytes of files that people take for models
    b"version https://git-lfs": "a Git LFS pointer (fetch the file itself: git lfs pull)",
    b"PK\x03\x04": "a zip archive (a PyTorch or Keras checkpoint?); export it to ONNX",
    b"\x89HDF\r\n": "an HDF5 file (Keras?); export it to ONNX",
    b"\x80\x02": "a pickle (PyTorch?); export it to ONNX",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"ORTM": "an onnxruntime .ort file; use the .onnx it was made from",
}


@dataclass(frozen=True)
class Source(HoldsModel):
    """A model as it came: the graph, where it lies, its fingerprint.

    path: None for a model that came as bytes. sha256: of the file (of the serialised bytes without one), in hex;
    weights in external files are not part of it. weight_inputs: initializers that an old model also lists among its
    inputs; the graph here no longer does. faithful: whether `path` can be given to onnxruntime as it is. outline: the
    file's bytes without its larger weights, which `model` has; empty where other tensors lie outside too.
    """

    model: ir.Model
    path: Path | None
    sha256: str
    weight_inputs: tuple[str, ...] = ()
    faithful: bool = True
    outline: bytes = b""


def load(path: str | os.PathLike[str]) -> Source:
    """Read, check and fingerprint a model file; weights stay on disk until somebody looks at them."""
    path = Path(path)
    return _source(_opened(path), path, str(path))


def from_proto(model: onnx.ModelProto | bytes) -> Source:
    """The same for a model in memory. It may not refer to external files."""
    content = model if isinstance(model, bytes) else model.SerializeToString(deterministic=True)
    return _source(Content(content), None, "model")


def _source(store: Store, path: Path | None, label: str) -> Source:
    if not store.size:
        raise UnsupportedModel(f"{label}: the file is empty")
    mark = f"onnxplain.{secrets.token_hex(16)}"  # not to be foreseen: a file cannot say that its weights lie there
    proto = onnx.ModelProto()
    try:
        outline = weightless(store, mark)
        proto.ParseFromString(outline)
    except DecodeError as error:
        raise UnsupportedModel(f"{label}: {_what_is(store)}") from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise UnsupportedModel(f"{label}: {_what_is(store)}")
    digest = sha256(store)
    for entry in proto.opset_import:
        if entry.domain == "ai.onnx":
            entry.domain = ""
    for entry in proto.opset_import:
        if entry.domain == "" and entry.version > MAX_OPSET:
            raise UnsupportedModel(
                f"{label}: opset {entry.version} is newer than onnxruntime runs ({MAX_OPSET}); "
                f"export the model with opset {MAX_OPSET} or below"
            )
    faithful = path is not None and proto.ir_version <= MAX_IR
    proto.ir_version = min(proto.ir_version, MAX_IR)
    check(proto, label, mark)
    folder = path.parent if path is not None else None
    _check_all_external(proto, folder, label, mark)
    check_sizes(proto, label)
    for node in proto.graph.node:  # messages name nodes; the first output's name is one that users can find
        node.name = node.name or next(filter(None, node.output), "")
    _untype_maps(proto.graph, label)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__  # type: ignore[assignment]
        raise UnsupportedModel(f"{label}: not a valid ONNX model: {' '.join(str(cause).split())}") from error
    _store_weights(model, store, mark)
    if path is not None:
        ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    weight_inputs = tuple(value.name or "" for value in model.graph.inputs if value.name in model.graph.initializers)
    if weight_inputs:
        kept = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
        model.graph.inputs.clear()
        model.graph.inputs.extend(kept)
    model.graph.sort()
    listed = {tensor.name for tensor in proto.graph.initializer}
    if weight_inputs or any(tensor.name not in listed for tensor in external_tensors(proto)):
        outline = b""
    return Source(model, path, digest, weight_inputs, faithful, outline)


def _store_weights(model: ir.Model, store: Store, mark: str) -> None:
    """The weights declared at `mark` are read from the store."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.location == mark:
            value.const_value = StoredTensor(store, tensor.offset or 0, tensor.dtype, tensor.shape, name)


def _untype_maps(graph: onnx.GraphProto, label: str) -> None:
    """Maps (ZipMap's answers) lose their type, which onnx-ir has no word for; `compile.save` declares it again."""
    for value in graph.input:
        if has_map(value.type):
            raise UnsupportedModel(f"{label}: the input {value.name[:80]!r} is a map; only arrays can be fed")
    for value in (*graph.value_info, *graph.output):
        if has_map(value.type):
            value.ClearField("type")


def _opened(path: Path) -> File:
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a directory, not a model file")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is a pipe, a device or a socket, not a model file")
        if status.st_size > MAX_BYTES:
            raise UnsupportedModel(f"{path}: has {status.st_size} bytes; an ONNX file has {MAX_BYTES} at most")
        return File(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _what_is(store: Store) -> str:
    """What a file that is no model seems to be."""
    head = store.take(0, min(4096, store.size))
    for magic, what in FORMATS.items():
        if head.startswith(magic):
            return f"not an ONNX model but {what}"
    if head[4:8] == b"TFL3":
        return "not an ONNX model but a TensorFlow Lite one; convert it with tf2onnx"
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 4096 else "ignore")
    except UnicodeDecodeError:
        text = "\0"
    if all(character.isprintable() or character in "\r\n\t\f" for character in text):
        return "not an ONNX model but a text file"
    return "not a readable ONNX model (truncated, damaged or another format)"


def external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model whose numbers lie in another file."""
    return (tensor for tensor in tensors(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL)


def check_external(tensor: onnx.TensorProto, folder: Path | None, label: str) -> tuple[Path, int]:
    """The file must exist, lie in the model's folder and hold the tensor's numbers; returns it, and how many bytes."""
    entry = {item.key: item.value for item in tensor.external_data}
    location = entry.get("location", "")
    who, where = f"{label}: weights of {tensor.name[:80]!r}", repr(location[:80])
    if folder is None:
        raise UnsupportedModel(f"{who} lie in the file {where}; load the model by its path")
    if len(entry) < len(tensor.external_data):
        raise UnsupportedModel(f"{who} say twice where they lie")
    if strange := sorted(str(key)[:80] for key in entry.keys() - EXTERNAL_KEYS):
        raise UnsupportedModel(f"{who} lie in a file with the unknown key {strange[0]!r}")
    if not location or "\0" in location:
        raise UnsupportedModel(f"{who} name no external file")
    base = folder.resolve()
    outside = os.path.isabs(location) or ".." in Path(location.replace("\\", "/")).parts
    try:
        target = (base / location).resolve()
        if outside or not target.is_relative_to(base):
            raise UnsupportedModel(f"{who} point outside the model's folder: {where}")
        if not target.is_file():
            raise UnsupportedModel(f"{who} need the file {where}, which is not beside the model")
        status = target.stat()
    except (OSError, RuntimeError) as error:  # a name too long, a link to itself
        raise UnsupportedModel(f"{who} need the file {where}, which cannot be followed") from error
    if status.st_nlink > 1:
        raise UnsupportedModel(f"{who}: the file {where} has several hard links; copy it, so that it is one file")
    try:
        offset, dtype = int(entry.get("offset", 0)), ir.DataType(tensor.data_type)
        needed = (prod(tensor.dims) * dtype.bitwidth + 7) // 8
        length = int(entry.get("length", needed))
    except (ValueError, TypeError) as error:
        raise UnsupportedModel(
            f"{who} have an offset, length or type that cannot be read: {str(error)[:120]}"
        ) from error
    size = status.st_size
    if offset < 0 or length < 0 or offset + length > size or length < needed:
        raise UnsupportedModel(
            f"{who} need {str(needed)[:30]} bytes at offset {str(offset)[:30]} of {where} (length {str(length)[:30]}), "
            f"which has {size} bytes"
        )
    return target, needed


def _check_all_external(proto: onnx.ModelProto, folder: Path | None, label: str, mark: str) -> None:
    """Each weight lies where it may; and no file is read as a thousand weights, each of its full size."""
    needed: dict[Path, int] = {}
    for tensor in external_tensors(proto):
        if stored_bytes(tensor, mark) is not None:
            continue
        path, size = check_external(tensor, folder, label)
        needed[path] = needed.get(path, 0) + size
    for path, total in needed.items():
        if total > SHARED * path.stat().st_size:
            raise UnsupportedModel(
                f"{label}: the weights in {path.name[:80]!r} are {total} bytes, the file has {path.stat().st_size}: "
                f"it is read several times; store each weight once"
            )
