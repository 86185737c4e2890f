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
from onnxplain.methods.tensors import Array, Tensors, is_whole

Replacement = Annotated[
    float | list[float] | Literal["mean", "blur"] | BackgroundWord,
    Doc(
        "what stands in the place of what is taken away, in model units: one number, one for each channel or column, "
        "mean (of each channel of the input itself), blur, background (each of its rows in turn: the score is the mean "
        "over them) or background_mean (the mean of its rows); of tokens an id, such as that of [MASK] or [PAD]."
    ),
]
Fixed = Annotated[
    int | list[float] | None,
    Doc("tokens that stay as they are: their ids, such as 101 and 102 of BERT's [CLS] and [SEP]."),
]
BLUR = 0.05  # standard deviation of the blur, as a share of the longest side: 11 of 224 pixels; Fong and Vedaldi: 10


def replacement_of(
    run: Run, x: Tensors, baseline: float | Sequence[float] | str, fixed: int | Sequence[float] | None = None
) -> Tensors:
    """The inputs with everything taken away, shape and type of x; (B, …) of a background.

    baseline: one number in model units; one for each channel of a picture, feature of a sequence, column of a table;
    `mean`: of each channel over the positions of this very input; `blur`: the input without its details. fixed: whole
    numbers that stay what they are wherever they stand in an input of whole numbers. Raises UsageError.
    """
    if fixed is not None and not any(is_whole(array) for array in x.values()):
        raise UsageError(f"fixed names tokens, and {', '.join(x)} has numbers that are none.")
    if baseline == "background" or baseline == "background_mean":
        if baseline == "background_mean" and any(is_whole(array) and array.ndim < 4 for array in x.values()):
            raise UsageError("baseline: a mean of tokens is none; take baseline=background, or the id of one.")
        found = dict(background_rows(run, baseline))
    else:
        found = {name: _of(name, array, baseline) for name, array in x.items()}
    for name, array in x.items():
        if is_whole(array):
            found[name] = _whole(name, array, found[name])
            found[name] = np.where(np.isin(array, () if fixed is None else fixed), array, found[name])
    return Tensors({name: found[name].astype(array.dtype) for name, array in x.items()})


def _whole(name: str, x: Array, replacement: Array) -> Array:
    """What stands in the place of whole numbers: such again. Those of a picture are rounded, tokens are not."""
    rounded = np.rint(replacement)
    if x.ndim < 4 and not np.array_equal(rounded, replacement):
        raise UsageError(
            f"baseline: {name} {list(x.shape)} has whole numbers, such as ids of tokens, and what stands in their "
            "place is one: give the id of a mask or padding token."
        )
    return rounded


def _of(name: str, x: Array, baseline: float | Sequence[float] | str) -> Array:
    if isinstance(baseline, (int, float)):
        return np.full(x.shape, baseline, np.float64)
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
    numbers = np.asarray(baseline, np.float64).reshape([-1 if n == axis else 1 for n in range(x.ndim)])
    return np.broadcast_to(numbers, x.shape)
