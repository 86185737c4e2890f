"""What stands in the place of an element that is taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.background import BackgroundWord, background_rows
from onnxplain.methods.feature_groups import channel_axis, group_axes
from onnxplain.methods.gaussian_blur import blurred, blurred_axes
from onnxplain.methods.options import Doc
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

Replacement = Annotated[
    float | list[float] | Literal["mean", "blur"] | BackgroundWord,
    Doc(
        "what stands in the place of what is taken away, in model units: one number, one for each channel or column, "
        "mean (of each channel of the input itself), blur, background (each of its rows in turn: the score is the mean "
        "over them) or background_mean (the mean of its rows)."
    ),
]
BLUR = 0.05  # standard deviation of the blur, as a share of the longest side: 11 of 224 pixels; Fong and Vedaldi: 10


def replacement_of(run: Run, x: Tensors, baseline: float | Sequence[float] | str) -> Tensors:
    """The inputs with everything taken away, shape and type of x; (B, …) of a background.

    baseline: one number in model units; one for each channel of a picture, feature of a sequence, column of a table;
    `mean`: of each channel over the positions of this very input; `blur`: the input without its details. Raises
    UsageError.
    """
    if baseline == "background" or baseline == "background_mean":
        return background_rows(run, baseline)
    return Tensors({name: _of(name, array, baseline).astype(array.dtype) for name, array in x.items()})


def _of(name: str, x: Array, baseline: float | Sequence[float] | str) -> Array:
    if isinstance(baseline, (int, float)):
        return np.full_like(x, baseline)
    if isinstance(baseline, str):
        if x.ndim < 3:
            raise UsageError(
                f"baseline {baseline} is over the positions of a picture or a sequence, and {name} {list(x.shape)} is "
                "a table: give one number, or one for each column."
            )
        axes = group_axes(x.shape)
        if baseline == "mean":
            return np.broadcast_to(x.mean(axes, keepdims=True), x.shape)
        along = blurred_axes(Tensors({name: x}), axes)[name]
        deviation = max(BLUR * max(x.shape[axis] for axis in along), 1.0)
        return blurred(x.astype(np.float64), [deviation], along)
    axis = channel_axis(x.shape)
    if axis is None or x.shape[axis] != len(baseline):
        raise UsageError(
            f"baseline has {len(baseline)} numbers, one for each channel or column, and {name} {list(x.shape)} has "
            f"{'none' if axis is None else x.shape[axis]}."
        )
    numbers = np.asarray(baseline, x.dtype).reshape([-1 if n == axis else 1 for n in range(x.ndim)])
    return np.broadcast_to(numbers, x.shape)
