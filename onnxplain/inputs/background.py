"""Background data: rows of the inputs that stand for what is usual, against which methods compare."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError
from onnxplain.inputs.specs import InputSpec
from onnxplain.inputs.tables import Columns, feeds_of

Array = NDArray[Any]
ASK_FOR_IT = "say baseline=background where the method takes that"
IDLE_BACKGROUND = f"a background is given, and no option asks for it: {ASK_FOR_IT}."
NO_BACKGROUND = (
    "no background is given, rows of data to compare with: --background FILE, Explainer(background=…), or background "
    "in model.toml."
)


@dataclass(frozen=True)
class Background:
    """arrays: (B, …) by input name, in model units and in the inputs' types, all with the same B.

    NaN may be among them, where it is a missing value that the model knows.
    """

    arrays: Mapping[str, Array]

    @classmethod
    def of(cls, given: Array | Mapping[str, Array], specs: Sequence[InputSpec], columns: Columns) -> Background:
        """What a user gives, checked against the inputs. Raises InputError for rows that no background can have."""
        arrays = feeds_of(given, specs, columns)
        rows = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
        if len(set(rows.values())) != 1 or 0 in rows.values():
            found = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise InputError(
                f"background: one row or more is wanted, as many of every input along axis 0, not {found}."
            )
        return cls(arrays)

    @property
    def rows(self) -> int:
        """B."""
        return len(next(iter(self.arrays.values())))

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return sum(array.nbytes for array in self.arrays.values())

    @cached_property
    def sha256(self) -> str:
        """Of the names, types, shapes and numbers."""
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[name])
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def beside(self, feeds: Mapping[str, Array], samples: bool) -> dict[str, Array]:
        """The rows of some inputs, (B, …). samples: whether axis 0 of the feeds counts them.

        Raises InputError where it does not, and for rows of another shape than those of the feeds.
        """
        if not samples:
            raise InputError("a background has rows, and axis 0 of these inputs does not count samples.")
        for name, x in feeds.items():
            row, sample = self.arrays[name].shape[1:], x.shape[1:]
            if row != sample:
                raise InputError(f"a row of the background has {name} {list(row)}, and a sample {list(sample)}.")
        return {name: self.arrays[name] for name in feeds}
