"""Where a model has feature maps and tokens, which of their axes are channels, and which of them is the last."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxplain.composites.places import kind_of
from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.graph import streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims, is_float, rank
from onnxplain.graph.relevance import Relevance
from onnxplain.graph.walk import inputs_of
from onnxplain.rules.finishes import Finish, map_of
from onnxplain.vjp import lookup, registered, weight_and_bias


@dataclass(frozen=True)
class Layout:
    """Feature maps of a graph. channels: float tensor with positions → the axis of its channels."""

    channels: dict[ir.Value, int]

    def has_positions(self, value: ir.Value) -> bool:
        """Whether it is a feature map of more than one position."""
        return value in self.channels and any(
            length != 1 for axis, length in enumerate(dims(value)) if axis not in (0, self.channels[value])
        )


def layout_of(nodes: Sequence[Node]) -> Layout:
    """Follow the channel axis of what convolutions and pools read and write, (N, C, *space), through the graph.

    It is lost where a Reshape or product mixes it, and found again at the next convolution, or where a tensor of rank
    4 or more has the positions of a known one. A transposition to (N, *space, C) is followed too.
    """
    channels: dict[ir.Value, int] = {}
    ends = [value for node in nodes if _works_on_maps(node) for value in (node.x, node.y) if _is_map(value)]
    channels.update(dict.fromkeys(ends, 1))
    spaces = {tuple(dims(value)[2:]) for value in ends}
    for node in nodes:
        for y in node.outputs:
            if y not in channels and _is_map(y) and (axis := _followed(node, y, channels, spaces)) is not None:
                channels[y] = axis
    return Layout(channels)


def default_layer(
    op: Backward,
    layout: Layout,
    path: Collection[Node],
    explained: Sequence[ir.Value],
    onwards: Callable[[Node, int, ir.Value], bool],
) -> tuple[ir.Value, int]:
    """`last_map`, or UnsupportedModel with what to do instead."""
    if (found := last_map(op, layout, path, explained, onwards)) is not None:
        return found
    names = ", ".join(str(value.name) for value in explained)
    near = [str(y.name) for node in path for y in node.outputs if layout.has_positions(y) and y not in explained][:4]
    if dense := [value for value in explained if layout.has_positions(value)]:
        why = f"{dense[0].name} {_shape(dense[0])} is a map itself, and which layer below is meant is not clear"
    elif near:
        why = f"no feature map lies on every path from the inputs to {names}"
    else:
        raise UnsupportedModel(
            f"no feature map (N, C, H, W) lies between the inputs and {names}: a class activation map has nothing to "
            "show. Take a method that attributes to the inputs, such as gradient or lrp, or name a tensor with "
            "positions by --attribute-to."
        )
    raise UnsupportedModel(f"{why}. Name one by --attribute-to, such as {', '.join(near) or 'a feature map'}.")


def named_layer(op: Backward, layout: Layout, value: ir.Value) -> int:
    """The axis of the channels of a tensor that the user named; UsageError where it cannot be one."""
    said = f"--attribute-to {value.name}: a class activation map is made of a float tensor with channels and positions"
    if value.shape is None or not is_float(value) or rank(value) < 3:
        kind = value.dtype.name.lower() if value.dtype is not None else "a tensor"
        raise UsageError(f"{said}, (N, C, H, W) or (N, T, D), and it is {kind} {_shape(value)}.")
    if op.facts.axes.get(value, streams.UNPROVEN) > 0:
        raise UsageError(f"{said}, and its samples lie along axis {op.facts.axes[value]}, where axis 0 is expected.")
    if value in layout.channels:
        return layout.channels[value]
    if _is_tokens(op, layout, value):
        return 2
    raise UsageError(
        f"{said}, and which axis of {_shape(value)} its channels are is not known: no convolution is near."
    )


def _shape(value: ir.Value) -> str:
    return "[?]" if value.shape is None else "[" + ", ".join(str(d or "?") for d in dims(value)) + "]"


def require_pooled_head(op: Backward, layer: ir.Value, channels: int, path: Collection[Node]) -> None:
    """Raise UnsupportedModel unless all above a layer is one pool over its positions and then linear.

    path: the nodes above it, last first.
    """
    said = "and CAM is for a head that is linear after a global pool: take grad_cam or hires_cam, which ask for none"
    readers = [node for node in path if any(value is layer for value in node.inputs)]
    for node in readers:
        left = [length for length in dims(node.y)[1:] if length != 1]
        pools = kind_of(op, node) == "mean" and _is_linear(op, node) and _keeps(node, layer, channels)
        if not pools or left not in ([], [dims(layer)[channels]]):
            raise UnsupportedModel(f"{node} reads {layer.name} {_shape(layer)} and is no pool over all of it, {said}.")
    for node in path:
        if not _is_linear(op, node):
            raise UnsupportedModel(f"{node} between {layer.name} and what is explained is not linear, {said}.")


def _keeps(node: Node, x: ir.Value, axis: int) -> bool:
    """Whether a pool or reduction leaves that axis of x alone."""
    rule = lookup(node).streams
    if rule is None or rule is streams.batch_first:
        return rule is not None
    followed = rule(node, [axis if value is x else streams.CONSTANT for value in node.inputs])
    return isinstance(followed, int) and followed >= 0


def _is_linear(op: Backward, node: Node) -> bool:
    """Whether the output is linear, or affine, in what is computed of its inputs."""
    kind = kind_of(op, node)
    return kind in ("affine", "sum") or (kind in ("linear", "mean", "routing") and lookup(node).linear)


def default_said(value: ir.Value, layout: Layout) -> str:
    """A layer that nobody named, for notes."""
    what = "the last feature map that everything passes" if value in layout.channels else "the last attention's tokens"
    return f"{value.name} {_shape(value)}, {what}"


def attributing_said(value: ir.Value, layout: Layout) -> str:
    """The note where a method is about a layer that nobody named."""
    return f"attributing to {default_said(value, layout)} (--attribute-to names another)"


def weigh(
    op: Backward,
    layer: ir.Value | None,
    finish: Finish,
    arrived: Sequence[dict[ir.Value, Relevance]],
    wanted: Mapping[ir.Value, str],
) -> None:
    """Multiply what the last pass brings to pictures (N, C, H, W) by the map of a layer, bilinear in between.

    The map is the finish's, of what the first pass brings to the layer; where there is none, nothing is done. wanted:
    the pictures by name. Raises UsageError, UnsupportedModel.
    """
    if layer is None or finish.weight is None:
        return
    if layer not in arrived[0]:
        raise UsageError(
            f"{layer.name}, whose map weighs the relevance, does not lie between {', '.join(wanted.values())} and what "
            "is explained: attribute to the inputs."
        )
    weight = map_of(op, finish.weight, arrived[0][layer].value, layer)
    shape = op.stream_shape(layer)
    shape[op.facts.channels[layer]] = 1
    op.reshaped(weight, shape)
    for x in wanted:
        if rank(x) != 4 or len(shape) != 4:
            raise UnsupportedModel(
                f"{x.name} {_shape(x)}: a map {_shape(weight)} is laid over pictures (N, C, H, W). Take grad_cam, "
                "which gives the map itself."
            )
        sizes = op.Concat(*(op.size(weight, axis) for axis in (0, 1)), *(op.size(x, axis) for axis in (2, 3)), axis=0)
        large = op.Resize(weight, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel")
        op.reshaped(large, [*shape[:2], *dims(x)[2:]])
        if (r := arrived[-1].get(x)) is not None:
            arrived[-1][x] = r.but(r.value * large)


def last_map(
    op: Backward,
    layout: Layout,
    path: Collection[Node],
    explained: Sequence[ir.Value],
    onwards: Callable[[Node, int, ir.Value], bool],
) -> tuple[ir.Value, int] | None:
    """The tensor nearest to what is explained that has positions and that everything passes, and its channel axis.

    path: nodes between explained tensors and inputs, last first; onwards: whether an input of a node is on it. Above an
    attention, which mixes positions, only tokens (N, T, D) in front of one count, as it reads them: those behind the
    last are read at one position. None: there is none.
    """
    if any(layout.has_positions(value) for value in explained):
        return None
    pending, mixed = set(explained), False
    for node in path:
        if not pending.intersection(node.outputs):
            continue
        if len(pending) == 1 and node.y in pending and node.y not in explained:
            if not mixed and layout.has_positions(node.y):
                return node.y, layout.channels[node.y]
            if mixed and _is_tokens(op, layout, node.y):
                return _normalised(path, node.y), 2
        mixed = mixed or _mixes_positions(op, node)
        pending.difference_update(node.outputs)
        pending.update(value for i, value in inputs_of(node) if onwards(node, i, value))
    return None


def _works_on_maps(node: Node) -> bool:
    """Whether ONNX defines the op on (N, C, *space). Normalisations do not count: exporters feed them groups."""
    entry = registered(node)
    return entry is not None and entry.streams is streams.batch_first and entry.kind != "normalisation"


def _is_map(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and is_float(value) and rank(value) >= 3


def _followed(
    node: Node, y: ir.Value, channels: dict[ir.Value, int], spaces: Collection[tuple[int | str | None, ...]]
) -> int | None:
    """The channel axis of an output, None where it is not known."""
    before = [value for value in node.inputs if value is not None and value in channels and rank(value) == rank(y)]
    if before:
        x = before[0]
        moved = _moved(node, x, rank(y) - 1)
        if moved != rank(y) - 1:  # a transposition
            at = _moved(node, x, channels[x])
            return at if at in (1, rank(y) - 1) else None
        kept = range(2, rank(y)) if channels[x] == 1 else range(1, rank(y) - 1)
        return channels[x] if all(dims(y)[axis] == dims(x)[axis] for axis in kept) else None
    found = rank(y) >= 4 and tuple(dims(y)[2:]) in spaces and None not in dims(y)[2:]
    return 1 if found and any(length != 1 for length in dims(y)[2:]) else None


def _moved(node: Node, x: ir.Value, axis: int) -> int:
    """Where an axis of an input lies in the output; where it cannot be followed, it stays."""
    entry = registered(node)
    if entry is None or entry.streams is None or entry.streams is streams.batch_first:
        return axis
    followed = entry.streams(node, [axis if value is x else streams.CONSTANT for value in node.inputs])
    return axis if not isinstance(followed, int) or followed < 0 else followed


def _mixes_positions(op: Backward, node: Node) -> bool:
    """Whether the node multiplies matrices that are both computed: attention."""
    entry = registered(node)
    return entry is not None and entry.kind == "linear" and weight_and_bias(op, node) is None


def _normalised(path: Collection[Node], tokens: ir.Value) -> ir.Value:
    """What the attention reads of the tokens on its way: their normal form, where a normalisation stands between.

    Gradient times activation in front of a normalisation sums to 0 over the features: its answer has no scale.
    """
    for node in path:
        entry = registered(node)
        if entry is not None and entry.kind == "normalisation" and node.x is tokens and dims(node.y) == dims(tokens):
            return node.y
    return tokens


def _is_tokens(op: Backward, layout: Layout, value: ir.Value) -> bool:
    """Whether a tensor is (N, T, D) for all that is known: the batch proven in front, and several positions."""
    if value in layout.channels or value.shape is None or not is_float(value) or rank(value) != 3:
        return False
    return op.facts.axes.get(value, streams.UNPROVEN) == 0 and dims(value)[1] != 1
