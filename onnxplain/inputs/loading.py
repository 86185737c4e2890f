"""The files of one run become the model's feeds: which file goes to which input, pictures and arrays alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError
from onnxplain.inputs.binding import bind, conform, join, list_inputs
from onnxplain.inputs.files import is_picture, read
from onnxplain.inputs.formats.registry import FORMATS, Contents, holds
from onnxplain.inputs.naming import match
from onnxplain.inputs.paths import expand
from onnxplain.inputs.pictures import prepare
from onnxplain.inputs.preparation import PictureSettings
from onnxplain.inputs.presets import guess
from onnxplain.inputs.specs import InputSpec

Array = NDArray[Any]
Settings = Callable[[InputSpec, int], tuple[PictureSettings | None, str | None]]


@dataclass
class Loaded:
    """Everything a run needs to know of its inputs, by input name.

    feeds: arrays as the model declares them. pictures: one uint8 (h, w, 3) per sample, where they were photographs.
    settings: how these were prepared. features: csv column names. files: where every sample came from. joined: inputs
    whose samples come from several files, one behind the other along axis 0.
    """

    feeds: dict[str, Array] = field(default_factory=dict)
    pictures: dict[str, list[NDArray[np.uint8]]] = field(default_factory=dict)
    settings: dict[str, PictureSettings] = field(default_factory=dict)
    features: dict[str, tuple[str, ...]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    joined: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str | None) -> None:
        """Say something once."""
        if text and text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True)
class _File:
    """A file, the array in it that is meant ("": see `read`), the input it is for (None: several, by name).

    told: the user said INPUT=FILE, so that the name of a lone array in there does not matter.
    """

    path: Path
    array: str = ""
    spec: InputSpec | None = None
    told: bool = False

    @property
    def holds_names(self) -> bool:
        """Whether inputs are found in it by name."""
        return not self.array and holds(self.path) in ("named arrays", "table")


def load(
    files: Iterable[str | Path],
    inputs: Sequence[InputSpec],
    settings: Settings | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> Loaded:
    """Read files (or glob patterns) for the model's inputs; several files for one input are a batch.

    files: FILE, INPUT=FILE, and FILE.npz:ARRAY for one array of several. settings: (input, position) -> how its
    pictures are prepared, and a sentence to say; None: guessed from the shape. columns: names of a table's columns in
    the model's order, by input, where they are known.
    """
    loaded = Loaded()
    rows: dict[str, list[tuple[str, Array]]] = {spec.name: [] for spec in inputs}
    for file in _assign(files, inputs):
        path, spec = file.path, file.spec
        loaded.files += [path] if path not in loaded.files else []
        if spec is None:
            for name, array in _by_name(read(path), inputs).items():
                rows[name].append((str(path), array))
        elif is_picture(path):
            rows[spec.name].append((str(path), _picture(path, spec, inputs.index(spec), settings, loaded)))
        else:
            rows[spec.name].append((str(path), _array(file, spec, loaded, (columns or {}).get(spec.name, ()))))
    missing = [spec for spec in inputs if not rows[spec.name]]
    if missing:
        raise InputError(f"no file for {list_inputs(missing)}. Name each: INPUT=FILE, or give one .npz that holds all.")
    for spec in inputs:
        loaded.feeds[spec.name] = join(rows[spec.name], spec)
        loaded.joined |= {spec.name} if len(rows[spec.name]) > 1 else set()
    return loaded


def _assign(files: Iterable[str | Path], inputs: Sequence[InputSpec]) -> list[_File]:
    """Which file is for which input."""
    told: list[_File] = []
    loose: list[_File] = []
    for text in map(str, files):
        spec = next((spec for spec in inputs if text.startswith(f"{spec.name}=")), None)
        path, array = _array_of(text if spec is None else text.removeprefix(f"{spec.name}="))
        (loose if spec is None else told).extend(_File(p, array, spec, spec is not None) for p in expand([path]))
    open_inputs = [spec for spec in inputs if all(spec is not file.spec for file in told)]
    if not loose:
        return told
    if len(inputs) == 1:
        if told:
            raise InputError(f"{loose[0].path}: beside {inputs[0].name}=FILE; give all files in the one way.")
        return [replace(file, spec=inputs[0]) for file in loose]
    if len(loose) == len(open_inputs) and not all(
        holds(file.path) == "named arrays" and not file.array for file in loose
    ):
        return told + _positional(loose, open_inputs)
    if all(file.holds_names for file in loose) and not told:
        return loose
    raise InputError(
        f"{len(loose)} file(s) for a model with {len(open_inputs)} inputs left: {list_inputs(open_inputs)}. "
        f"Give one file each in this order, INPUT=FILE, or one .npz that holds all by name."
    )


def _array_of(text: str) -> tuple[str, str]:
    """(file, array) of FILE:ARRAY, where such a file holds arrays by name; array "" for anything else."""
    suffixes = [suffix for suffix, entry in FORMATS.items() if entry.holds == "named arrays"]
    ends = [at + len(suffix) for suffix in suffixes if (at := text.lower().rfind(f"{suffix}:")) >= 0]
    if not ends or Path(text).exists():
        return text, ""
    return text[: max(ends)], text[max(ends) + 1 :]


def _positional(files: list[_File], inputs: list[InputSpec]) -> list[_File]:
    """One file for every input, in order; arrays that carry the inputs' names, as ONNX test data, go by these."""
    if all(holds(file.path) == "named array" for file in files):
        by_name = {next(iter(read(file.path).arrays)): file for file in files}
        if by_name.keys() == {spec.name for spec in inputs}:
            return [replace(by_name[spec.name], spec=spec) for spec in inputs]
    return [replace(file, spec=spec) for file, spec in zip(files, inputs, strict=True)]


def _by_name(contents: Contents, inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """All inputs from one file: the arrays of an npz, or the columns of a csv whose header names the inputs."""
    arrays, way_out = contents.arrays, f"Say which array is which: {inputs[0].name}={contents.path}:ARRAY."
    if contents.features:
        (table,) = arrays.values()
        arrays = {name: table[:, i : i + 1] for i, name in enumerate(contents.features)}
        way_out = "Give the columns these names."
    return bind(arrays, [_any_batch(spec) for spec in inputs], str(contents.path), way_out)


def _array(file: _File, spec: InputSpec, loaded: Loaded, columns: Sequence[str]) -> Array:
    """The array of a file that is for one input."""
    contents = read(file.path, file.array)
    arrays, features = contents.arrays, contents.features
    if file.told and len(arrays) == 1:
        arrays = {"": next(iter(arrays.values()))}
    if features:
        arrays = {"": _in_order(arrays[""], features, columns, file.path, spec, loaded)}
    way_out = (
        f"Say which array is meant: {spec.name}={file.path}:ARRAY."
        if holds(file.path) == "named arrays"
        else f"If this is what it is, say so: {spec.name}={file.path}."
    )
    return bind(arrays, [_any_batch(spec)], str(file.path), way_out)[spec.name]


def _in_order(
    table: Array, features: Sequence[str], columns: Sequence[str], path: Path, spec: InputSpec, loaded: Loaded
) -> Array:
    """A table's columns as the model takes them; where that is not known, as the first file has them."""
    known = columns or loaded.features.get(spec.name, ())
    if not known:
        loaded.features[spec.name] = tuple(features)
        loaded.note(
            f"{path.name}: the names of the model's columns are not known ([input] features of model.toml), so these "
            "are taken in the file's order"
        )
        return table
    loaded.features[spec.name] = tuple(known)
    return table[:, match(features, known, "column", str(path), f"The columns are {', '.join(known)}.")]


def _picture(path: Path, spec: InputSpec, position: int, settings: Settings | None, loaded: Loaded) -> Array:
    if spec.shape is None:
        raise InputError(f"{path}: input {spec} declares no shape, so a picture cannot be prepared. Give an array.")
    chosen, note = settings(spec, position) if settings else (None, None)
    if chosen is None:
        chosen, note = guess(spec.shape, spec.dtype, spec.name)
    prepared = prepare(path, chosen, spec.shape, spec.name)
    for text in (note, *prepared.notes):
        loaded.note(text)
    loaded.settings[spec.name] = chosen
    loaded.pictures.setdefault(spec.name, []).append(prepared.picture)
    return conform(prepared.array, _any_batch(spec), str(path))


def _any_batch(spec: InputSpec) -> InputSpec:
    """The same input with any number of samples: one file may be a part of the batch."""
    return replace(spec, shape=(None, *spec.shape[1:])) if spec.shape else spec
