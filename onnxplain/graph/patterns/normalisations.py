"""LayerNormalization and RMSNormalization, division by a norm, and torch's local response normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxplain.graph.node import Node, axes_of, ints, rank
from onnxplain.graph.patterns.view import Group, View, constant_operand, reduced_axes
from onnxplain.graph.polynomial import polynomial, scalar


def normalisation(view: View, node: Node) -> Group | None:
    """LayerNormalization and RMSNormalization, with or without scale and bias."""
    members: list[Node] = []
    bias = scale = None
    current: Node | None = node
    if current is not None and current.op_type == "Add":
        value, bias = constant_operand(view, current)
        if value is None or not view.inner(value):
            return None
        members.append(current)
        current = view.made_by(value, "Mul", "Div")
    if current is not None and current.op_type == "Mul":
        value, scale = constant_operand(view, current)
        if value is not None and view.inner(value):
            members.append(current)
            current = view.made_by(value, "Div", "Mul")
        elif scale is not None:
            return None
    if current is None:
        return None
    core = _standardised(view, current)
    if core is None or (bias is not None and core.op_type == "RMSNormalization"):
        return None
    x, axis = core.inputs[0], core.attributes["axis"]
    assert x is not None
    for parameter in (scale, bias):
        if parameter is not None and (parameter.shape is None or len(parameter.shape) > rank(x) - axis):
            return None
    inputs = (x, scale) if core.op_type == "RMSNormalization" else (x, scale, bias)
    return Group(core.op_type, inputs, [*members, *core.members], core.attributes)


def _standardised(view: View, node: Node) -> Group | None:
    """d / sqrt(mean(d²) + epsilon): d is x - mean(x) or x itself."""
    if node.op_type == "Div":
        pairs = [(node.x, node.input(1), False)]
    elif node.op_type == "Mul":
        pairs = [(node.x, node.input(1), True), (node.input(1), node.x, True)]  # type: ignore[list-item]
    else:
        return None
    for d, root, inverse in pairs:
        root_mean_square = _root_mean_square(view, root, inverse)
        if root_mean_square is None or d is None or root_mean_square[0] is not d:
            continue
        _, axes, epsilon, members = root_mean_square
        centred = view.made_by(d, "Sub")
        mean = view.made_by(centred.input(1), "ReduceMean") if centred is not None else None
        if centred is not None and mean is not None and mean.x is centred.x and reduced_axes(mean) == axes:
            x, op_type = centred.x, "LayerNormalization"
            members = [*members, centred, mean]
        else:
            x, op_type = d, "RMSNormalization"
        if x.shape is None or axes is None:
            continue
        normalised = sorted(axes_of(axes, rank(x)))
        if normalised != list(range(normalised[0], rank(x))):
            continue
        return Group(op_type, (x,), [node, *members], {"axis": normalised[0], "epsilon": epsilon})
    return None


def _root_mean_square(
    view: View, value: ir.Value | None, inverse: bool
) -> tuple[ir.Value, list[int] | None, float, list[Node]] | None:
    """(d, axes, epsilon, nodes) where the value is sqrt(mean(d²) + epsilon), or one over it."""
    members: list[Node] = []
    if inverse:
        over = view.made_by(value, "Reciprocal", "Pow", "Div")
        if over is None:
            return None
        if over.op_type == "Pow":
            if scalar(over.input(1)) != -0.5:
                return None
            members, value = [over], over.x
        elif over.op_type == "Div":
            if scalar(over.x) != 1.0:
                return None
            members, value = [over], over.input(1)
        else:
            members, value = [over], over.x
    if not (members and members[0].op_type == "Pow"):
        root = view.made_by(value, "Sqrt", "Pow")
        if root is None or (root.op_type == "Pow" and scalar(root.input(1)) != 0.5):
            return None
        members, value = [*members, root], root.x
    added = view.made_by(value, "Add")
    if added is None:
        return None
    epsilon, variance = scalar(added.input(1)), added.x
    if epsilon is None:
        epsilon, variance = scalar(added.x), added.input(1)  # type: ignore[assignment]
    mean = view.made_by(variance, "ReduceMean")
    if epsilon is None or mean is None:
        return None
    square = view.made_by(mean.x, "Pow", "Mul")
    if square is None:
        return None
    if square.op_type == "Pow" and scalar(square.input(1)) != 2.0:
        return None
    if square.op_type == "Mul" and square.x is not square.input(1):
        return None
    return square.x, reduced_axes(mean), epsilon, [*members, added, mean, square]


def unit_length(view: View, node: Node) -> Group | None:
    """x / max(‖x‖, epsilon)."""
    if node.op_type != "Div":
        return None
    members, value = [node], node.input(1)
    for op_types in (("Expand",), ("Clip", "Max", "Add")):
        step = view.made_by(value, *op_types)
        if step is None:
            continue
        members.append(step)
        data = [v for v in step.inputs[: 1 if step.op_type in ("Expand", "Clip") else 2] if v and scalar(v) is None]
        if len(data) != 1:
            return None
        value = data[0]
    norm = view.made_by(value, "ReduceL2", "ReduceL1", "Sqrt")
    if norm is None:
        return None
    members.append(norm)
    if norm.op_type == "Sqrt":
        total = view.made_by(norm.x, "ReduceSum", "ReduceSumSquare")
        if total is None:
            return None
        members.append(total)
        source, axes = total.x, reduced_axes(total)
        if total.op_type == "ReduceSum":
            square = view.made_by(total.x, "Mul", "Pow")
            if square is None or (square.input(1) is not square.x and scalar(square.input(1)) != 2.0):
                return None
            members.append(square)
            source = square.x
    else:
        source, axes = norm.x, reduced_axes(norm)
    if source is not node.x or axes is None or len(axes) != 1:
        return None
    return Group("LpNormalization", (node.x,), members, {"axis": axes[0], "p": 1 if norm.op_type == "ReduceL1" else 2})


def local_response(view: View, node: Node) -> Group | None:
    """x / (k + alpha m) ** beta, m the mean of x² over neighbouring channels.

    torch exports LRN so: an AveragePool over the channels, which a Reshape has made a spatial axis.
    """
    power = view.made_by(node.input(1), "Pow") if node.op_type == "Div" else None
    if power is None or (beta := scalar(power.input(1))) is None:
        return None
    argument = polynomial(power.x, view.maker, view.inner, affine=True)
    line = argument.linear() if argument is not None else None
    if argument is None or line is None:
        return None
    members = [node, power, *argument.members]
    value, seen = line[0], []
    for _ in range(6):
        step = view.made_by(value, "Reshape", "Squeeze", "Unsqueeze", "Pad", "AveragePool")
        if step is None:
            break
        seen.append(step)
        value = step.x
    square = view.made_by(value, "Mul", "Pow")
    pools = [step for step in seen if step.op_type == "AveragePool"]
    if square is None or len(pools) != 1 or square.x is not node.x:
        return None
    if (square.input(1) is not square.x) if square.op_type == "Mul" else scalar(square.input(1)) != 2.0:
        return None
    (pool,) = pools
    size, *rest = pool.attr("kernel_shape", (0,))
    if size % 2 == 0 or any(k != 1 for k in rest) or any(s != 1 for s in pool.attr("strides", ())):
        return None
    if not pool.attr("count_include_pad", 0) and any(pool.attr("pads", ())):
        return None
    if not _pads_channels(view, seen, pool, size, node.x):
        return None
    attributes = {"size": size, "alpha": line[1], "beta": beta, "bias": line[2]}
    return Group("LRN", (node.x,), [*members, *seen, square], attributes)


def _pads_channels(view: View, seen: Sequence[Node], pool: Node, size: int, x: ir.Value) -> bool:
    """Whether the window is centred on each channel: (size - 1) / 2 zeros on either side, by Pad or by the pool."""
    shape, pads = pool.x.shape, [step for step in seen if step.op_type == "Pad"]
    if shape is None or x.shape is None or len(pads) > 1:
        return False
    spatial = len(shape) - 2
    half, own = (size - 1) // 2, pool.attr("pads", (0,) * (2 * spatial))
    if not pads:
        return own[0] == half == own[spatial] and sum(own) == 2 * half and shape[2] == x.shape[1]
    lengths, fill = ints(pads[0].input(1)), pads[0].input(2)
    if lengths is None or any(own) or pads[0].attr("mode", "constant") != "constant" or len(pads[0].inputs) > 3:
        return False
    if fill is not None and scalar(fill) != 0.0:
        return False
    width = len(lengths) // 2
    before = pads[0].x.shape
    centred = width == len(shape) and lengths[2] == half == lengths[2 + width] and sum(lengths) == 2 * half
    return centred and before is not None and before[2] == x.shape[1]
