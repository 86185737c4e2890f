"""Write a compiled graph: in one piece while it fits, its weights never doubled, all of it or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxplain.errors import InputError
from onnxplain.graph.outline import outline
from onnxplain.graph.weightless import GRAPH, INITIALIZER, RAW, opening

INLINE_LIMIT = 2**31 - 2**24  # bytes of weights that one protobuf file holds beside its nodes
SMALL = 1024  # bytes; smaller weights stay in the model file


def save(model: ir.Model, path: Path, source: Path | None = None) -> dict[str, int]:
    """Write `model` to `path`, replacing what is there; returns where in the file its larger weights begin, by name.

    source: the file it was made from, which must not be that.

    Weights in external files stay there when these lie in the folder of `path`. Elsewhere, and above 2 GB, the weights
    go to `<path>.data`, because onnxruntime reads no weights outside a model's folder. Raises InputError.
    """
    path = Path(path)
    if not path.name or path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give a file name.")
    if source is not None and path.resolve() == Path(source).resolve():
        raise InputError(f"cannot write {path}: it is the model to be explained; give another name.")
    _refuse_weights(model, path)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist.")
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        places = _write(model, folder / path.name, path.parent.resolve())
        for written in sorted(folder.iterdir(), key=lambda p: p.name == path.name):  # the model file last
            _permit(written)
            os.replace(written, path.parent / written.name)
        return places
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_weights(model: ir.Model, path: Path) -> None:
    """Writing must not replace a file that holds weights of what is written, and of the model it was made from."""
    written = {file.resolve() for file in (path, path.with_name(f"{path.name}.data"))}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and (held := Path(tensor.path).resolve()) in written:
            raise InputError(f"cannot write {path}: {held.name} holds weights that are read; give another name.")


def _write(model: ir.Model, path: Path, home: Path) -> dict[str, int]:
    model = model.clone()
    outside, inline = False, 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = moved = _seen_from(home, tensor)
            outside |= moved is tensor
        elif tensor is not None:
            inline += tensor.nbytes
    if outside or inline > INLINE_LIMIT:
        data = path.with_name(f"{path.name}.data")
        ir.save(model, path, external_data=data.name, size_threshold_bytes=SMALL)
        if not data.stat().st_size:  # every weight was small
            data.unlink()
        _declare_maps(path)
        return {}
    return _write_whole(model, path)


def _write_whole(model: ir.Model, path: Path) -> dict[str, int]:
    """One file; a weight is in memory only while it is written. Returns where the larger ones begin."""
    proto, weights = outline(model, files=False)
    _type_maps(proto)
    names, heads = [], []  # of each weight: its name; what stands in front of its numbers, all of it where it is small
    for tensor in proto.graph.initializer:
        names.append(tensor.name)
        size = weights[tensor.name].nbytes if tensor.name in weights else 0
        head = _header(tensor) + opening(RAW, size) if size else tensor.SerializeToString()
        heads.append(opening(INITIALIZER, len(head) + size) + head)
    del proto.graph.initializer[:]
    rest = proto.graph.SerializeToString()
    proto.ClearField("graph")
    places: dict[str, int] = {}
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        size = len(rest) + sum(map(len, heads)) + sum(tensor.nbytes for tensor in weights.values())
        file.write(opening(GRAPH, size) + rest)
        for name, head in zip(names, heads, strict=True):
            file.write(head)
            if name in weights:
                places[name] = file.tell()
                if file.write(weights[name].tobytes()) != weights[name].nbytes:
                    raise InputError(f"cannot write {path}: the weight {name} has another size than its type says.")
    return places


def _header(tensor: onnx.TensorProto) -> bytes:
    """A tensor without numbers."""
    header = onnx.TensorProto()
    header.CopyFrom(tensor)
    header.ClearField("external_data")
    header.ClearField("data_location")
    return header.SerializeToString()


def _declare_maps(path: Path) -> None:
    proto = onnx.load(path, load_external_data=False)
    _type_maps(proto)
    onnx.save(proto, path)


def _type_maps(proto: onnx.ModelProto) -> None:
    """Give ZipMap's answers their type: onnx-ir has no word for maps, and the checker wants every output typed."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    for output in proto.graph.output:
        node = makers.get(output.name)
        if not output.HasField("type") and node is not None and node.op_type == "ZipMap":
            entry = output.type.sequence_type.elem_type.map_type
            words = any(attribute.name == "classlabels_strings" for attribute in node.attribute)
            entry.key_type = onnx.TensorProto.STRING if words else onnx.TensorProto.INT64
            entry.value_type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            entry.value_type.tensor_type.shape.SetInParent()


def _seen_from(home: Path, tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """The tensor with its file named from the folder `home`; itself where the file lies outside."""
    file = Path(tensor.path).resolve()
    if not file.is_relative_to(home):
        return tensor
    location = file.relative_to(home).as_posix()
    return ir.ExternalTensor(
        location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name or "", base_dir=home
    )


def _permit(path: Path) -> None:
    """The permissions a file made in the usual way would have."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
