"""Labelled data: rows of a model's inputs with the class of each, some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError
from onnxplain.inputs import InputSpec, Preprocessing, bind, find, load
from onnxplain.inputs.files import read
from onnxplain.inputs.formats.registry import holds

Array = NDArray[Any]
FILES = 16  # read at a time
LABELS = "labels"  # name of the array of classes in an npz
SHAPE = f"a folder that holds a folder for each class, or an .npz of the inputs by name and `{LABELS}`, whole numbers"


@dataclass(frozen=True)
class Part:
    """Some rows: feeds by input, classes (rows,)."""

    feeds: dict[str, Array]
    classes: NDArray[np.int64]


class LabelledRows:
    """Rows that are read when they are gone through. notes: what was guessed of them, known once they were."""

    def __init__(self, parts: Any, notes: list[str]):
        self._parts, self.notes = parts, notes

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts())


def of_arrays(feeds: Mapping[str, Array], classes: Any, where: str = "the data") -> LabelledRows:
    """Rows that are in memory. classes: (N,) whole numbers from 0. Raises InputError."""
    found = np.asarray(classes)
    rows = {len(array) for array in feeds.values()}
    if found.ndim != 1 or found.dtype.kind not in "iu" or rows != {len(found)}:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise InputError(
            f"{where}: {LABELS} {list(found.shape)} of {found.dtype} beside {shapes}; expected a whole number a row."
        )
    whole = Part(dict(feeds), found.astype(np.int64))
    return LabelledRows(lambda: [whole], [])


def of_folder(folder: Path, inputs: Sequence[InputSpec], pictures: Preprocessing, classes: int) -> LabelledRows:
    """A folder of files for each class, called by its label or its index. Raises InputError, UsageError."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise InputError(f"{folder}: there are no folders in it; labelled data is {SHAPE}.")
    labels, files = pictures.labels(), list[tuple[Path, int]]()
    for path in folders:
        index = int(path.name) if path.name.isdecimal() and path.name not in labels else find(path.name, labels)
        if index >= classes:
            raise InputError(f"{path}: class {index} of a model with the classes 0 to {classes - 1}.")
        inside = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        files += [(file, index) for file in inside]
    notes: list[str] = []

    def parts() -> Iterator[Part]:
        for at in range(0, len(files), FILES):
            some = files[at : at + FILES]
            loaded = [load([file], inputs, pictures.of_input, pictures.columns(inputs)) for file, _ in some]
            notes.extend(note for each in loaded for note in each.notes if note not in notes)
            feeds = {spec.name: np.concatenate([each.feeds[spec.name] for each in loaded]) for spec in inputs}
            rows = [len(next(iter(each.feeds.values()))) for each in loaded]
            yield Part(feeds, np.repeat(np.array([index for _, index in some]), rows))

    return LabelledRows(parts, notes)


def read_labelled(path: Path, inputs: Sequence[InputSpec], pictures: Preprocessing, classes: int) -> LabelledRows:
    """Labelled data as it lies on disk. classes: how many the model has. Raises InputError, UsageError, UnknownName."""
    if path.is_dir():
        return of_folder(path, inputs, pictures, classes)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; labelled data is {SHAPE}.")
    if holds(path) != "named arrays":
        raise InputError(f"{path}: labelled data is {SHAPE}.")
    arrays = dict(read(path).arrays)
    if LABELS not in arrays:
        raise InputError(f"{path}: holds {', '.join(arrays)} and no array named {LABELS}; labelled data is {SHAPE}.")
    labels = arrays.pop(LABELS)
    open_rows = [InputSpec(s.name, s.dtype, (None, *s.shape[1:]) if s.shape else s.shape) for s in inputs]
    return of_arrays(bind(arrays, open_rows, str(path)), labels, str(path))
