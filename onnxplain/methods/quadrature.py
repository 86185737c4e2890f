"""Where the points of an integral from 0 to 1 lie, and how much each counts."""

from __future__ import annotations

from typing import Literal

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.tensors import Array

Quadrature = Literal["gauss_legendre", "midpoint", "trapezoid", "left", "right"]
PANEL = 64  # points of one Gauss-Legendre rule: its nodes take the cube of that to find; more points are several rules


def nodes(steps: int, quadrature: Quadrature) -> tuple[Array, Array]:
    """Positions in [0, 1], rising, and weights that sum to 1; float64 (steps,). UsageError for a trapezoid of one."""
    if quadrature == "trapezoid":
        if steps < 2:
            raise UsageError("quadrature trapezoid takes both ends of the path: give at least 2 steps.")
        weights = np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps), weights
    if quadrature != "gauss_legendre":
        offset = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[quadrature]
        return (np.arange(steps) + offset) / steps, np.full(steps, 1 / steps)
    panels = -(-steps // PANEL)
    counts = [steps // panels + (panel < steps % panels) for panel in range(panels)]
    found = {count: np.polynomial.legendre.leggauss(count) for count in set(counts)}
    places = [(panel + (found[count][0] + 1) / 2) / panels for panel, count in enumerate(counts)]
    shares = [found[count][1] / (2 * panels) for count in counts]
    return np.concatenate(places), np.concatenate(shares)
