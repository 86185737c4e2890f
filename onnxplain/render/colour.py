"""Colours: how a number becomes a pixel. Red is positive, blue negative, and zero exactly the centre of the palette."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from onnxplain.errors import InputError, UnknownName

Limits = tuple[float, float]

SIGNED = {"bwr": "bwr", "rdbu": "RdBu_r", "seismic": "seismic"}  # our name -> matplotlib's
UNSIGNED = {"inferno": "inferno", "viridis": "viridis", "grey": "gray"}
PERCENTILE = 99.5  # of |R|: a handful of outliers must not turn the rest of the map white
CENTRE = 128  # index of zero in a signed table; entries 1..255 are -1..1, entry 0 repeats entry 1
HATCH = ((110, 110, 110), (175, 175, 175))  # stripes for NaN and Inf: a pattern no palette contains
HATCH_PERIOD = 4  # pixels


@cache
def lut(palette: str) -> NDArray[np.uint8]:
    """The 256 RGB entries of a palette, uint8 (256, 3). In a signed one entry CENTRE is white."""
    if palette in SIGNED:
        steps = np.clip(np.arange(256) - CENTRE, 1 - CENTRE, None)
        exact = colormaps[SIGNED[palette]].resampled(255)(np.arange(255))[:, :3]
        table = np.minimum(exact / exact[CENTRE - 1], 1)  # RdBu is #f7f7f7 in the middle: scaled so that zero is white
        table = table[steps + CENTRE - 1]
    elif palette in UNSIGNED:
        table = colormaps[UNSIGNED[palette]](np.arange(256))[:, :3]
    else:
        raise UnknownName("palette", palette, [*SIGNED, *UNSIGNED])
    entries: NDArray[np.uint8] = np.rint(table * 255).astype(np.uint8)
    return entries


def plane(values: Any) -> NDArray[np.float64]:
    """`values` as a float64 map (H, W); anything else is an InputError that names the shape."""
    array = np.asarray(values)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "fiub":
        raise InputError(
            f"a map to draw has two axes (H, W) and real numbers, not shape {array.shape} of {array.dtype}. "
            "Reduce its channels first (reduce_channels)."
        )
    return array.astype(np.float64)


def limits(values: Any, signed: bool = True) -> Limits:
    """What the ends of the colour bar mean: (-b, b), or (0, b) for an unsigned map, in the map's own unit.

    b is the 99.5th percentile of |R|, the maximum where that is zero, and 1 where every value is zero or non-finite. An
    "unsigned" map that has negative values gets signed limits: clipping them to zero would draw something else.
    """
    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    strength = np.abs(finite)
    bound = 1.0
    if strength.size and strength.max() > 0:
        bound = float(np.percentile(strength, PERCENTILE)) or float(strength.max())
    return (-bound, bound) if signed or (finite < 0).any() else (0.0, bound)


def normalised(values: NDArray[np.float64], bounds: Limits) -> NDArray[np.float64]:
    """`values` clipped to `bounds` and divided: -1..1 where low < 0 (zero stays zero), else 0..1; Inf becomes NaN."""
    low, high = bounds
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InputError(f"colour limits must be finite and increasing, not {low} to {high}.")
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.clip(values / max(-low, high), -1, 1) if low < 0 else np.clip((values - low) / (high - low), 0, 1)
    return np.where(np.isfinite(values), scaled, np.nan)


def default_palette(bounds: Limits, palette: str | None) -> str:
    """`palette` where it fits: signed limits need a signed palette, unsigned ones a sequential palette."""
    signed = bounds[0] < 0
    if palette is None or (palette in SIGNED) != signed:
        if palette is not None:
            lut(palette)  # an unknown name is an error, also where it would not be used
        return "bwr" if signed else "inferno"
    return palette


def colours(values: Any, bounds: Limits | None = None, palette: str | None = None) -> tuple[NDArray[np.uint8], int]:
    """A map (H, W) -> its pixels, uint8 (H, W, 3), and how many values were NaN or Inf (hatched grey)."""
    array = plane(values)
    bounds = bounds or limits(array)
    table = lut(default_palette(bounds, palette))
    scaled = normalised(array, bounds)
    bad = np.isnan(scaled)
    filled = np.where(bad, 0, scaled)
    index = CENTRE + np.rint(filled * 127) if bounds[0] < 0 else np.rint(filled * 255)
    pixels = table[index.astype(np.intp)]
    if bad.any():
        diagonal = np.add.outer(np.arange(array.shape[0]), np.arange(array.shape[1]))
        pixels[bad] = np.array(HATCH, np.uint8)[(diagonal // HATCH_PERIOD % 2)[bad]]
    return pixels, int(bad.sum())
