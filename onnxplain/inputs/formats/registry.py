"""The registry of array files: suffix -> how a file is read, and how its arrays find the model's inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from onnxplain.registry import Registry

Holds = Literal["array", "named array", "named arrays", "table"]


@dataclass(frozen=True)
class Contents:
    """What one file holds: arrays by name ("" where the file gives none), and the names of a table's columns.

    A lone `arr_0` of an .npz has no name: so numpy calls what `savez` was given without one.
    """

    path: Path
    arrays: dict[str, NDArray[Any]]
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """One type of file.

    holds: one array, one that may carry an input's name, several by name (of which FILE:ARRAY means one), or a table
    whose columns may be named.
    """

    read: Callable[[Path], Contents]
    holds: Holds = "array"


FORMATS: Registry[Format] = Registry("type of file")


def reader(
    suffix: str, *, holds: Holds = "array"
) -> Callable[[Callable[[Path], Contents]], Callable[[Path], Contents]]:
    """Register what reads the files of a suffix, such as ".npy": `function(path) -> Contents`.

    It raises InputError for what is no such file; numbers are checked behind it (`inputs.files.read`).
    """

    def register(function: Callable[[Path], Contents]) -> Callable[[Path], Contents]:
        FORMATS.add(suffix, Format(function, holds))
        return function

    return register


def holds(path: Path) -> Holds | None:
    """What a file of this name holds; None for a type that is not read, such as a picture's."""
    suffix = path.suffix.lower()
    return FORMATS[suffix].holds if suffix in FORMATS else None
