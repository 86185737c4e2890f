"""Windows said in the plainest way, where two readers of ONNX count their steps differently.

onnx's inference and onnxruntime disagree on a ConvTranspose with SAME and output_padding, on ceil_mode where the last
window would lie in the padding, and on a window larger than its input. With explicit pads, floor, and a window as large
as the input they agree, and derivatives need no case of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxplain.graph.node import dims

POOLS = {"MaxPool", "AveragePool", "LpPool"}


def rewrite_windows(model: ir.Model, permits: Callable[[str], bool] = lambda rewrite: True) -> list[str]:
    """Rewrite attributes of such nodes, where sizes are known; a line for each. `permits` is asked by it."""
    changes = []
    for node in model.graph.all_nodes():
        if node.domain != "" or node.inputs[0] is None or node.inputs[0].shape is None:
            continue
        new = _transposed(node) if node.op_type == "ConvTranspose" else _pool(node) if node.op_type in POOLS else None
        if not new:
            continue
        attributes = ", ".join(f"{name} {list(value) if value else 'gone'}" for name, value in new.items())
        change = f"{node.name or node.outputs[0].name} ({node.op_type}) has {attributes}"
        if not permits(change):
            continue
        for name, value in new.items():
            node.attributes.pop(name, None)
            if value:
                node.attributes[name] = ir.AttrInt64s(name, value)
        changes.append(change)
    return changes


def _transposed(node: ir.Node) -> dict[str, list[int]] | None:
    """Explicit pads for SAME: the output is as long as the input times the stride, whatever the input's length."""
    auto = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    weight = node.inputs[1]
    if auto not in ("SAME_UPPER", "SAME_LOWER") or "output_shape" in node.attributes:
        return None
    if weight is None or weight.shape is None or not all(isinstance(dim, int) for dim in weight.shape[2:]):
        return None
    heads, tails = [], []
    for axis, kernel in enumerate(weight.shape[2:]):
        stride, dilation, extra = (_entry(node, name, axis, d) for name, d in SPREAD)
        assert isinstance(kernel, int)
        total = max(0, (kernel - 1) * dilation + 1 + extra - stride)
        less, more = total // 2, total - total // 2
        heads.append(less if auto == "SAME_UPPER" else more)
        tails.append(more if auto == "SAME_UPPER" else less)
    return {"auto_pad": [], "pads": heads + tails}


SPREAD = (("strides", 1), ("dilations", 1), ("output_padding", 0))


def _pool(node: ir.Node) -> dict[str, list[int]] | None:
    """No ceil_mode where floor counts the same; no window that reaches over its input on either side."""
    assert node.inputs[0] is not None
    lengths, kernel = dims(node.inputs[0])[2:], _ints(node, "kernel_shape")
    auto = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    if auto != "NOTSET" or len(kernel) != len(lengths):
        return None
    ceil, pads = bool(_int(node, "ceil_mode")), _ints(node, "pads") or [0] * (2 * len(kernel))
    strides = [_entry(node, "strides", axis, 1) for axis in range(len(kernel))]
    size, rank, same, larger = list(kernel), len(kernel), True, False
    new_pads, new_strides = list(pads), list(strides)
    for axis, length in enumerate(lengths):
        if not isinstance(length, int):
            return None
        head, tail, stride = pads[axis], pads[axis + rank], strides[axis]
        reach = (kernel[axis] - 1) * _entry(node, "dilations", axis, 1) + 1
        room = length + head + tail - reach
        if room < 0 and _entry(node, "dilations", axis, 1) == 1 and not _int(node, "count_include_pad"):
            size[axis], new_strides[axis], new_pads[axis], new_pads[axis + rank] = length, 1, 0, 0
            larger = True
        elif ceil:
            steps = -(-room // stride)
            if steps * stride >= length + head:  # a last window that would begin in the padding is dropped
                steps -= 1
            same = same and steps == room // stride
    if larger:
        return {"kernel_shape": size, "strides": new_strides, "pads": new_pads} | ({"ceil_mode": []} if same else {})
    return {"ceil_mode": []} if ceil and same else None


def _ints(node: ir.Node, name: str) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else []


def _int(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0


def _entry(node: ir.Node, name: str, axis: int, default: int) -> int:
    return (_ints(node, name) or [default] * (axis + 1))[axis]
