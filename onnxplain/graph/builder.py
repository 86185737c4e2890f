"""Emit nodes: `op.Conv(x, w, strides=[2, 2])` appends a node and returns its value, typed and shaped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.errors import UnsupportedModel
from onnxplain.graph.inference import LONGEST, infer_node
from onnxplain.graph.node import FLOATS, Node, dims, ints, rank, static
from onnxplain.graph.pads import places_of_pads

Values = Sequence[ir.Value]
Operand = ir.Value | float | int | np.ndarray | Sequence[int] | None

_BUILDING = threading.RLock()  # operators on values go to one builder at a time: the handler is global in onnx-ir


class Builder:
    """Appends nodes to a graph.

    Python numbers take the float type of the node's other inputs; lists of integers become int64 constants.
    Every node is named after the forward node it belongs to (`backward/<forward node>/<Op>_<n>`) and its output gets
    type and shape at once, so that a wrong rule fails in the rule.
    """

    def __init__(self, graph: ir.Graph, prefix: str = "backward"):
        self.graph = graph
        self.opsets = graph.opset_imports
        self.prefix = prefix
        self.emitted: set[ir.Node] = set()  # the nodes this builder appended
        self._scope = prefix
        self._taken = {name for node in graph for name in (node.name, *(o.name for o in node.outputs)) if name}
        self._taken |= {value.name for value in graph.inputs if value.name} | set(graph.initializers)
        self._counts: dict[str, int] = {}
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        self._types: dict[ir.Value, onnx.TypeProto] = {}
        self._memo: dict[tuple[Any, ...], ir.Value] = {}

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[0].isupper():
            raise AttributeError(op_type)

        def emit(*inputs: Operand, outputs: int = 1, **attributes: Any) -> Any:
            return self.emit(op_type, inputs, outputs, attributes)

        return emit

    def emit(
        self, op_type: str, inputs: Sequence[Operand], outputs: int = 1, attributes: dict[str, Any] | None = None
    ) -> Any:
        """Append one node; returns its value, or a tuple of values for several outputs."""
        dtype = next((v.dtype for v in inputs if isinstance(v, ir.Value) and v.dtype in FLOATS), None)
        if dtype is None:
            dtype = next((v.dtype for v in inputs if isinstance(v, ir.Value) and v.dtype is not None), None)
        values = [self._value(operand, dtype) for operand in inputs]
        if op_type == "Pad":
            values = self._full_rank(values)
        while values and values[-1] is None:
            values.pop()
        kept = {name: value for name, value in (attributes or {}).items() if value is not None}
        name = self._name(op_type)
        node = ir.Node(
            "",
            op_type,
            values,
            ir.convenience.convert_attributes(kept),
            num_outputs=outputs,
            name=name,
        )
        for i, value in enumerate(node.outputs):
            value.name = name if i == 0 else f"{name}:{i}"
        self.graph.append(node)
        self.emitted.add(node)
        self.infer(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def _full_rank(self, values: list[ir.Value | None]) -> list[ir.Value | None]:
        """The inputs of a Pad without `axes`: its pads name every axis (`graph.forms` says why)."""
        x, pads, axes = values[0], values[1], values[3] if len(values) > 3 else None
        if x is None or pads is None or axes is None:
            return values
        known, sizes = ints(axes), ints(pads)
        if known is None:
            raise UnsupportedModel(f"{self._scope}: a Pad whose axes ({axes.name}) are not known at compile time.")
        places = places_of_pads(known, rank(x))
        if sizes is not None:
            return [x, self.ints([0 if place is None else sizes[place] for place in places]), *values[2:3]]
        behind_zero = self.Concat(self.ints([0]), pads, axis=0)
        order = self.ints([0 if place is None else place + 1 for place in places])
        return [x, self.Gather(behind_zero, order), *values[2:3]]

    def again(self, node: Node, *inputs: ir.Value | None) -> ir.Value:
        """The forward step once more, on other inputs."""
        value: ir.Value = self.emit(node.op_type, inputs, 1, node.attributes)
        return value

    def constant(self, value: Any, dtype: ir.DataType) -> ir.Value:
        """A constant, stored once however often it is used."""
        array = np.asarray(value, dtype=dtype.numpy())
        key = (dtype.name, array.tobytes(), array.shape)
        if key not in self._constants:
            text = f"{array.item():g}" if array.size == 1 else f"{array.dtype}{list(array.shape)}".replace(" ", "")
            name = self._unique(f"{self.prefix}/const/{text}")
            result = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(dtype),
                const_value=ir.tensor(array, dtype=dtype, name=name),
            )
            self.graph.register_initializer(result)
            self._constants[key] = result
        return self._constants[key]

    def ints(self, values: Sequence[int]) -> ir.Value:
        """An int64 vector."""
        return self.constant(np.asarray(list(values), dtype=np.int64), ir.DataType.INT64)

    def once(self, key: tuple[Any, ...], make: Callable[[], ir.Value]) -> ir.Value:
        """What `make` emits, emitted once for a key (derived weights, shapes, switches)."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def shape(self, value: ir.Value) -> ir.Value:
        """Shape of a tensor as int64 vector: a constant where it is known, a Shape node elsewhere."""
        known = static(value)
        return self.ints(known) if known is not None else self.once(("shape", value), lambda: self.Shape(value))

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """Length of one axis, as an int64 vector of one element."""
        length = dims(value)[axis]
        if isinstance(length, int):
            return self.ints([length])
        axis = axis % rank(value)
        return self.once(("size", value, axis), lambda: self.Shape(value, start=axis, end=axis + 1))

    def forward_output(self, value: ir.Value, index: int) -> ir.Value:
        """Output `index` of the node that makes `value`; named, typed and added to that node where it was absent."""
        node = value.producer()
        assert node is not None, value.name
        if len(node.outputs) <= index:
            node.resize_outputs(index + 1)
        output = node.outputs[index]
        if not output.name or output.dtype is None:
            output.name = output.name or self._unique(f"{node.name or value.name}:{index}")
            known = [(other, other.type, other.shape) for other in node.outputs if other is not output]
            self.infer(node)
            for other, dtype, shape in known:
                other.type, other.shape = dtype, shape
        return output

    def scan(
        self,
        states: Values,
        sequences: Values,
        step: Callable[[Builder, Values, Values], tuple[Values, Values]],
    ) -> tuple[list[ir.Value], list[ir.Value]]:
        """A Scan over axis 0 of `sequences`: (last states, results of the steps along a new axis 0).

        step(builder of the body, states, entries) -> (states, results); it may read tensors of the graph around it.
        """
        name = self._name("Scan")
        body = ir.Graph([], [], nodes=[], opset_imports=dict(self.opsets), name=f"{name}/step")
        inner = Builder(body, f"{name}/step")

        def inside(value: ir.Value, label: str, shape: Sequence[int | str | None]) -> ir.Value:
            entry = ir.Value(name=f"{name}/step/{label}", shape=ir.Shape(shape), type=value.type)
            body.inputs.append(entry)
            return entry

        before = [inside(value, f"state_{i}", dims(value)) for i, value in enumerate(states)]
        entries = [inside(value, f"entry_{i}", dims(value)[1:]) for i, value in enumerate(sequences)]
        with inner.arithmetic():
            after, results = step(inner, before, entries)
            body.outputs.extend(inner.Identity(value) for value in (*after, *results))
        attributes = [ir.AttrGraph("body", body), ir.AttrInt64("num_scan_inputs", len(sequences))]
        node = ir.Node("", "Scan", [*states, *sequences], attributes, num_outputs=len(body.outputs), name=name)
        self.graph.append(node)
        self.emitted.add(node)
        for i, (output, inner_output) in enumerate(zip(node.outputs, body.outputs, strict=True)):
            output.name, output.type = f"{name}:{i}", inner_output.type
            lead = [] if i < len(states) else [dims(sequences[0])[0]]
            output.shape = ir.Shape([*lead, *dims(inner_output)])
        return list(node.outputs[: len(states)]), list(node.outputs[len(states) :])

    @contextmanager
    def scope(self, node: Node) -> Iterator[None]:
        """Name what is emitted inside after `node`."""
        before = self._scope
        self._scope = f"{self.prefix}/{node.name or node.outputs[0].name}"
        try:
            yield
        finally:
            self._scope = before

    @contextmanager
    def arithmetic(self) -> Iterator[Builder]:
        """Inside, `+ - * /` on values emit nodes here."""
        with _BUILDING:
            before = ir.set_value_magic_handler(self)
            try:
                yield self
            finally:
                ir.set_value_magic_handler(before)

    def infer(self, node: ir.Node) -> None:
        """Type and shape of a node's outputs."""
        try:
            inferred = infer_node(node, self.opsets, self._type, _numbers)
        except Exception as error:
            shapes = ", ".join("-" if v is None else f"{v.name} {v.dtype} {v.shape}" for v in node.inputs)
            raise UnsupportedModel(f"{node.name}: cannot emit {node.op_type}({shapes}): {error}") from error
        for value, (kind, shape) in zip(node.outputs, inferred, strict=True):
            if kind is not None:
                value.type, value.shape = kind, shape

    def _type(self, value: ir.Value) -> onnx.TypeProto:
        if value not in self._types:
            shape = None if value.shape is None else dims(value)
            assert value.dtype is not None, value.name
            self._types[value] = onnx.helper.make_tensor_type_proto(int(value.dtype), shape)
        return self._types[value]

    def reshaped(self, value: ir.Value, shape: Sequence[int | str | None]) -> ir.Value:
        """Note a shape that is known better than inference knows it."""
        value.shape = ir.Shape(shape)
        self._types.pop(value, None)
        return value

    def _value(self, operand: Operand, dtype: ir.DataType | None) -> ir.Value | None:
        if operand is None or isinstance(operand, ir.Value):
            return operand
        if isinstance(operand, (list, tuple)):
            return self.ints(operand)
        if isinstance(operand, np.ndarray) and operand.dtype.kind in "iub":
            return self.constant(operand, ir.DataType.from_numpy(operand.dtype))
        return self.constant(operand, dtype or ir.DataType.FLOAT)

    def _name(self, op_type: str) -> str:
        return self._unique(f"{self._scope}/{op_type}")

    def _unique(self, stem: str) -> str:
        while True:
            n = self._counts.get(stem, 0)
            self._counts[stem] = n + 1
            name = f"{stem}_{n}" if n else stem
            if name not in self._taken:
                self._taken.add(name)
                return name


def _numbers(value: ir.Value) -> onnx.TensorProto | None:
    """Those of a small integer constant, which shapes are made of."""
    tensor = value.const_value
    if tensor is None or tensor.size > LONGEST or tensor.dtype != ir.DataType.INT64:
        return None
    return onnx.numpy_helper.from_array(tensor.numpy())
