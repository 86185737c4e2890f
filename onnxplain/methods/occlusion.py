"""Occlusion: a window slides over the input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.feature_groups import Lengths, lengths_of, windows
from onnxplain.methods.registry import method
from onnxplain.methods.replacements import Replacement, replacement_of
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

CELLS = 7  # windows beside each other along the longer side of a picture, by default
Place = tuple[str, tuple[slice, ...]]  # an input, and the window in it behind axis 0


@method(
    "occlusion",
    base="",
    channels="mean",
    cite="Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks, sect. 4.2",
)
def occlusion(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    patch: Lengths = None,
    stride: Lengths = None,
    baseline: Replacement = 0.0,
) -> Tensors:
    """How far the score falls where a window covers the input, mean over the windows that cover an element.

    R_i = mean over windows W that hold i of F(x) - F(x with W covered). An element has the whole fall, as in captum: it
    is not divided by the size of the window, so the sum over elements means nothing; a picture's channels are averaged.
    A window at the end of an axis is cut off there. Single elements (patch and stride 1) are feature ablation.

    x (1, …) in model units; result the same shape, in the unit of the score.
    patch: None: 7 windows along the longer side of a picture, 49 along time, single columns.
    stride: How far the window moves, said in the same way, not more than its length. None: half of its length.
    """
    covered = replacement_of(run, x, baseline)
    places = list(_places(x, patch, stride))
    falls, windows_over = x.map(_zeros), x.map(_zeros)
    whole = run.score(x, seed)[0]
    queue: Iterator[Place] = iter(places)
    for part in run.batches(len(places)):
        chosen = list(islice(queue, part.stop - part.start))
        scores = [run.score(_points(x, covered.row(n), chosen), seed) for n in range(covered.rows)]
        for (name, window), score in zip(chosen, np.mean(scores, 0), strict=True):
            falls[name][0][window] += whole - score
            windows_over[name][0][window] += 1
    return (falls / windows_over).with_(x, lambda array, like: array.astype(like.dtype))


def _places(x: Tensors, patch: int | Sequence[float] | None, stride: int | Sequence[float] | None) -> Iterator[Place]:
    """Every window of every input. Raises UsageError for a stride that leaves elements out."""
    for name, array in x.items():
        lengths = lengths_of(array.shape, patch, CELLS)
        steps = tuple(max(1, length // 2) for length in lengths)
        if stride is not None:
            steps = lengths_of(array.shape, stride, CELLS)
            for length, step, side in zip(lengths, steps, array.shape[1:], strict=True):
                if step > length and length < side:
                    raise UsageError(f"a stride of {step} steps over elements that a window of {length} never covers.")
        for window in windows(array.shape, lengths, steps):
            yield name, window


def _points(x: Tensors, covered: Tensors, places: Sequence[Place]) -> Tensors:
    """A point for each window, with that covered."""
    points = Tensors({name: np.repeat(array, len(places), 0) for name, array in x.items()})
    for row, (name, window) in enumerate(places):
        points[name][row][window] = covered[name][0][window]
    return points


def _zeros(array: Array) -> Array:
    return np.zeros(array.shape, np.float64)
