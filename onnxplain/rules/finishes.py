"""Where a relevance pass ends: arrived relevance -> output.

A finish gets what every pass brought to a tensor x and gives the output; for integer inputs it says what a token's
relevance is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxplain.errors import UnsupportedModel
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import rank
from onnxplain.rules import class_activation
from onnxplain.rules.class_activation import ActivationMap, MapAxes


@dataclass(frozen=True)
class Finish:
    """combine: relevances of the passes and x -> output, elementwise. token: the same, summed over an embedding.

    maps: combine leaves one channel: it makes a map of a feature map x (`Facts.channels`). Tokens have no such thing.
    whole: of such a map all channels stay.
    pooled_head: it means something only where what is explained is linear in the means of x over its positions.
    weight: a map of the last feature map, made of what the first pass brings to it, that the output is multiplied by.
    features: what `token` is given of an embedding.
    """

    name: str
    combine: Callable[[Backward, Sequence[ir.Value], ir.Value], ir.Value]
    token: Callable[[Backward, Sequence[ir.Value], ir.Value], ir.Value]
    maps: bool = False
    whole: bool = False
    pooled_head: bool = False
    weight: ActivationMap | None = None
    features: Callable[[Backward, ir.Value], ir.Value] = lambda op, x: op.real(x)

    def shape(self, op: Backward, x: ir.Value) -> list[int | str | None]:
        """Of the output for a float tensor x."""
        shape = op.stream_shape(x)
        if self.maps and not self.whole:
            shape[op.facts.channels[x]] = 1
        return shape


def _token_axes(op: Backward, embedding: ir.Value) -> ir.Value:
    return op.ints([rank(embedding) - 1])


def _finish(
    name: str,
    combine: Callable[[Backward, Sequence[ir.Value], ir.Value], ir.Value],
    before: Callable[[Backward, ir.Value, ir.Value], ir.Value] = lambda op, r, x: r,
    after: Callable[[Backward, ir.Value], ir.Value] = lambda op, r: r,
) -> Finish:
    def token(op: Backward, rs: Sequence[ir.Value], x: ir.Value) -> ir.Value:
        summed = op.ReduceSum(before(op, rs[0], x), _token_axes(op, x), keepdims=0)
        return after(op, summed)

    return Finish(name, combine, token)


def _normalised_difference(op: Backward, rs: Sequence[ir.Value], x: ir.Value) -> ir.Value:
    """clip+(R / sum R - R_dual / sum R_dual) divided by its maximum, per stream."""
    stream = op.facts.axes.get(x, 0)
    axes = op.ints([axis for axis in range(rank(x)) if axis != max(stream, 0)])
    shares = []
    for r in rs:
        total = op.ReduceSum(r, axes, keepdims=1)
        shares.append(op.Div(r, op.Where(op.Equal(total, 0.0), 1.0, total)))
    clipped = op.Max(op.Sub(*shares), 0.0)
    top = op.ReduceMax(clipped, axes, keepdims=1)
    return op.Div(clipped, op.Where(op.Equal(top, 0.0), 1.0, top))  # type: ignore[no-any-return]


def map_of(op: Backward, make: ActivationMap, g: ir.Value, x: ir.Value) -> ir.Value:
    """The map that `make` makes of a feature map x and its gradient, with one channel."""
    channels = op.facts.channels[x]
    space = tuple(axis for axis in range(1, rank(x)) if axis != channels)
    return make(op, g, op.real(x), MapAxes(channels, space))


def _no_tokens(op: Backward, rs: Sequence[ir.Value], x: ir.Value) -> ir.Value:
    raise UnsupportedModel(f"{x.name}: a map is made of a feature map, not of tokens.")


def _map(name: str, make: ActivationMap) -> Finish:
    def combine(op: Backward, rs: Sequence[ir.Value], x: ir.Value) -> ir.Value:
        return map_of(op, make, rs[0], x)

    return Finish(name, combine, _no_tokens, maps=True)


AS_IT_IS = _finish("as it is", lambda op, rs, x: rs[0])
GRADIENT = _finish("as it is", lambda op, rs, x: rs[0], before=lambda op, r, x: r * op.real(x))
ABSOLUTE = _finish("absolute", lambda op, rs, x: op.Abs(rs[0]), before=lambda op, r, x: op.Abs(r))
SQUARE = _finish("square", lambda op, rs, x: rs[0] * rs[0], before=lambda op, r, x: r * r)
TIMES_INPUT = _finish("times input", lambda op, rs, x: rs[0] * op.real(x), before=lambda op, r, x: r * op.real(x))
TIMES_DIFFERENCE = replace(
    _finish("times difference", lambda op, rs, x: rs[0] * op.difference(x), before=lambda op, r, x: r * x),
    features=lambda op, x: op.difference(x),
)
POSITIVE = _finish("positive", lambda op, rs, x: op.Max(rs[0], 0.0), after=lambda op, r: op.Max(r, 0.0))
NORMALISED_DIFFERENCE = Finish("normalised difference", _normalised_difference, _normalised_difference)

FINISHES: dict[str, Finish] = {
    "gradient": GRADIENT,
    "absolute": ABSOLUTE,
    "square": SQUARE,
    "times_input": TIMES_INPUT,
    "times_difference": TIMES_DIFFERENCE,
    "as_it_is": AS_IT_IS,
    "positive": POSITIVE,
    "normalised_difference": NORMALISED_DIFFERENCE,
    "weighed_by_grad_cam": replace(
        _finish("weighed by Grad-CAM", lambda op, rs, x: rs[1]), weight=class_activation.grad_cam
    ),
    "feature_map": Finish("as it is", lambda op, rs, x: rs[0], _no_tokens, maps=True, whole=True),
    "cam": replace(_map("CAM", class_activation.cam), pooled_head=True),
    "grad_cam": _map("Grad-CAM", class_activation.grad_cam),
    "hires_cam": _map("HiResCAM", class_activation.hires_cam),
    "x_grad_cam": _map("XGrad-CAM", class_activation.x_grad_cam),
    "layer_cam": _map("LayerCAM", class_activation.layer_cam),
    "grad_cam_plus_plus": _map("Grad-CAM++", class_activation.grad_cam_plus_plus),
    "grad_cam_plus_plus_code": _map("Grad-CAM++, code", class_activation.grad_cam_plus_plus_code),
}
