"""Arrays from files, those of `formats`. Pictures are read by `pictures`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError
from onnxplain.inputs import pictures
from onnxplain.inputs.formats import FORMATS, Contents

Array = NDArray[Any]


def is_picture(path: Path) -> bool:
    """A file to be prepared as a photograph rather than read as an array."""
    return path.suffix.lower() in pictures.SUFFIXES


def read(path: str | Path, array: str = "") -> Contents:
    """Every array in the file, or the one named, which then needs no name; checked to be finite numbers."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        known = ", ".join([*FORMATS, *pictures.SUFFIXES])
        raise InputError(f"{path}: inputs of type {path.suffix or '(no suffix)'!r} are not read. Give one of {known}.")
    contents = FORMATS[suffix].read(path)
    if array:
        if array not in contents.arrays:
            known = ", ".join(name or "(no name)" for name in contents.arrays)
            raise InputError(f"{path}: holds no array named {array!r}; there is {known}.")
        contents = Contents(path, {"": contents.arrays[array]})
    for name, values in contents.arrays.items():
        _check(values, f"{path}{f' ({name})' if name else ''}", contents.features)
    return contents


def _check(array: Array, where: str, features: tuple[str, ...]) -> None:
    """Numbers, at least one of them, none NaN or infinite."""
    if array.dtype.kind in "OUSVMmc" and "float" not in array.dtype.name:  # bfloat16 is of kind V
        raise InputError(f"{where}: holds {array.dtype} values, expected real numbers.")
    if array.size == 0:
        raise InputError(f"{where}: shape {array.shape} holds no values.")
    if array.dtype.kind in "biu":
        return
    wrong = np.argwhere(~np.isfinite(array.astype(np.float64)))
    if len(wrong):
        position = tuple(int(axis) for axis in wrong[0])
        column = f" (column {features[position[1]]!r})" if features else ""
        value = float(array[position])
        raise InputError(
            f"{where}: {'NaN' if np.isnan(value) else 'infinity'} at {list(position)}{column}, {len(wrong)} in all. "
            f"Give finite numbers."
        )
