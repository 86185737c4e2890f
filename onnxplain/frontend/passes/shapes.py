"""Shapes of every tensor, so that equal symbols mean equal lengths and every axis has a number or a symbol.

onnx's own inference comes first. It gives up on Reshape with a free axis: there the elements are counted with
symbols (N*16*5*5 into [-1, 400] leaves N), shapes computed in the graph (Shape, Gather, Concat …) are followed as
lists of such products, and what comes after is inferred again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.frontend.sample_inputs import MEANINGLESS
from onnxplain.graph import uninferred
from onnxplain.graph.inference import LONGEST, infer_model, infer_node
from onnxplain.graph.node import constant

Dim = int | str | None
LIKE_FIRST = {  # ops without inference of their own whose output is shaped as their first input
    ("ai.onnx.ml", "Scaler"),
    ("ai.onnx.ml", "Normalizer"),
    ("ai.onnx.ml", "Imputer"),
    ("ai.onnx.ml", "Binarizer"),
    *(("com.microsoft", op) for op in ("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "SkipLayerNormalization")),
    *(("com.microsoft", op) for op in ("BiasAdd", "SkipSimplifiedLayerNormalization", "RotaryEmbedding")),
    ("", "SimplifiedLayerNormalization"),
}
BROADCASTING = {"Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Equal", "Greater", "Less", "GreaterOrEqual"}
BROADCASTING |= {"LessOrEqual", "Where", "PRelu", "Min", "Max", "Sum", "Mean"}


@dataclass(frozen=True)
class Product:
    """A whole number times symbols: 4*N*H."""

    number: int = 1
    symbols: tuple[str, ...] = ()

    @classmethod
    def of(cls, dim: Dim) -> Product | None:
        """A dimension as a product; None where nothing is known."""
        if isinstance(dim, int):
            return cls(dim)
        return None if dim is None else cls.parse(dim)

    @classmethod
    def parse(cls, text: str) -> Product:
        """The reverse of `dim`; any other text is one symbol."""
        head, _, rest = text.partition("*")
        if rest and head.isdigit():
            return cls(int(head), tuple(sorted(rest.split("*"))))
        return cls(1, tuple(sorted(text.split("*"))) if rest else (text,))

    def dim(self) -> Dim:
        """As a dimension: a number or "4*N"."""
        if not self.symbols:
            return self.number
        return "*".join([*([str(self.number)] if self.number != 1 else []), *self.symbols])

    def __mul__(self, other: Product) -> Product:
        return Product(self.number * other.number, tuple(sorted(self.symbols + other.symbols)))

    def over(self, other: Product) -> Product | None:
        """The exact quotient, None where there is none."""
        left = list(self.symbols)
        for symbol in other.symbols:
            if symbol not in left:
                return None
            left.remove(symbol)
        if other.number == 0 or self.number % other.number:
            return None
        return Product(self.number // other.number, tuple(left))


Entry = Product | None


def infer_shapes(model: ir.Model) -> None:
    """Type and shape of every value, in place."""
    declared = {value: value.shape for node in model.graph for value in node.outputs}
    _forget(model)
    infer_model(model)
    for value, shape in declared.items():
        if value.shape is None and shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) and dim >= 0 else None for dim in shape])
    refine(model)


def refine(model: ir.Model, pinned: Mapping[ir.Value, Sequence[Dim]] | None = None) -> dict[ir.Value, list[Entry]]:
    """Solve what inference left open, node by node. pinned: shapes that are known better than inference knows them.

    Returns what is known of the contents of integer vectors.
    """
    graph = model.graph
    contents: dict[ir.Value, list[Entry]] = {}
    changed: set[ir.Value] = set()
    given = {dim for value in graph.inputs for dim in _dims(value) or [] if isinstance(dim, str)}
    for value, shape in (pinned or {}).items():
        value.shape = ir.Shape(shape)
    for node in graph:
        known = {value: _dims(value) for value in node.outputs}
        if any(value in changed for value in node.inputs) or any(_open(shape) for shape in known.values()):
            _infer(node, model.opset_imports, contents)
        if (node.domain, node.op_type) in LIKE_FIRST and node.inputs[0] is not None:
            solved = _dims(node.inputs[0])
            if node.outputs[0].type is None:
                node.outputs[0].type = node.inputs[0].type
        else:
            solved = _solve(node, contents, given)
        if solved is not None:
            _merge(node.outputs[0], solved)
        content = _content(node, contents)
        if content is not None and len(content) <= LONGEST:
            contents[node.outputs[0]] = content
        for value in node.outputs:
            if pinned is not None and value in pinned:
                value.shape = ir.Shape(pinned[value])
            _name_axes(value)
            if known[value] != _dims(value):
                changed.add(value)
    return contents


def _forget(model: ir.Model) -> None:
    """Declared inner shapes go: their symbols follow no rule. Unnamed axes of inputs get names."""
    outputs = set(model.graph.outputs)
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([None if _meaningless(dim) else dim for dim in _dims(value) or []])
            _name_axes(value)
    for node in model.graph:
        for value in node.outputs:
            if value not in outputs or value.type is not None:
                value.shape = None
        for body in _bodies(node):
            _forget_inside(body, node.op_type == "Loop")


def _forget_inside(body: ir.Graph, loop: bool) -> None:
    """The same in a body. What a Loop carries may have another length each time: only its rank stays."""
    for node in body:
        for value in node.outputs:
            if value not in body.outputs:
                value.shape = None
        for inner in _bodies(node):
            _forget_inside(inner, node.op_type == "Loop")
    for value in (*body.inputs[2:], *body.outputs[1:]) if loop else ():
        if value.shape is not None:
            value.shape = ir.Shape([None] * len(value.shape))


def _bodies(node: ir.Node) -> list[ir.Graph]:
    """Of If, Loop, Scan."""
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]


def _meaningless(dim: Dim) -> bool:
    return dim is None or dim in MEANINGLESS or (isinstance(dim, int) and dim < 0)


def _name_axes(value: ir.Value) -> None:
    if value.shape is not None and any(dim is None for dim in _dims(value) or []):
        value.shape = ir.Shape(
            [f"{value.name}.{i}" if dim is None else dim for i, dim in enumerate(_dims(value) or [])]
        )


def _dims(value: ir.Value) -> list[Dim] | None:
    return None if value.shape is None else [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def _open(shape: list[Dim] | None) -> bool:
    return shape is None or any(dim is None or (isinstance(dim, str) and dim.startswith("unk__")) for dim in shape)


def _infer(node: ir.Node, opsets: Mapping[str, int], contents: Mapping[ir.Value, list[Entry]]) -> None:
    """onnx's inference of one node on what is known by now."""
    if uninferred.infer(node):
        return
    version = opsets.get(node.domain)
    if version is None or not onnx.defs.has(node.op_type, version, node.domain) or _bodies(node):
        return
    if any(value is not None and value.dtype is None for value in node.inputs):
        return

    def type_of(value: ir.Value) -> onnx.TypeProto:
        return onnx.helper.make_tensor_type_proto(int(value.dtype or 0), _dims(value))

    def data_of(value: ir.Value) -> onnx.TensorProto | None:
        tensor = value.const_value
        if tensor is not None:
            return ir.serde.serialize_tensor(tensor) if tensor.size <= LONGEST else None
        content = contents.get(value)
        if content is None or value.shape is None or len(value.shape) != 1:
            return None
        numbers = [entry.number for entry in content if entry is not None and not entry.symbols]
        return onnx.numpy_helper.from_array(np.asarray(numbers, np.int64)) if len(numbers) == len(content) else None

    try:
        inferred = infer_node(node, version, type_of, data_of)
    except Exception:  # what cannot be inferred is learned from the run
        return
    for value, (kind, shape) in zip(node.outputs, inferred, strict=True):
        if value.type is None:
            value.type = kind
        if shape is not None:
            _merge(value, [dim if isinstance(dim, int) else dim.value for dim in shape])


def _merge(value: ir.Value, shape: Sequence[Dim]) -> None:
    """Take over what is known better: numbers before symbols, given symbols before `unk__`."""
    before = _dims(value)
    if before is None or len(before) != len(shape):
        value.shape = ir.Shape(shape)
        return

    def better(old: Dim, new: Dim) -> Dim:
        if isinstance(old, int) or new is None:
            return old
        if isinstance(new, int) or old is None or old.startswith("unk__") or old == f"{value.name}.{len(shape)}":
            return new
        return new if not new.startswith("unk__") else old

    value.shape = ir.Shape([better(old, new) for old, new in zip(before, shape, strict=True)])


def _read(value: ir.Value | None, contents: Mapping[ir.Value, list[Entry]]) -> list[Entry] | None:
    """A vector of integers as products, None where its length is not known."""
    if value is None:
        return None
    if value in contents:
        return contents[value]
    tensor = value.const_value
    if tensor is None or tensor.size > LONGEST or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    array = constant(value)
    return None if array is None else [Product(int(number)) for number in array.reshape(-1)]


def _content(node: ir.Node, contents: Mapping[ir.Value, list[Entry]]) -> list[Entry] | None:
    """The integers a shape computation makes."""
    op, inputs = node.op_type, node.inputs
    if node.domain != "" or not inputs:
        return None
    if op == "Shape":
        shape = None if inputs[0] is None else _dims(inputs[0])
        if shape is None:
            return None
        start, end = node.attributes.get("start"), node.attributes.get("end")
        return [
            Product.of(dim)
            for dim in shape[
                start.as_int() if start is not None else 0 : end.as_int() if end is not None else len(shape)
            ]
        ]
    if op == "Size":
        shape = None if inputs[0] is None else _dims(inputs[0])
        return None if shape is None else [_total([Product.of(dim) for dim in shape])]
    data = _read(inputs[0], contents)
    if op == "Concat":
        parts = [_read(value, contents) for value in inputs]
        if any(part is None for part in parts):
            return None
        return [entry for part in parts if part is not None for entry in part]
    if data is None:
        return None
    if op in ("Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten"):
        return data if node.outputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32) else None
    if op == "Gather":
        picks = _read(inputs[1], contents)
        if picks is None or any(pick is None or pick.symbols or pick.number >= len(data) for pick in picks):
            return None
        return [data[pick.number] for pick in picks if pick is not None]
    if op == "Slice":
        bounds = [_read(value, contents) for value in inputs[1:5]]
        if any(bound is None or len(bound) != 1 or bound[0] is None or bound[0].symbols for bound in bounds):
            return None
        numbers = [bound[0].number for bound in bounds if bound is not None and bound[0] is not None]
        return data[numbers[0] : numbers[1] : numbers[3] if len(numbers) > 3 else 1]
    if op == "ReduceProd":
        return [_total(data)]
    if op == "ConstantOfShape" and len(data) == 1 and data[0] is not None and not data[0].symbols:
        fill = node.attributes.get("value")
        number = int(fill.as_tensor().numpy().reshape(-1)[0]) if fill is not None else 0
        return [Product(number)] * data[0].number if 0 <= data[0].number <= LONGEST else None
    if op == "Where":
        yes, no = _read(inputs[1], contents), _read(inputs[2], contents)
        if yes is None or no is None or not len(data) == len(yes) == len(no):
            return None
        return [
            a if test == Product(1) else b if test == Product(0) else None
            for test, a, b in zip(data, yes, no, strict=True)
        ]
    if op in ("Mul", "Div", "Equal"):
        other = _read(inputs[1], contents)
        if other is None or (len(data) != len(other) and 1 not in (len(data), len(other))):
            return None
        length = max(len(data), len(other))
        pairs = zip(data * (length if len(data) == 1 else 1), other * (length if len(other) == 1 else 1), strict=True)
        if op == "Equal":
            return [_equal(a, b) for a, b in pairs]
        return [None if a is None or b is None else a * b if op == "Mul" else a.over(b) for a, b in pairs]
    return None


def _equal(a: Entry, b: Entry) -> Entry:
    """1 or 0 where it is certain: a length is never negative."""
    if a is None or b is None:
        return None
    if not a.symbols and not b.symbols:
        return Product(int(a.number == b.number))
    numbers = [entry.number for entry in (a, b) if not entry.symbols]
    return Product(0) if numbers and numbers[0] < 0 else None


def _total(entries: Sequence[Entry]) -> Entry:
    if any(entry is None for entry in entries):
        return None
    return reduce(Product.__mul__, [entry for entry in entries if entry is not None], Product())


def _solve(node: ir.Node, contents: Mapping[ir.Value, list[Entry]], given: Collection[str]) -> list[Dim] | None:
    """The output shape of an op whose shape is data."""
    if node.domain != "" or len(node.inputs) < 2 or node.inputs[0] is None:
        if node.domain == "" and node.op_type == "ConstantOfShape":
            target = _read(node.inputs[0], contents)
            return None if target is None else [None if entry is None else entry.dim() for entry in target]
        return None
    if node.op_type in BROADCASTING:
        return _broadcast([_dims(value) for value in node.inputs if value is not None], given)
    if node.op_type == "Range":
        start, limit, delta = (_read(value, contents) for value in node.inputs)
        return [limit[0].dim()] if start == [Product(0)] and delta == [Product(1)] and limit and limit[0] else None
    shape = _dims(node.inputs[0])
    if node.op_type == "Resize" and shape is not None:
        return _resize(node, shape, contents)
    target = _read(node.inputs[1], contents)
    if node.op_type == "Slice" and shape is not None:
        return _slice(node, shape, contents)
    if target is None:
        return None
    if node.op_type == "Reshape" and shape is not None:
        return _reshape(node, [Product.of(dim) for dim in shape], target)
    if node.op_type == "Expand" and shape is not None:
        return _expand([Product.of(dim) for dim in shape], target)
    return None


def _reshape(node: ir.Node, shape: list[Entry], target: list[Entry]) -> list[Dim]:
    zero = node.attributes.get("allowzero")
    result: list[Entry] = []
    free: int | None = None
    for i, entry in enumerate(target):
        if entry == Product(-1):
            free = i
            result.append(None)
        elif entry == Product(0) and not (zero is not None and zero.as_int()):
            result.append(shape[i] if i < len(shape) else None)
        else:
            result.append(entry)
    if free is not None:
        total, rest = _total(shape), _total([entry for i, entry in enumerate(result) if i != free])
        result[free] = total.over(rest) if total is not None and rest is not None else None
    elif result.count(None) == 1:  # one axis computed in a way we do not follow: the count of elements gives it away
        at = result.index(None)
        total, rest = _total(shape), _total([entry for i, entry in enumerate(result) if i != at])
        result[at] = total.over(rest) if total is not None and rest is not None else None
    return [None if entry is None else entry.dim() for entry in result]


def _resize(node: ir.Node, shape: list[Dim], contents: Mapping[ir.Value, list[Entry]]) -> list[Dim] | None:
    """Lengths that are given as sizes; axes of scale 1 keep theirs."""
    scales, sizes = (node.inputs[i] if len(node.inputs) > i else None for i in (2, 3))
    given = node.attributes.get("axes")
    axes = list(range(len(shape))) if given is None else [axis % len(shape) for axis in given.as_ints()]
    after: list[Dim] = [None if axis in axes else dim for axis, dim in enumerate(shape)]
    rates, target = constant(scales), _read(sizes, contents)
    policy = node.attributes.get("keep_aspect_ratio_policy")
    if rates is not None and rates.size == len(axes):
        for axis, rate in zip(axes, rates, strict=True):
            after[axis] = shape[axis] if rate == 1 else None
    elif target is not None and len(target) == len(axes) and (policy is None or policy.as_string() == "stretch"):
        for axis, entry in zip(axes, target, strict=True):
            after[axis] = None if entry is None else entry.dim()
    return after


def _slice(node: ir.Node, shape: list[Dim], contents: Mapping[ir.Value, list[Entry]]) -> list[Dim] | None:
    """Untouched axes keep their lengths; x[0:L] has length L (a model that asks for more than there is, fails)."""
    starts, ends = _read(node.inputs[1], contents), _read(node.inputs[2], contents)
    axes = _read(node.inputs[3], contents) if len(node.inputs) > 3 else None
    steps = _read(node.inputs[4], contents) if len(node.inputs) > 4 and node.inputs[4] is not None else None
    if axes is None or any(axis is None or axis.symbols for axis in axes):
        return None
    result = list(shape)
    for i, axis in enumerate(axes):
        assert axis is not None
        at = axis.number % len(shape)
        end = ends[i] if ends is not None else None
        plain = starts is not None and starts[i] == Product(0) and (steps is None or steps[i] == Product(1))
        if plain and end is not None and end.symbols:
            result[at] = end.dim()
        else:
            known = _dims(node.outputs[0])
            result[at] = known[at] if known is not None and not _open([known[at]]) else None
    return result


def _broadcast(shapes: Sequence[list[Dim] | None], given: Collection[str]) -> list[Dim] | None:
    """Numpy's rule; a symbol of the inputs that meets an unknown one is equal to it, or the model would not run."""
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    length = max((len(shape) for shape in known), default=0)
    result: list[Dim] = []
    for i in range(length):
        at = {shape[i - length + len(shape)] for shape in known if i - length + len(shape) >= 0} - {1}
        numbers = [dim for dim in at if isinstance(dim, int)]
        named = [dim for dim in at if isinstance(dim, str) and dim in given]
        if not at:
            result.append(1)
        elif numbers:
            result.append(numbers[0])
        elif len(at) == 1:
            result.append(at.pop())
        else:
            result.append(named[0] if len(named) == 1 else None)
    return result


def _expand(shape: list[Entry], target: list[Entry]) -> list[Dim]:
    length = max(len(shape), len(target))
    one: list[Entry] = [Product()]
    pairs = zip(one * (length - len(shape)) + shape, one * (length - len(target)) + target, strict=True)
    result: list[Dim] = []
    for a, b in pairs:
        if a == Product():
            result.append(None if b is None else b.dim())
        elif b == Product() or a == b or (a is not None and not a.symbols):
            result.append(None if a is None else a.dim())
        else:
            result.append(b.dim() if b is not None and not b.symbols else None)
    return result
