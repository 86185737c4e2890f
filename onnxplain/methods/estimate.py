"""What a method answers that draws random samples: an estimate, and how far it may be off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxplain.methods.tensors import Array, Tensors


@dataclass(frozen=True)
class Estimate:
    """A relevance and its standard error, in the same unit: the standard deviation over random seeds."""

    relevance: Tensors
    standard_error: Tensors

    @classmethod
    def of(cls, relevance: Tensors, standard_error: Tensors, x: Tensors) -> Estimate:
        """In the shapes of the inputs x."""
        return cls(relevance.relevance_of(x), standard_error.relevance_of(x))


def relative_error(values: Array, errors: Array) -> float:
    """The largest standard error relative to the largest absolute value; 0 where nothing is in doubt."""
    worst = float(errors.max(initial=0.0))
    return 0.0 if worst == 0.0 else worst / max(float(np.abs(values).max(initial=0.0)), np.finfo(float).tiny)


def looks(part: slice, every: int) -> Iterator[slice]:
    """A piece of samples, cut where a whole `every` of them is reached: there a method looks whether it may end.

    So where it ends does not depend on how samples are cut into pieces.
    """
    start = part.start
    while start < part.stop:
        stop = min(part.stop, (start // every + 1) * every)
        yield slice(start, stop)
        start = stop
