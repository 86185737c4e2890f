"""BatchNormalization and constant scales and shifts, folded into the linear layer before them.

A trained BatchNormalization is y = s x + t per channel. After a Conv it changes what the sign of a weight means, so it
is folded before any rule looks at weights: W' = s W, b' = s b + t, computed in float64. The same holds for the Mul,
Add, Sub and Div that exporters write for it, also with a Transpose in between (NHWC models).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxplain.frontend.passes.names import Names, initializer
from onnxplain.graph.node import FLOATS, constant

LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@dataclass
class ScaleAndShift:
    """What follows a linear node: y -> scale y + shift per channel, and the nodes that say so."""

    channels: int
    scale: np.ndarray = field(init=False)
    shift: np.ndarray = field(init=False)
    nodes: list[ir.Node] = field(default_factory=list)
    multiplies: bool = False

    def __post_init__(self) -> None:
        self.scale, self.shift = np.ones(self.channels), np.zeros(self.channels)


def fold_affine(
    model: ir.Model,
    keep: Collection[str] = (),
    notes: list[str] | None = None,
    permits: Callable[[str], bool] = lambda rewrite: True,
) -> list[str]:
    """Fold what can be folded; returns a line for each. Folds that kept tensors prevent go to `notes`.

    permits: asked before each fold, by the line that says it.
    """
    graph, changes = model.graph, []
    live, names = depends_on_input(graph), Names(graph)
    for node in list(graph):
        if node.graph is None or node.domain != "" or node.op_type not in LINEAR:
            continue
        layer = _linear_layer(node, live)
        if layer is None:
            continue
        affine = _behind(node, layer, keep, notes)
        if not affine.nodes:
            continue
        folded = ", ".join(f"{n.name or n.outputs[0].name} ({n.op_type})" for n in affine.nodes)
        fold = f"{folded} into {node.name or node.outputs[0].name} ({node.op_type})"
        if permits(fold):
            layer.apply(affine, names)
            changes.append(f"folded {fold}")
    return changes


def depends_on_input(graph: ir.Graph) -> set[ir.Value]:
    """Values that are not constant."""
    live = set(graph.inputs)
    for node in graph:
        if any(value in live for value in node.inputs) or node.op_type.startswith(("Random", "If", "Loop", "Scan")):
            live.update(node.outputs)
    return live


@dataclass
class LinearLayer:
    """A linear node with constant weights: where its channels are, and how to rescale it."""

    node: ir.Node
    channels: int
    axis: int  # of the channels, in the output
    rank: int  # of the output
    bias: np.ndarray  # (channels,) float64
    can_shift: bool = True

    def apply(self, affine: ScaleAndShift, names: Names) -> None:
        """Give the node scaled weights and bias, and take out what said them."""
        node = self.node
        weight = node.inputs[1]
        assert weight is not None
        if affine.multiplies:
            node.replace_input_with(1, _scaled(node, weight, affine.scale, names))
        bias = self.bias * affine.scale + affine.shift
        _remove_folded(node, affine.nodes, names)
        dtype = weight.dtype or ir.DataType.FLOAT
        if not self.can_shift:
            if np.any(bias):
                _add_after(node, bias, dtype, names)
            return
        beta = node.attributes.get("beta")
        if node.op_type == "Gemm" and beta is not None and beta.as_float() != 1.0:
            node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        if np.any(bias) or len(node.inputs) > 2:
            old_bias = node.inputs[2] if len(node.inputs) > 2 else None
            name = f"{weight.name}.bias" if old_bias is None else f"{old_bias.name}"
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            node.replace_input_with(2, initializer(names, name, bias, dtype))


def _linear_layer(node: ir.Node, live: Collection[ir.Value]) -> LinearLayer | None:
    """The node as a layer, None where its weights or bias are not constant vectors we understand."""
    weight = node.inputs[1]
    if weight is None or weight in live or weight.shape is None or weight.dtype not in FLOATS:
        return None
    shape = [dim if isinstance(dim, int) else None for dim in weight.shape]
    if None in shape:
        return None
    sizes = [dim for dim in shape if dim is not None]
    if node.op_type == "Conv":
        channels, axis, rank = sizes[0], 1, len(sizes)
    elif node.op_type == "ConvTranspose":
        group = node.attributes.get("group")
        channels, axis, rank = sizes[1] * (group.as_int() if group else 1), 1, len(sizes)
    elif node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        channels, axis, rank = sizes[0 if transposed and transposed.as_int() else 1], 1, 2
    else:
        x = node.inputs[0]
        if len(sizes) != 2 or x is None or x.shape is None or len(x.shape) < 2:
            return None
        return LinearLayer(node, sizes[1], len(x.shape) - 1, len(x.shape), np.zeros(sizes[1]), can_shift=False)
    bias = np.zeros(channels)
    bias_input = node.inputs[2] if len(node.inputs) > 2 else None
    if bias_input is not None:
        array = constant(bias_input)
        if array is None or array.size not in (1, channels) or array.shape[-1:] not in ((), (1,), (channels,)):
            return None
        bias = bias + array.astype(np.float64).reshape(-1)
        beta = node.attributes.get("beta")
        if node.op_type == "Gemm" and beta is not None:
            bias = bias * beta.as_float()
    return LinearLayer(node, channels, axis, rank, bias)


def _behind(node: ir.Node, layer: LinearLayer, keep: Collection[str], notes: list[str] | None) -> ScaleAndShift:
    """Collect scales and shifts behind a layer as long as nobody else looks at the tensors in between."""
    affine = ScaleAndShift(layer.channels)
    passed: list[ir.Node] = []
    value, axis = node.outputs[0], layer.axis
    scale, shift, multiplies = affine.scale, affine.shift, False
    while True:
        uses = value.uses()
        if len(uses) != 1:
            break
        ((consumer, index),) = uses
        if consumer.domain != "" or consumer.graph is not node.graph:
            break
        step = _scale_and_shift(consumer, index, axis, layer.rank, layer.channels)
        moved = _transposed(consumer, axis) if step is None else None
        if step is None and moved is None:
            break
        if value.is_graph_output():
            if value.name in keep and step is not None and notes is not None:
                notes.append(
                    f"{consumer.name or consumer.outputs[0].name} ({consumer.op_type}) is not folded, "
                    f"because {value.name} is kept"
                )
            break
        passed.append(consumer)
        if step is None:
            assert moved is not None
            axis = moved
        else:
            scale, shift = scale * step[0], shift * step[0] + step[1]
            multiplies = multiplies or bool(np.any(step[0] != 1))
            affine.scale, affine.shift, affine.nodes, affine.multiplies = scale, shift, list(passed), multiplies
        value = consumer.outputs[0]
    if not layer.can_shift and not multiplies and len(affine.nodes) == 1:
        affine.nodes = []  # a MatMul and its bias are as they should be
    return affine


def _scale_and_shift(
    node: ir.Node, index: int, axis: int, rank: int, channels: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """A node as (scale, shift) per channel, None where it is anything else."""
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "BatchNormalization":
        if axis != 1 or index != 0 or any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
            return None
        training = node.attributes.get("training_mode")
        if training is not None and training.as_int():
            return None
        parameters = [constant(value) for value in node.inputs[1:5]]
        if any(array is None or array.size != channels for array in parameters):
            return None
        gamma, beta, mean, var = (np.asarray(array, dtype=np.float64).reshape(-1) for array in parameters)
        epsilon = node.attributes.get("epsilon")
        s = gamma / np.sqrt(var + (epsilon.as_float() if epsilon is not None else 1e-5))
        return s, beta - mean * s
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    c = _per_channel(constant(node.inputs[1 - index]), axis, rank, channels)
    if c is None:
        return None
    if node.op_type == "Add":
        return one, c
    if node.op_type == "Sub":
        return (one, -c) if index == 0 else (-one, c)
    if node.op_type == "Mul":
        return c, zero
    if index == 0 and np.all(c != 0):
        return 1 / c, zero
    return None


def _per_channel(array: np.ndarray | None, axis: int, rank: int, channels: int) -> np.ndarray | None:
    """A constant operand as one number per channel, None where it varies along another axis."""
    if array is None or array.ndim > rank or array.dtype.kind != "f":
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(dim != 1 for i, dim in enumerate(shape) if i != axis) or shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))


def _transposed(node: ir.Node, axis: int) -> int | None:
    """Where a Transpose moves the channels."""
    perm = node.attributes.get("perm")
    if node.op_type != "Transpose" or perm is None:
        return None
    return list(perm.as_ints()).index(axis)


def _scaled(node: ir.Node, weight: ir.Value, scale: np.ndarray, names: Names) -> ir.Value:
    """The weights times the scale along the output channels."""
    assert weight.shape is not None and node.graph is not None
    sizes = [int(dim) for dim in weight.shape if isinstance(dim, int)]
    if node.op_type == "ConvTranspose":
        group = node.attributes.get("group")
        groups = group.as_int() if group is not None else 1
        factor = np.repeat(scale.reshape(groups, 1, sizes[1]), sizes[0] // groups, axis=1)
        factor = factor.reshape(sizes[0], sizes[1], *(1 for _ in sizes[2:]))
    else:
        transposed = node.attributes.get("transB")
        first = node.op_type == "Conv" or (transposed is not None and bool(transposed.as_int()))
        factor = scale.reshape(-1, *(1 for _ in sizes[1:])) if first else scale
    dtype = weight.dtype or ir.DataType.FLOAT
    if weight.const_value is not None:
        array = weight.const_value.numpy()
        if array.dtype.type.__module__ == "numpy":
            product = np.empty(array.shape, array.dtype.newbyteorder("="))
            np.multiply(array, factor, out=product, dtype=np.float64, casting="unsafe")
        else:
            product = (array.astype(np.float64) * factor).astype(array.dtype)
        if len(weight.uses()) == 1 and not weight.is_graph_output():
            weight.const_value = ir.tensor(product, dtype=dtype, name=weight.name)
            return weight
        return initializer(names, f"{weight.name}", product, dtype)
    multiplier = initializer(names, f"{weight.name}.scale", factor, dtype)
    times = ir.node("Mul", [weight, multiplier], name=names.free(f"{weight.name}.scaled"))
    result = times.outputs[0]
    result.name, result.shape, result.type = times.name, weight.shape, weight.type
    node.graph.insert_before(node, times)
    return result


def _remove_folded(layer: ir.Node, nodes: list[ir.Node], names: Names) -> None:
    """Take scales and shifts out of the graph. The last tensor keeps its name; those before are other tensors now."""
    graph = layer.graph
    assert graph is not None
    value, last = layer.outputs[0], nodes[-1].outputs[0]
    name, shape, type_ = last.name, last.shape, last.type
    for node in nodes:
        if node.op_type == "Transpose":
            value.name = names.free(f"{value.name}.folded")
            value = node.outputs[0]
        else:
            ir.convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=True)
            graph.remove(node, safe=True)
    value.name, value.shape, value.type = name, shape or value.shape, type_ or value.type


def _add_after(node: ir.Node, bias: np.ndarray, dtype: ir.DataType, names: Names) -> None:
    """A MatMul has no bias: add it behind."""
    graph, value = node.graph, node.outputs[0]
    assert graph is not None
    name = value.name or ""
    add = ir.node("Add", [value, initializer(names, f"{name}.bias", bias, dtype)])
    out = add.outputs[0]
    uses = [(user, i) for user, i in value.uses() if user is not add]
    for user, i in uses:
        user.replace_input_with(i, out)
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = out
    value.name = names.free(f"{name}.product")
    out.name, out.shape, out.type, add.name = name, value.shape, value.type, names.free(f"{name}.Add")
    graph.insert_after(node, add)
