"""Sliding windows: the geometry that convolutions and pools share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims


@dataclass(frozen=True)
class Window:
    """Geometry of a sliding window, one entry per spatial axis. begin, end: padding."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]

    @property
    def spans(self) -> list[int]:
        """What one window covers, dilation included."""
        return [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    @classmethod
    def of(cls, node: Node, kernel: Sequence[int]) -> Window:
        """Read strides, dilations, pads and auto_pad of a Conv or a pool."""
        n = len(kernel)
        strides = list(node.attr("strides") or [1] * n)
        dilations = list(node.attr("dilations") or [1] * n)
        pads = list(node.attr("pads") or [0] * 2 * n)
        auto = node.attr("auto_pad", "NOTSET")
        if auto == "VALID":
            pads = [0] * 2 * n
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            pads = _same(node, list(kernel), strides, dilations, upper=auto == "SAME_UPPER")
        return cls(list(kernel), strides, dilations, pads[:n], pads[n:])


def _same(node: Node, kernel: list[int], strides: list[int], dilations: list[int], upper: bool) -> list[int]:
    begin, end = [], []
    auto = "SAME_UPPER" if upper else "SAME_LOWER"
    for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        size = dims(node.x)[2 + axis]
        span = d * (k - 1) + 1
        if isinstance(size, int):
            total = (-(-size // s) - 1) * s + span - size
            if total < -2:  # onnxruntime's Conv begins at the second row then, which ONNX's text does not say
                raise UnsupportedOp(
                    f"{node}: auto_pad={auto} with a stride of {s} that leaves {-total} rows of {size} out is read in "
                    f"two ways. Write its pads out."
                )
            total = max(0, total)
        elif s == 1:
            total = span - 1
        else:
            raise UnsupportedOp(
                f"{node}: auto_pad={auto} with stride {s} needs the size of spatial "
                f"axis {axis}, which this model leaves open. Fix the input size (onnxruntime's tool "
                f"make_dynamic_shape_fixed)."
            )
        small, large = total // 2, total - total // 2
        begin.append(small if upper else large)
        end.append(large if upper else small)
    return begin + end


def even_pads(op: Backward, g: ir.Value, before: list[int], after: list[int]) -> tuple[ir.Value, list[int], list[int]]:
    """CUDA has no Conv with different padding before and after: put the difference into a Pad."""
    if before == after:
        return g, before, after
    common = [min(b, a) for b, a in zip(before, after, strict=True)]
    extra = [
        0,
        0,
        *(b - c for b, c in zip(before, common, strict=True)),
        0,
        0,
        *(a - c for a, c in zip(after, common, strict=True)),
    ]
    return op.Pad(g, extra), common, common
