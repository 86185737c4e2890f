"""Output shapes of ops whose shape is data, by the contents of that data: Reshape, Expand, Slice, Resize, Range."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from onnxplain.frontend.passes.shape_contents import integers
from onnxplain.frontend.passes.symbolic_dims import Entry, Product, dims_of, is_open, product_of
from onnxplain.graph.node import constant
from onnxplain.graph.shape_rules import Dim

BROADCASTING = {"Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Equal", "Greater", "Less", "GreaterOrEqual"}
BROADCASTING |= {"LessOrEqual", "Where", "PRelu", "Min", "Max", "Sum", "Mean"}


def solved_shape(
    node: ir.Node, contents: Mapping[ir.Value, list[Entry]], input_symbols: Collection[str]
) -> list[Dim] | None:
    """The output shape of an op whose shape is data."""
    if node.domain != "" or len(node.inputs) < 2 or node.inputs[0] is None:
        if node.domain == "" and node.op_type == "ConstantOfShape":
            target = integers(node.inputs[0], contents)
            return None if target is None else [None if entry is None else entry.dim() for entry in target]
        return None
    if node.op_type in BROADCASTING:
        return _broadcast([dims_of(value) for value in node.inputs if value is not None], input_symbols)
    if node.op_type == "Range":
        start, limit, delta = (integers(value, contents) for value in node.inputs)
        return [limit[0].dim()] if start == [Product(0)] and delta == [Product(1)] and limit and limit[0] else None
    shape = dims_of(node.inputs[0])
    if node.op_type == "Resize" and shape is not None:
        return _resize(node, shape, contents)
    target = integers(node.inputs[1], contents)
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
        total, rest = product_of(shape), product_of([entry for i, entry in enumerate(result) if i != free])
        result[free] = total.over(rest) if total is not None and rest is not None else None
    elif result.count(None) == 1:  # one axis computed in a way we do not follow: the count of elements gives it away
        at = result.index(None)
        total, rest = product_of(shape), product_of([entry for i, entry in enumerate(result) if i != at])
        result[at] = total.over(rest) if total is not None and rest is not None else None
    return [None if entry is None else entry.dim() for entry in result]


def _resize(node: ir.Node, shape: list[Dim], contents: Mapping[ir.Value, list[Entry]]) -> list[Dim] | None:
    """Lengths that are given as sizes; axes of scale 1 keep theirs."""
    scales, sizes = (node.inputs[i] if len(node.inputs) > i else None for i in (2, 3))
    named = node.attributes.get("axes")
    axes = list(range(len(shape))) if named is None else [axis % len(shape) for axis in named.as_ints()]
    after: list[Dim] = [None if axis in axes else dim for axis, dim in enumerate(shape)]
    rates, target = constant(scales), integers(sizes, contents)
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
    starts, ends = integers(node.inputs[1], contents), integers(node.inputs[2], contents)
    axes = integers(node.inputs[3], contents) if len(node.inputs) > 3 else None
    steps = integers(node.inputs[4], contents) if len(node.inputs) > 4 and node.inputs[4] is not None else None
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
            known = dims_of(node.outputs[0])
            result[at] = known[at] if known is not None and not is_open([known[at]]) else None
    return result


def _broadcast(shapes: Sequence[list[Dim] | None], input_symbols: Collection[str]) -> list[Dim] | None:
    """Numpy's rule; a symbol of the inputs that meets an unknown one is equal to it, or the model would not run."""
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    length = max((len(shape) for shape in known), default=0)
    result: list[Dim] = []
    for i in range(length):
        at = {shape[i - length + len(shape)] for shape in known if i - length + len(shape) >= 0} - {1}
        numbers = [dim for dim in at if isinstance(dim, int)]
        named = [dim for dim in at if isinstance(dim, str) and dim in input_symbols]
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
