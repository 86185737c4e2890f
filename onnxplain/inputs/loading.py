"""The files of one run become the model's feeds: which file goes to which input, pictures and arrays alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError
from onnxplain.inputs.binding import bind, conform, join, list_inputs
from onnxplain.inputs.files import Contents, is_picture, read
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
    settings: how these were prepared. features: csv column names. files: where every sample came from.
    """

    feeds: dict[str, Array] = field(default_factory=dict)
    pictures: dict[str, list[NDArray[np.uint8]]] = field(default_factory=dict)
    settings: dict[str, PictureSettings] = field(default_factory=dict)
    features: dict[str, tuple[str, ...]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str | None) -> None:
        """Say something once."""
        if text and text not in self.notes:
            self.notes.append(text)


def load(files: Iterable[str | Path], inputs: Sequence[InputSpec], settings: Settings | None = None) -> Loaded:
    """Read files (or glob patterns, or INPUT=FILE) for the model's inputs; several files for one input are a batch.

    settings: (input, position) -> how its pictures are prepared, and a sentence to say. None: guessed from the shape.
    """
    loaded = Loaded()
    rows: dict[str, list[tuple[str, Array]]] = {spec.name: [] for spec in inputs}
    for path, spec in _assign(files, inputs):
        loaded.files += [path] if path not in loaded.files else []
        if spec is None:
            for name, array in _by_name(read(path), inputs).items():
                rows[name].append((str(path), array))
        elif is_picture(path):
            rows[spec.name].append((str(path), _picture(path, spec, inputs.index(spec), settings, loaded)))
        else:
            contents = read(path)
            rows[spec.name].append((str(path), bind(contents.arrays, [_any_batch(spec)], str(path))[spec.name]))
            if contents.features:
                loaded.features[spec.name] = contents.features
    missing = [spec for spec in inputs if not rows[spec.name]]
    if missing:
        raise InputError(f"no file for {list_inputs(missing)}. Name each: INPUT=FILE, or give one .npz that holds all.")
    for spec in inputs:
        loaded.feeds[spec.name] = join(rows[spec.name], spec)
    return loaded


def _assign(files: Iterable[str | Path], inputs: Sequence[InputSpec]) -> list[tuple[Path, InputSpec | None]]:
    """(file, input) pairs; None: the file holds several inputs by name."""
    pairs: list[tuple[Path, InputSpec | None]] = []
    loose: list[Path] = []
    for text in map(str, files):
        spec = next((spec for spec in inputs if text.startswith(f"{spec.name}=")), None)
        if spec is None:
            loose += expand([text])
        else:
            pairs += [(path, spec) for path in expand([text.removeprefix(f"{spec.name}=")])]
    open_inputs = [spec for spec in inputs if all(spec is not taken for _, taken in pairs)]
    if not loose:
        return pairs
    if len(inputs) == 1:
        return pairs + [(path, inputs[0]) for path in loose]
    if len(loose) == len(open_inputs) and not all(path.suffix.lower() == ".npz" for path in loose):
        return pairs + _positional(loose, open_inputs)
    if all(path.suffix.lower() in (".npz", ".csv") for path in loose) and not pairs:
        return [(path, None) for path in loose]
    raise InputError(
        f"{len(loose)} file(s) for a model with {len(open_inputs)} inputs left: {list_inputs(open_inputs)}. "
        f"Give one file each in this order, INPUT=FILE, or one .npz that holds all by name."
    )


def _positional(files: list[Path], inputs: list[InputSpec]) -> list[tuple[Path, InputSpec | None]]:
    """One file for every input, in order; ONNX test data that carries the inputs' names goes by these."""
    if all(path.suffix.lower() == ".pb" for path in files):
        by_name = {next(iter(read(path).arrays)): path for path in files}
        if by_name.keys() == {spec.name for spec in inputs}:
            return [(by_name[spec.name], spec) for spec in inputs]
    return list(zip(files, inputs, strict=True))


def _by_name(contents: Contents, inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """All inputs from one file: the arrays of an npz, or the columns of a csv whose header names the inputs."""
    arrays = contents.arrays
    if contents.features:
        (table,) = arrays.values()
        arrays = {name: table[:, i : i + 1] for i, name in enumerate(contents.features)}
    return bind(arrays, [_any_batch(spec) for spec in inputs], str(contents.path))


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
