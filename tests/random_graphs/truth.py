"""What a gradient ought to be: central differences, in float64, of the model as it was drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from random_graphs.draw import Drawn
from random_graphs.kernels import Array, evaluator, wide

STEP = 1e-5  # truncation and rounding of a central difference in float64 are both about 1e-10 of the value here
SMOOTH = 3e-6  # two steps that differ by more than this share of the slope met a kink or a jump
NOISE = 1e-8  # of the value: rounding leaves about 1e-11 in a bend


class Kink(Exception):
    """Not differentiable at this point, as far as differences tell."""


@dataclass
class Truth:
    """Slopes of sum(seed * y) along random directions of one attributed tensor."""

    directions: list[Array]
    slopes: list[float]


def cut(model: onnx.ModelProto, explained: tuple[str, ...], attributed: tuple[str, ...]) -> onnx.ModelProto:
    """The model in float64 with the explained tensors as outputs; attributed inner tensors become inputs."""
    model = wide(model)
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name in attributed:
                node.output[i] = f"{name}/before"
    known = {value.name for value in model.graph.input}
    double = onnx.TensorProto.DOUBLE
    model.graph.input.extend(helper.make_tensor_value_info(n, double, None) for n in attributed if n not in known)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(n, double, None) for n in explained)
    return model


def values(model: onnx.ModelProto, names: list[str], feeds: dict[str, Array]) -> dict[str, Array]:
    """Any tensors of the untouched model, in float64."""
    model = wide(model)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in names)
    return dict(zip(names, evaluator(model).run(None, feeds), strict=True))


def differences(drawn: Drawn, seeds: dict[str, Array], rng: np.random.Generator, count: int = 2) -> dict[str, Truth]:
    """Slopes of the sum of seed * explained, per attributed tensor. seeds: by explained tensor. Raises Kink."""
    attributed = drawn.attribute or tuple(drawn.feeds)
    return {name: _slopes(drawn, name, seeds, rng, count) for name in attributed}


def _slopes(drawn: Drawn, name: str, seeds: dict[str, Array], rng: np.random.Generator, count: int) -> Truth:
    """One attributed tensor, all others following from the inputs as they do."""
    inner = (name,) if name not in drawn.feeds else ()
    session = evaluator(cut(drawn.model, tuple(seeds), inner))
    feeds = dict(drawn.feeds)
    if inner:
        feeds |= values(drawn.model, [name], drawn.feeds)

    def score(shift: Array | float) -> float:
        with np.errstate(all="ignore"):
            ys = session.run(None, {**feeds, name: feeds[name] + shift})
        if any(y.shape != seed.shape for y, seed in zip(ys, seeds.values(), strict=True)):
            raise Kink("an explained tensor has another shape there")
        return float(sum((seed * y).sum() for y, seed in zip(ys, seeds.values(), strict=True)))

    here = score(0.0)
    directions = [rng.standard_normal(feeds[name].shape) for _ in range(count)]
    slopes = []
    for direction in directions:
        ups, downs, found = [], [], []
        for step in (STEP, STEP / 2):
            ups.append(score(step * direction))
            downs.append(score(-step * direction))
            found.append((ups[-1] - downs[-1]) / (2 * step))
        scale = max(1e-3, abs(here), abs(found[0]))
        bends = [abs(u + d - 2 * here) / step for u, d, step in zip(ups, downs, (STEP, STEP / 2), strict=True)]
        if not np.isfinite(found).all() or abs(found[0] - found[1]) > SMOOTH * scale:
            raise Kink(f"along {name} the slope is {found[0]:.6g}, closer by {found[1]:.6g}")
        if bends[0] > NOISE * (1 + abs(here)) and bends[1] > 0.7 * bends[0]:  # a smooth bend halves with the step
            raise Kink(f"{name} has two slopes here, {bends[0]:.3g} apart")
        slopes.append((4 * found[1] - found[0]) / 3)
    return Truth(directions, slopes)


def tensor_values(drawn: Drawn) -> dict[str, np.ndarray]:
    """Every array of a drawn model, in float64."""
    model = wide(drawn.model)
    names = [o for node in model.graph.node for o in node.output if o]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in names)
    found = dict(zip(names, evaluator(model).run(None, drawn.feeds), strict=True))
    found |= drawn.feeds
    return {n: v for n, v in found.items() if isinstance(v, np.ndarray)}
