"""Integers that shape computations make (Shape, Gather, Concat, Mul …), followed as lists of products of symbols."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxplain.frontend.passes.symbolic_dims import Entry, Product, dims_of, equal, product_of
from onnxplain.graph.inference import LONGEST
from onnxplain.graph.node import constant


def integers(value: ir.Value | None, contents: Mapping[ir.Value, list[Entry]]) -> list[Entry] | None:
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


def contents_of(node: ir.Node, contents: Mapping[ir.Value, list[Entry]]) -> list[Entry] | None:
    """The integers a shape computation makes."""
    op, inputs = node.op_type, node.inputs
    if node.domain != "" or not inputs:
        return None
    if op == "Shape":
        shape = None if inputs[0] is None else dims_of(inputs[0])
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
        shape = None if inputs[0] is None else dims_of(inputs[0])
        return None if shape is None else [product_of([Product.of(dim) for dim in shape])]
    data = integers(inputs[0], contents)
    if op == "Concat":
        parts = [integers(value, contents) for value in inputs]
        if any(part is None for part in parts):
            return None
        return [entry for part in parts if part is not None for entry in part]
    if data is None:
        return None
    if op in ("Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten"):
        return data if node.outputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32) else None
    if op == "Gather":
        picks = integers(inputs[1], contents)
        if picks is None or any(pick is None or pick.symbols or pick.number >= len(data) for pick in picks):
            return None
        return [data[pick.number] for pick in picks if pick is not None]
    if op == "Slice":
        bounds = [integers(value, contents) for value in inputs[1:5]]
        if any(bound is None or len(bound) != 1 or bound[0] is None or bound[0].symbols for bound in bounds):
            return None
        numbers = [bound[0].number for bound in bounds if bound is not None and bound[0] is not None]
        return data[numbers[0] : numbers[1] : numbers[3] if len(numbers) > 3 else 1]
    if op == "ReduceProd":
        return [product_of(data)]
    if op == "ConstantOfShape" and len(data) == 1 and data[0] is not None and not data[0].symbols:
        fill = node.attributes.get("value")
        number = int(fill.as_tensor().numpy().reshape(-1)[0]) if fill is not None else 0
        return [Product(number)] * data[0].number if 0 <= data[0].number <= LONGEST else None
    if op == "Where":
        yes, no = integers(inputs[1], contents), integers(inputs[2], contents)
        if yes is None or no is None or not len(data) == len(yes) == len(no):
            return None
        return [
            a if test == Product(1) else b if test == Product(0) else None
            for test, a, b in zip(data, yes, no, strict=True)
        ]
    if op in ("Mul", "Div", "Equal"):
        other = integers(inputs[1], contents)
        if other is None or (len(data) != len(other) and 1 not in (len(data), len(other))):
            return None
        length = max(len(data), len(other))
        pairs = zip(data * (length if len(data) == 1 else 1), other * (length if len(other) == 1 else 1), strict=True)
        if op == "Equal":
            return [equal(a, b) for a, b in pairs]
        return [None if a is None or b is None else a * b if op == "Mul" else a.over(b) for a, b in pairs]
    return None
