"""Where in a picture a map points: the box around the largest connected part of what stands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxplain.errors import InputError

THRESHOLD = 0.2  # of the map's maximum: Zhou et al. 2016, section 3.2
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class LocalisationBox:
    """A rectangle of pixels; right and bottom are the first ones outside. width, height: of the picture it lies in."""

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int

    def within(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in a picture (width, height) that shows the same at another size."""
        across, down = size[0] / self.width, size[1] / self.height
        return round(self.left * across), round(self.top * down), round(self.right * across), round(self.bottom * down)

    def content(self) -> dict[str, int]:
        """For a file: what `vars` would give."""
        return dict(vars(self))

    def __str__(self) -> str:
        corners = f"({self.left}, {self.top}) to ({self.right}, {self.bottom})"
        return f"{corners} of {self.width} × {self.height}"


def localisation_box(
    values: Any, threshold: float = THRESHOLD, size: tuple[int, int] | None = None, smooth: bool = True
) -> LocalisationBox | None:
    """The box around the largest connected part of a map (H, W) at or above `threshold` times its maximum.

    Zhou et al. 2016, Learning Deep Features for Discriminative Localization, section 3.2. Of a signed map the positive
    part counts; None where nothing is positive. Positions that touch at a corner are connected, as in the contours that
    localisation benchmarks draw; of parts that are equally large the one with the larger sum counts, then the first.
    threshold: above 0, at most 1. size: (width, height) of the picture that the map is stretched over before all that,
    bilinear, or each value a rectangle where it is not `smooth`; default: the map's own. NaN is below any threshold.
    Raises InputError.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise InputError(f"a localisation box is of a map (H, W), and this has the shape {list(array.shape)}.")
    if not 0 < threshold <= 1:
        raise InputError(f"the threshold of a localisation box is a share of the maximum above 0, not {threshold}.")
    array = np.where(np.isfinite(array), array, 0).clip(0)
    array /= array.max() or 1.0  # of any magnitude, float32 below holds it
    if size is not None and size != array.shape[::-1]:
        kind = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        array = np.asarray(Image.fromarray(array.astype(np.float32)).resize(size, kind))
    highest = array.max()
    if highest <= 0:
        return None
    labels = components(array >= threshold * highest)
    inside = labels >= 0
    sizes = np.bincount(labels[inside])
    sums = np.bincount(labels[inside], array[inside].astype(np.float64))
    rows, columns = np.nonzero(labels == np.lexsort((-sums, -sizes))[0])
    height, width = array.shape
    return LocalisationBox(
        int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1, width, height
    )


def components(mask: Mask) -> NDArray[np.int64]:
    """The number of each position's connected part, in order of first positions; -1 outside. mask, result (H, W).

    Every position points at another of its part: at first at itself, in the end at the first one. A step joins the
    smaller of what two neighbours point at to both, and lets everything point at what it points at points at, so that
    chains halve: few steps of whole-array arithmetic, whatever the shape of the part.
    """
    height, width = mask.shape
    place = np.arange(height * width).reshape(height, width)
    pairs = [
        (place[:, :-1], place[:, 1:]),
        (place[:-1], place[1:]),
        (place[:-1, :-1], place[1:, 1:]),
        (place[:-1, 1:], place[1:, :-1]),
    ]
    inside = mask.ravel()
    one, other = (np.concatenate([pair[n].ravel() for pair in pairs]) for n in (0, 1))
    touching = inside[one] & inside[other]
    one, other = one[touching], other[touching]
    points = np.arange(height * width)
    while True:
        before = points.copy()
        smaller = np.minimum(points[one], points[other])
        for end in (before[one], before[other], one, other):
            np.minimum.at(points, end, smaller)
        points = points[points]
        if np.array_equal(points, before):
            break
    labels = np.full(height * width, -1)
    labels[inside] = np.unique(points[inside], return_inverse=True)[1]
    return labels.reshape(height, width)
