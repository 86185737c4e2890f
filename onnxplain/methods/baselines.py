"""Where a path to the input begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.background import BackgroundWord, background_rows
from onnxplain.methods.gaussian_blur import blurred, blurred_axes, longest
from onnxplain.methods.options import Doc
from onnxplain.methods.run import InputBounds, Run
from onnxplain.methods.tensors import Array, Tensors

Baseline = float | list[float] | Literal["blur", "maximum_distance"] | BackgroundWord
BaselineAt = Annotated[
    Literal["moved", "input"],
    Doc(
        "what the baseline is of. moved: of what moves, the inputs or an inner tensor (--attribute-to). input: of the "
        "model's float inputs; an inner tensor begins at its value there, as in captum."
    ),
]
SHARE = 0.1  # of the longest blurred axis: the standard deviation of a blurred baseline that is not told one


def baseline_of(
    run: Run, x: Tensors, baseline: Baseline, sigma: float | None = None, axes: Sequence[float] | None = None,
    at: Literal["moved", "input"] = "moved",
) -> Tensors:  # fmt: skip
    """The baseline of a point x, (1, …) in its types; (B, …) of a background, over whose rows the mean is taken.

    A number, one for each channel, `blur`: x blurred by `sigma` elements along `axes`, or `maximum_distance`:
    of the ends of the input's range the one that is farther from each element (Sturmfels et al. 2020). at: see
    `BaselineAt`. Raises UsageError for what does not fit, and for sigma and axes beside another baseline.
    """

    def made(x: Tensors, bounds: InputBounds) -> Tensors:
        if baseline != "blur" and (sigma is not None or axes is not None):
            given = "sigma" if sigma is not None else "axes"
            raise UsageError(f"{given} is of a blurred baseline: give baseline=blur too.")
        if baseline == "blur":
            along = blurred_axes(x, axes)
            lengths = longest(x, along)
            widths = {name: SHARE * lengths[name] if sigma is None else sigma for name in x}
            return Tensors({name: blurred(array, [widths[name]], along[name]) for name, array in x.items()})
        if baseline == "background" or baseline == "background_mean":
            if at == "input":
                raise UsageError(
                    f"baseline={baseline} has no baseline_at=input: its rows are inputs, and an inner tensor begins at "
                    "its values there."
                )
            return background_rows(run, baseline)
        if baseline == "maximum_distance":
            low, high = ends(run, x, bounds)
            return Tensors({n: np.where(a - low[n] < high[n] - a, high[n], low[n]) for n, a in x.items()})
        if not isinstance(baseline, (int, float)) and not run.samples:
            raise UsageError("a baseline for each channel needs inputs whose axis 0 counts samples: give one number.")
        return x.map(lambda array: filled(array, baseline, "baseline"))

    return made(x, run.bounds) if at == "moved" else run.where_inputs_are(made)


def ends(run: Run, x: Tensors, bounds: InputBounds) -> tuple[Tensors, Tensors]:
    """The lowest and the highest value that each element may have, (1, …).

    They are the input's bounds; where these are not known the ends of x itself, and that is noted.
    """
    if bounds is not None:
        lows, highs = bounds
        return x.map(lambda array: filled(array, lows, "bounds")), x.map(lambda array: filled(array, highs, "bounds"))
    run.note("bounds are not known: the range is taken from each sample's smallest to its largest value")
    return x.map(lambda array: np.full_like(array, array.min())), x.map(lambda array: np.full_like(array, array.max()))


def filled(x: Array, values: float | Sequence[float], what: str) -> Array:
    """One number, or one for each channel, as an array like x. what: its name, for the error.

    Channels lie along axis 1, or along the last where only that is as long.
    """
    if isinstance(values, (int, float)):
        return np.full_like(x, values)
    if len(values) == 1:
        return np.full_like(x, values[0])
    axis = next((axis for axis in (1, x.ndim - 1) if 0 < axis < x.ndim and x.shape[axis] == len(values)), None)
    if axis is None:
        raise UsageError(
            f"{what} has {len(values)} numbers, one for each channel, and neither axis 1 nor the last of "
            f"{list(x.shape)} is as long."
        )
    shape = [len(values) if n == axis else 1 for n in range(x.ndim)]
    return np.broadcast_to(np.asarray(values, x.dtype).reshape(shape), x.shape).copy()
