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
IDLE_BACKGROUND = "a background is given, and no option asks for it: say baseline=background, where it takes that."
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

    @cached_property
    def sha256(self) -> str:
        """Of the names, types, shapes and numbers."""
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[name])
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def beside(self, name: str, sample: Array) -> Array:
        """The rows of one input, each of a sample's shape (1, …). Raises InputError where they have another."""
        array = self.arrays[name]
        if array.shape[1:] != sample.shape[1:]:
            raise InputError(
                f"a row of the background has {name} {list(array.shape[1:])}, and the sample {list(sample.shape[1:])}."
            )
        return array
