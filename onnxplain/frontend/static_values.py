"""What is known of tensors before a run: types, shapes and, where they are few, numbers; carried through a node."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxplain.graph.inference import LONGEST, Operand, infer_outputs

KNOWN = 1024  # elements of a tensor whose contents are followed, because sizes are made of them
# Ops that shapes are computed with; their results are small where their inputs are.
# fmt: off
FOLLOWED = {
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Exp",
    "Expand", "Flatten", "Floor", "Gather", "GatherElements", "Greater", "GreaterOrEqual", "Identity", "Less",
    "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "ReduceMax", "ReduceMin",
    "ReduceProd", "ReduceSum", "Reshape", "Round", "ScatterElements", "ScatterND", "Shape", "Sign", "Size", "Slice",
    "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Where",
}
# fmt: on
PLAIN = {int(getattr(ir.DataType, name)) for name in ("FLOAT", "DOUBLE", "INT32", "INT64", "BOOL")}
WIDTHS = {int(kind) for kind in ir.DataType if kind not in (ir.DataType.UNDEFINED, ir.DataType.STRING)}


@dataclass(frozen=True)
class StaticTensor:
    """What is known of a tensor before the run. shape: None for an open axis. numbers: its contents, if small."""

    kind: int = 0
    shape: tuple[int | None, ...] | None = None
    numbers: np.ndarray | None = None
    letters: int = 0

    @property
    def elements(self) -> int:
        """Open axes count as 1."""
        return 0 if self.shape is None else prod(1 if dim is None else dim for dim in self.shape)

    @property
    def memory(self) -> int:
        """Bytes: four for each element of a type that is not known."""
        return self.elements * (ir.DataType(self.kind).bitwidth // 8 or 1 if self.kind in WIDTHS else 4)

    @classmethod
    def of(cls, tensor: onnx.TensorProto) -> StaticTensor:
        """A weight; its numbers where they are few and here."""
        shape = tuple(tensor.dims)
        here = tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.data_type in PLAIN
        return StaticTensor(
            tensor.data_type, shape, onnx.numpy_helper.to_array(tensor) if here and prod(shape) <= KNOWN else None
        )

    @property
    def told(self) -> bytes | None:
        """The numbers that inference is told, as bytes; None for none."""
        return self.numbers.tobytes() if self.numbers is not None and self.elements <= LONGEST else None

    def operand(self) -> Operand:
        """As inference of a node takes it."""
        numbers = None if self.told is None else onnx.numpy_helper.from_array(np.asarray(self.numbers))
        return Operand(onnx.helper.make_tensor_type_proto(self.kind, self.shape), numbers)


class Outputs:
    """Outputs of nodes by what is known of their inputs. Layers repeat: most nodes have been seen before."""

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], list[StaticTensor]] = {}

    def of(self, node: onnx.NodeProto, inputs: Sequence[StaticTensor], opsets: Mapping[str, int]) -> list[StaticTensor]:
        """One for each output; none where the op or the type of an input is not known."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = opsets.get(domain, 0)
        if not onnx.defs.has(node.op_type, version, domain):
            return []
        if any(name and not tensor.kind for name, tensor in zip(node.input, inputs, strict=True)):
            return []
        known = tuple(
            (tensor.kind, tensor.shape, tensor.told or b"") if name else None
            for name, tensor in zip(node.input, inputs, strict=True)
        )
        attributes = b"".join(attribute.SerializeToString() for attribute in node.attribute)
        key = (domain, node.op_type, version, attributes, len(node.output), known)
        if key not in self._seen:
            try:
                operands = [tensor.operand() if name else None for name, tensor in zip(node.input, inputs, strict=True)]
                inferred = infer_outputs(node, version, operands)
            except Exception:  # what cannot be inferred stays unknown; the run has the last word
                inferred = []
            self._seen[key] = [StaticTensor() if proto is None else _typed(proto) for proto in inferred]
        return self._seen[key]


def with_numbers(
    node: onnx.NodeProto, inputs: Sequence[StaticTensor], made: list[StaticTensor], opsets: Mapping[str, int]
) -> list[StaticTensor]:
    """The outputs with their contents, if these are few."""
    if not made or any(tensor.shape is None or None in tensor.shape or tensor.elements > KNOWN for tensor in made):
        return made
    if node.op_type in ("Shape", "Size"):
        shape = [dim or 0 for dim in inputs[0].shape or ()]
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        whole = np.array(shape[ends.get("start", 0) : ends.get("end")], np.int64)
        return [replace(made[0], numbers=whole if node.op_type == "Shape" else np.array(prod(shape), np.int64))]
    feeds = {name: tensor.numbers for name, tensor in zip(node.input, inputs, strict=True) if name}
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            computed = ReferenceEvaluator(node, opsets={"": opsets.get("", 1)}).run(None, feeds)
    except Exception:  # as above
        return made
    return [replace(tensor, numbers=np.asarray(y)) for tensor, y in zip(made, computed, strict=False)]


def _typed(proto: onnx.TypeProto) -> StaticTensor:
    kind = proto.tensor_type
    if not kind.HasField("shape"):
        return StaticTensor(kind.elem_type)
    sizes = (dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in kind.shape.dim)
    return StaticTensor(kind.elem_type, tuple(sizes))


def computable(node: onnx.NodeProto, inputs: Sequence[StaticTensor]) -> bool:
    """Whether the contents can be followed through a node."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in FOLLOWED:
        return False
    if node.op_type in ("Shape", "Size"):
        return bool(inputs) and inputs[0].shape is not None and None not in inputs[0].shape
    return all(tensor.numbers is not None for name, tensor in zip(node.input, inputs, strict=True) if name)
