"""Occlusion: a window slides over the input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

import numpy as np

from onnxplain.methods.feature_groups import Lengths
from onnxplain.methods.registry import method
from onnxplain.methods.replacements import Fixed, Replacement, replacement_of
from onnxplain.methods.run import Run
from onnxplain.methods.sliding_windows import Place, WindowMeans, all_windows, with_windows
from onnxplain.methods.tensors import Array, Tensors

CELLS = 7  # windows beside each other along the longer side of a picture, by default


@method(
    "occlusion",
    base="",
    switches=True,
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
    answer: Literal["fall", "score"] = "fall",
    fixed: Fixed = None,
) -> Tensors:
    """How far the score falls where a window covers the input, mean over the windows that cover an element.

    R_i = mean over windows W that hold i of F(x) - F(x with W covered). An element has the whole fall, as in captum: it
    is not divided by the size of the window, so the sum over elements means nothing; a picture's channels are averaged.
    A window at the end of an axis is cut off there. Single elements (patch and stride 1) are feature ablation.
    answer=score is the mean of F(x with W covered) itself: Zeiler and Fergus's map of the class's probability where the
    model's probabilities are explained, low where what is covered matters.

    x (1, …) in model units; result the same shape, in the unit of the score.
    patch: None: 7 windows along the longer side of a picture, 49 along time, single columns.
    stride: How far the window moves, said in the same way, not more than its length. None: half of its length.
    answer: fall of the score, or the score that is left.
    """
    covered = replacement_of(run, x, baseline, fixed)
    windows = list(all_windows(x, patch, stride, CELLS))
    answers = WindowMeans(x)
    whole = run.score(x, seed)[0]
    queue: Iterator[Place] = iter(windows)
    for part in run.batches(len(windows)):
        chosen = list(islice(queue, part.stop - part.start))
        scores = [run.score(_covered(x, covered.row(n), chosen), seed) for n in range(covered.rows)]
        for place, score in zip(chosen, np.mean(scores, 0), strict=True):
            answers.add(place, whole - score if answer == "fall" else score)
    return answers.means().relevance_of(x)


def _covered(x: Tensors, covered: Tensors, places: Sequence[Place]) -> Tensors:
    """A point for each window, with that covered."""
    return with_windows(x, places, [covered[name][0][window] for name, window in places])
