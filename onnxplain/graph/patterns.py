"""Subgraphs that are one thing: GELU in five nodes, LayerNormalization in seven, a MatMul with its bias.

The graph keeps its nodes. Only the backward walk sees one step, whose relevance rule goes by what it is; its derivative
is the chain of its members'. A group has one output, and nobody outside looks at what is inside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from math import pi, sqrt
from typing import Any

import onnx_ir as ir

from onnxplain.graph.node import Node, axes_of, ints, rank
from onnxplain.graph.polynomial import Polynomial, polynomial, same, scalar


@dataclass
class Group:
    """What a pattern found: the step as the walk shall see it, and the nodes it stands for."""

    op_type: str
    inputs: tuple[ir.Value | None, ...]
    members: list[Node]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class View:
    """The forward graph as patterns look at it."""

    maker: dict[ir.Value, Node]
    readers: dict[ir.Value, list[Node]]
    constants: set[ir.Value]
    protected: Collection[ir.Value]

    def hidden(self, value: ir.Value) -> bool:
        """Whether nobody needs the tensor to be seen from outside."""
        return not value.is_graph_output() and value not in self.protected

    def inner(self, value: ir.Value) -> bool:
        """Hidden, and read by one node."""
        return self.hidden(value) and len(self.readers.get(value, ())) == 1

    def made_by(self, value: ir.Value | None, *op_types: str) -> Node | None:
        """The node that makes a tensor, where it is of one of these types."""
        node = None if value is None else self.maker.get(value)
        return node if node is not None and node.domain == "" and node.op_type in op_types else None


def recognise(nodes: Sequence[Node], protected: Collection[ir.Value]) -> list[Node]:
    """The same steps with recognised subgraphs as one Node each, in topological order.

    protected: tensors that must stay visible (explained, attributed, kept). A group stands where its last member stood.
    """
    view = View({}, {}, set(), protected)
    for node in nodes:
        for value in dict.fromkeys((*node.inputs, *node.captured)):
            if value is not None:
                view.readers.setdefault(value, []).append(node)
        read = (*node.inputs, *node.captured)
        if all(value is None or value.const_value is not None or value in view.constants for value in read):
            view.constants.update(node.outputs)
        view.maker.update(dict.fromkeys(node.outputs, node))
    place = {node: i for i, node in enumerate(nodes)}
    taken: set[Node] = set()
    groups: dict[Node, Node] = {}
    for node in reversed(nodes):
        if node in taken or node.domain != "":
            continue
        for pattern in PATTERNS:
            group = pattern(view, node)
            if group is not None and _closed(view, node, group.members) and not taken.intersection(group.members):
                members = tuple(sorted(set(group.members), key=place.__getitem__))
                taken.update(members)
                groups[node] = Node(
                    group.op_type, group.inputs, node.outputs, group.attributes, node.name, "", node.version, members
                )
                break
    return [groups.get(node, node) for node in nodes if node in groups or node not in taken]


def _closed(view: View, last: Node, members: Collection[Node]) -> bool:
    """Only the last member's outputs are seen outside, and every member leads there."""
    if len(members) < 2 or last not in members:
        return False
    return all(
        view.hidden(value) and view.readers.get(value) and all(reader in members for reader in view.readers[value])
        for member in members
        if member is not last
        for value in member.outputs[:1]
    )


def activation(view: View, node: Node) -> Group | None:
    """GELU (erf and tanh), SiLU, Mish, hard-swish, hard-sigmoid, in any algebraic order."""
    if node.op_type not in ("Mul", "Div", "Add"):
        return None
    outer = polynomial(node.y, view.maker, view.inner)
    if outer is None or not 1 <= len(outer.leaves) <= 2:
        return None
    for f in outer.leaves.values():
        inside = view.made_by(f, "Erf", "Tanh", "Sigmoid", "Clip", "HardSigmoid", "Min", "Relu")
        if inside is None or not view.inner(f):
            continue
        others = [value for value in outer.leaves.values() if value is not f]
        found = _hard_sigmoid(view, node, f, inside) if not others else _gated(view, outer, others[0], f, inside)
        if found is not None:
            group_members = [*outer.members, inside, *found[2]]
            return Group(found[0], (found[3],), group_members, found[1])
    return None


Found = tuple[str, dict[str, Any], list[Node], ir.Value]


def _gated(view: View, outer: Polynomial, x: ir.Value, f: ir.Value, inside: Node) -> Found | None:
    """x times a function of x."""
    op_type = inside.op_type
    if op_type == "Tanh" and outer.is_close({(x, f): 1.0}):
        soft = view.made_by(inside.x, "Softplus")
        if soft is not None and soft.x is x and view.inner(inside.x):
            return "Mish", {}, [soft], x
    arms = _clip_bounds(view, inside)
    argument = polynomial(inside.x, view.maker, lambda v: v is not x and view.inner(v)) if inside.x is not x else None
    members = argument.members if argument is not None and view.inner(inside.x) else []
    if argument is None:
        if op_type == "Sigmoid" and outer.is_close({(x, f): 1.0}):
            return "Swish", {"alpha": 1.0}, [], x
        if op_type == "HardSigmoid" and outer.is_close({(x, f): 1.0}):
            a, b = inside.attr("alpha", 0.2), inside.attr("beta", 0.5)
            return ("HardSwish", {}, [], x) if same(a, 1 / 6) and same(b, 0.5) else None
        return None
    if not view.inner(inside.x):
        return None
    half = outer.is_close({(x,): 0.5, (x, f): 0.5})
    if op_type == "Erf" and half and argument.is_close({(x,): 1 / sqrt(2)}):
        return "Gelu", {"approximate": "none"}, members, x
    k = sqrt(2 / pi)
    if op_type == "Tanh" and half and argument.is_close({(x,): k, (x, x, x): k * 0.044715}):
        return "Gelu", {"approximate": "tanh"}, members, x
    linear = argument.linear()
    if linear is None or linear[0] is not x:
        return None
    _, a, b = linear
    if op_type == "Sigmoid" and b == 0 and outer.is_close({(x, f): 1.0}):
        return "Swish", {"alpha": a}, members, x
    if arms is not None:
        low, high, more = arms
        scale = outer.terms.get(tuple(sorted((id(x), id(f)))), 0.0)
        shape = (same(low, 0.0), same(high * scale, 1.0), same(a * scale, 1 / 6), same(b * scale, 0.5))
        if len([c for c in outer.terms.values() if abs(c) > 1e-9]) == 1 and all(shape):
            return "HardSwish", {}, [*members, *more], x
    return None


def _hard_sigmoid(view: View, node: Node, f: ir.Value, inside: Node) -> Found | None:
    """Clip(a x + b, 0, 1 / s) s."""
    outer = polynomial(node.y, view.maker, view.inner)
    arms = _clip_bounds(view, inside)
    if outer is None or arms is None or not view.inner(inside.x):
        return None
    line, argument = outer.linear(), polynomial(inside.x, view.maker, view.inner, affine=True)
    bottom = argument.linear() if argument is not None else None
    if line is None or bottom is None or argument is None or line[2] != 0 or not argument.members:
        return None
    low, high, more = arms
    if not (same(low, 0.0) and same(high * line[1], 1.0)):
        return None
    attributes = {"alpha": bottom[1] * line[1], "beta": bottom[2] * line[1]}
    return "HardSigmoid", attributes, [*argument.members, *more], bottom[0]


def _clip_bounds(view: View, node: Node) -> tuple[float, float, list[Node]] | None:
    """Constant bounds of a Clip."""
    if node.op_type != "Clip":
        return None
    low, high = scalar(node.input(1)), scalar(node.input(2))
    return None if low is None or high is None else (low, high, [])


def clipped_hard_sigmoid(view: View, node: Node) -> Group | None:
    """Clip(x / 6 + 1/2, 0, 1): the division comes first."""
    arms = _clip_bounds(view, node)
    if arms is None or not (same(arms[0], 0.0) and same(arms[1], 1.0)) or not view.inner(node.x):
        return None
    argument = polynomial(node.x, view.maker, view.inner, affine=True)
    line = argument.linear() if argument is not None else None
    if argument is None or line is None or not argument.members or not line[1]:
        return None
    return Group("HardSigmoid", (line[0],), [node, *argument.members], {"alpha": line[1], "beta": line[2]})


def normalisation(view: View, node: Node) -> Group | None:
    """LayerNormalization and RMSNormalization, with or without scale and bias."""
    members: list[Node] = []
    bias = scale = None
    current: Node | None = node
    if current is not None and current.op_type == "Add":
        value, bias = _constant_operand(view, current)
        if value is None or not view.inner(value):
            return None
        members.append(current)
        current = view.made_by(value, "Mul", "Div")
    if current is not None and current.op_type == "Mul":
        value, scale = _constant_operand(view, current)
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
        found = _root_mean_square(view, root, inverse)
        if found is None or d is None or found[0] is not d:
            continue
        _, axes, epsilon, members = found
        centred = view.made_by(d, "Sub")
        mean = view.made_by(centred.input(1), "ReduceMean") if centred is not None else None
        if centred is not None and mean is not None and mean.x is centred.x and _axes(mean) == axes:
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
    return square.x, _axes(mean), epsilon, [*members, added, mean, square]


def _axes(node: Node) -> list[int] | None:
    """Axes of a reduction, which are an input since opset 18."""
    if not node.attr("keepdims", 1):
        return None
    given = node.attr("axes")
    return list(given) if given is not None else ints(node.input(1))


def _constant_operand(view: View, node: Node) -> tuple[ir.Value | None, ir.Value | None]:
    """(the other operand, the constant one)."""
    for index in (0, 1):
        value = node.inputs[index]
        if value is not None and (value.const_value is not None or value in view.constants):
            return node.inputs[1 - index], value
    return None, None


def biased_matmul(view: View, node: Node) -> Group | None:
    """MatMul by a constant on either side, and the Add of a constant: the layer's bias, by columns, rows or both."""
    if node.op_type != "Add":
        return None
    product, bias = _constant_operand(view, node)
    matmul = view.made_by(product, "MatMul")
    if matmul is None or product is None or bias is None or bias.shape is None or product.shape is None:
        return None
    weights = [v for v in matmul.inputs if v is not None and (v.const_value is not None or v in view.constants)]
    lengths = list(bias.shape)
    behind = list(product.shape)[len(product.shape) - len(lengths) :]
    if len(weights) != 1 or weights[0].shape is None or len(weights[0].shape) != 2 or len(lengths) > rank(product):
        return None
    if any(have not in (1, want) for have, want in zip(lengths, behind, strict=True)):
        return None
    return Group("MatMul", (*matmul.inputs, bias), [matmul, node])


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
        source, axes = total.x, _axes(total)
        if total.op_type == "ReduceSum":
            square = view.made_by(total.x, "Mul", "Pow")
            if square is None or (square.input(1) is not square.x and scalar(square.input(1)) != 2.0):
                return None
            members.append(square)
            source = square.x
    else:
        source, axes = norm.x, _axes(norm)
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
    given, fill = ints(pads[0].input(1)), pads[0].input(2)
    if given is None or any(own) or pads[0].attr("mode", "constant") != "constant" or len(pads[0].inputs) > 3:
        return False
    if fill is not None and scalar(fill) != 0.0:
        return False
    width = len(given) // 2
    before = pads[0].x.shape
    centred = width == len(shape) and given[2] == half == given[2 + width] and sum(given) == 2 * half
    return centred and before is not None and before[2] == x.shape[1]


PATTERNS: list[Callable[[View, Node], Group | None]] = [
    normalisation,
    activation,
    clipped_hard_sigmoid,
    unit_length,
    local_response,
    biased_matmul,
]
