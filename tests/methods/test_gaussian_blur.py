"""The blur against its definition, written as loops over elements."""

from __future__ import annotations

import math

import numpy as np
import pytest
from nets import normal

from onnxplain.errors import UsageError
from onnxplain.methods.gaussian_blur import blurred, blurred_axes
from onnxplain.methods.tensors import Tensors


def mirrored(place: int, length: int) -> int:
    """d c b a | a b c d | d c b a"""
    place %= 2 * length
    return place if place < length else 2 * length - 1 - place


def slow(row: np.ndarray, sigma: float) -> list[float]:
    """One row of numbers, blurred by the kernel as scipy.ndimage.gaussian_filter1d defines it."""
    reach = int(4 * sigma + 0.5)
    kernel = [math.exp(-0.5 * (d / sigma) ** 2) for d in range(-reach, reach + 1)] if sigma else [1.0]
    return [
        sum(w * row[mirrored(n + d - reach, len(row))] for d, w in enumerate(kernel)) / sum(kernel)
        for n in range(len(row))
    ]


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.4, 1.0, 2.5, 11.0])
def test_a_blur_is_the_weighted_mean_of_the_neighbours(sigma):
    x = normal(1, 2, 5, 7)
    expected = np.apply_along_axis(slow, 3, np.apply_along_axis(slow, 2, x.astype(float), sigma), sigma)
    np.testing.assert_allclose(blurred(x, [sigma], (2, 3)), expected, atol=1e-6)  # float32
    np.testing.assert_allclose(blurred(x.astype(np.float64), [sigma], (2, 3)), expected, atol=1e-14)


def test_many_blurs_at_once_are_one_after_the_other():
    x, sigmas = normal(1, 2, 5, 7), [3.0, 1.0, 0.0]
    together = blurred(x, sigmas, (2, 3))
    for row, sigma in zip(together, sigmas, strict=True):
        np.testing.assert_allclose(row[None], blurred(x, [sigma], (2, 3)), atol=1e-6)
    np.testing.assert_array_equal(together[2:], x)


def test_a_blur_keeps_the_mean_and_a_very_wide_one_nothing_else():
    x = normal(1, 1, 9, 9, dtype=np.float64)
    for sigma in (0.7, 5.0, 1e6):
        np.testing.assert_allclose(blurred(x, [sigma], (2, 3)).mean(), x.mean(), rtol=1e-12)
    np.testing.assert_allclose(blurred(x, [1e6], (2, 3)), x.mean(), rtol=1e-12)


@pytest.mark.parametrize(
    "shape, axes",
    [
        ((1, 3, 32, 32), (2, 3)), ((1, 32, 32, 3), (1, 2)), ((1, 1, 28, 28), (2, 3)), ((1, 64, 7, 7), (2, 3)),
        ((1, 28, 28, 1), (1, 2)), ((1, 2, 6, 3), (2, 3)),
    ],
)  # fmt: skip
def test_a_picture_is_blurred_along_its_sides(shape, axes):
    assert blurred_axes(Tensors({"x": np.zeros(shape)}), None) == {"x": axes}


def test_an_axis_is_not_endless():
    with pytest.raises(UsageError, match="x has a blurred axis of 4000 elements; blurs are of 2048 at most"):
        blurred_axes(Tensors({"x": np.zeros((1, 4000))}), [1])
