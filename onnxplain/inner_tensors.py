"""Inner tensors of a model that a looped method reads or moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxplain.inputs import InputSpec
from onnxplain.runtime.session import Array


@dataclass(frozen=True)
class InnerTensors:
    """Inner tensors that a method reads or moves. read: their values, of feeds of the whole model.

    inputs, feeds, floats: what the whole model asks for and is fed, and which of it are numbers, where they move.
    """

    read: Callable[[Mapping[str, Array]], Mapping[str, Array]]
    inputs: Sequence[InputSpec] = ()
    feeds: Mapping[str, Array] = field(default_factory=dict)
    floats: Sequence[str] = ()

    def of_rows(self, rows: Mapping[str, Array], size: int) -> dict[str, Array]:
        """The values of any number of rows, `size` a run: the last run is filled up with the last row."""
        count = len(next(iter(rows.values())))
        places = [np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)]
        found = [self.read({name: array[at] for name, array in rows.items()}) for at in places]
        return {name: np.concatenate([part[name] for part in found])[:count] for name in found[0]}
