"""What a looped method asks of the model: arrays in, arrays out, however many rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from onnxplain.methods.tensors import Array, Tensors

InputBounds = tuple[Sequence[float], Sequence[float]] | None


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

    bounds: InputBounds
    """(lows, highs) of an only input, one number or one for each channel, in model units; None: not known.

    None as well where inner tensors move.
    """

    samples: bool
    """Whether axis 0 of the inputs counts samples; else a point is the whole input, its axes behind axis 0."""

    columns: Mapping[str, Sequence[str]]
    """Names of a table's columns, by input, where they are known."""

    labels: Sequence[str]
    """Names of the classes where they are known; of another number where they name another tensor."""

    explained: str
    """Name of the explained tensor."""

    head: str
    """The op that makes probabilities of the explained tensor in the model, Softmax or Sigmoid; "" where none does."""

    @property
    def background(self) -> Tensors | None:
        """Rows of data, (B, …) for each attributed input, B at least 1; None where none were given.

        That only a method sees that takes a background and can do without. Raises UsageError where axis 0 of the
        inputs does not count samples.
        """
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

    def outputs(self, points: Tensors) -> Iterator[Mapping[str, Array]]:
        """All that the model answers, by name, one point after the other.

        Arrays are as the model gives them for a single point: of a batch of one, where it has a batch.
        """
        ...

    def score(self, points: Tensors, seed: Array) -> Array:
        """What is explained, at each point: the sum of seed times explained tensor, float64 (S,)."""
        ...

    def relevance(self, points: Tensors, seed: Array, references: Tensors | None = None) -> Tensors:
        """What the base method gives each attributed input at each point, (S, …).

        references: what each point is compared with, (S, …): of a method registered with `references`, and of no other.
        """
        ...

    channels: Mapping[str, int]
    """Of a method about a feature map (`Looped.maps`): each map's name → the axis of its channels; else empty."""

    def layer(self, points: Tensors) -> Tensors:
        """The values at each point, (S, …), of what is answered for: feature maps, or the attributed tensors.

        Where these move themselves they are the points. `relevance` has the same names and shapes.
        """
        ...

    def where_inputs_are(self, made: Callable[[Tensors, InputBounds], Tensors]) -> Tensors:
        """The values (1, …) of the inner tensors that move where the model's float inputs are what is made of them.

        made: (the inputs as they are, (1, …), their bounds) → the inputs. What goes around the inner tensors stays.
        """
        ...

    def note(self, text: str, figure: float | None = None) -> None:
        """Say something of the result that a reader must know; it comes with the explanation, wherever that goes.

        Equal texts of several rows and targets are said once. figure: put in place of `{figure:…}` in the text, by its
        format; the largest of them is said, and in how many explanations there was one.
        """
        ...
