"""Pads of every axis from the pads of some."""

from __future__ import annotations

from collections.abc import Sequence

from onnxplain.graph.node import axes_of


def places_of_pads(axes: Sequence[int], rank: int) -> list[int | None]:
    """For each number of a Pad over all axes its index in the pads over `axes`; None: the axis is not padded."""
    axes = axes_of(axes, rank)
    begins = [axes.index(axis) if axis in axes else None for axis in range(rank)]
    return [*begins, *(None if place is None else place + len(axes) for place in begins)]
