"""What a looped method asks of the model: arrays in, arrays out, however many rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from onnxplain.methods.tensors import Array, Tensors


class Run(Protocol):
    """One sample of one target, looked at many times.

    Points are `Tensors` with S rows, (S, …) for each attributed input; a seed of one row stands for all. The other
    inputs of the model stay what they are. Rows are cut to what fits in memory, progress is told and a cancelled call
    ends here, so that no method thinks of it.
    """

    per_unit: bool
    """Whether relevance is per unit of the input, as a gradient is; else it is a share of the score."""

    derivative: bool
    """Whether relevance is the score's derivative itself, whose integral along a path is the change of the score."""

    bounds: tuple[Sequence[float], Sequence[float]] | None
    """(lows, highs) of an only input, one number or one for each channel, in model units; None: not known."""

    samples: bool
    """Whether axis 0 of the inputs counts samples; else a point is the whole input, its axes behind axis 0."""

    @property
    def background(self) -> Tensors:
        """Rows of data, (B, …) for each attributed input, B at least 1. Raises UsageError where none were given."""
        ...

    def batches(self, count: int, enough: int | None = None, what: str = "looks") -> Iterator[slice]:
        """0 … count in pieces that fit in memory at once; what is told as progress is how much of it is done.

        enough: of so many there is an answer, so that whoever waits may end it then; the last piece is an earlier one,
        and that is noted. None: all are needed. what: they are, in the plural.
        """
        ...

    def forward(self, points: Tensors) -> Array:
        """The explained tensor at each point, (S, …)."""
        ...

    def score(self, points: Tensors, seed: Array) -> Array:
        """What is explained, at each point: the sum of seed times explained tensor, float64 (S,)."""
        ...

    def relevance(self, points: Tensors, seed: Array) -> Tensors:
        """What the base method gives each attributed input at each point, (S, …)."""
        ...

    def note(self, text: str, figure: float | None = None) -> None:
        """Say something of the result that a reader must know; it comes with the explanation, wherever that goes.

        Equal texts of several rows and targets are said once. figure: put in place of `{figure:…}` in the text, by its
        format; the largest of them is said, and in how many explanations there was one.
        """
        ...
