"""Arrays meet the model's declared inputs: name, shape and type, or an error that says what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError
from onnxplain.inputs.naming import match
from onnxplain.inputs.specs import InputSpec

Array = NDArray[Any]
Shape = tuple[int | str | None, ...]


def bind(
    arrays: Mapping[str, Array], inputs: Sequence[InputSpec], where: str = "the input", way_out: str = ""
) -> dict[str, Array]:
    """One array for every input, in the declared shape and type; by name, or not at all.

    The names are the inputs' (see `naming.match` on case); a lone array without a name ("") is the only input. where:
    named in errors, the file for example. way_out: what to do about names that do not fit, a sentence.
    """
    if list(arrays) == [""] and len(inputs) == 1:
        return {inputs[0].name: conform(arrays[""], inputs[0], where)}
    names = list(arrays)
    if "" in arrays:
        shapes = ", ".join(f"{name or '(no name)'} {tuple(array.shape)}" for name, array in arrays.items())
        raise InputError(f"{where} holds {shapes}, but the model takes {list_inputs(inputs)}. Give arrays by name.")
    takes = f"The model takes {list_inputs(inputs)}. {way_out}".rstrip()
    positions = match(names, [spec.name for spec in inputs], "input", where, takes)
    return {spec.name: conform(arrays[names[n]], spec, where) for spec, n in zip(inputs, positions, strict=True)}


def list_inputs(inputs: Sequence[InputSpec]) -> str:
    """The declared inputs in one line."""
    return "; ".join(map(str, inputs))


def conform(array: Array, spec: InputSpec, where: str = "the input") -> Array:
    """The array in the input's shape (a missing batch axis is added) and type (where no value changes)."""
    if array.dtype.names:
        raise InputError(f"{where}: an array with the named fields {', '.join(array.dtype.names)}; expected {spec}.")
    if not fits(array.shape, spec.shape) and spec.shape and fits((1, *array.shape), spec.shape):
        array = array[None]
    if not fits(array.shape, spec.shape):
        raise InputError(f"{where}: found shape {tuple(array.shape)}, expected {spec}.{_hint(array.shape, spec.shape)}")
    return _cast(array, spec, where)


def fits(shape: Sequence[int], declared: Shape | None) -> bool:
    """Same rank, and equal wherever the model declares a number."""
    if declared is None:
        return True
    return len(shape) == len(declared) and all(
        not isinstance(side, int) or side < 1 or side == size for size, side in zip(shape, declared, strict=True)
    )


def _hint(shape: Sequence[int], declared: Shape | None) -> str:
    """What is probably wrong."""
    if declared and len(shape) == len(declared) == 4:
        for order, text in (((0, 3, 1, 2), "NHWC: transpose to NCHW"), ((0, 2, 3, 1), "NCHW: transpose to NHWC")):
            if fits([shape[axis] for axis in order], declared):
                return f" Its axes look like {text}."
    if declared and len(shape) == len(declared) and fits(shape[1:], declared[1:]):
        return f" The model takes {declared[0]} sample(s) at a time: give that many."
    return ""


def _cast(array: Array, spec: InputSpec, where: str) -> Array:
    """Any real type to any other that holds the same values; a float may lose digits, never its magnitude."""
    target = np.dtype(spec.dtype)
    if array.dtype == target:
        return array
    if array.dtype.kind in "OUSc" or target.kind in "OUS":
        raise InputError(f"{where}: found {array.dtype} values, expected {spec}.")
    with np.errstate(all="ignore"):
        cast = array.astype(target)
    narrowed = "float" in target.name and "float" in array.dtype.name
    with np.errstate(all="ignore"):
        same = np.isfinite(cast.astype(np.float64)) if narrowed else _equal(cast, array)
    if not same.all():
        position = tuple(int(axis) for axis in np.argwhere(~same)[0])
        raise InputError(
            f"{where}: found {array.dtype} value {array[position]} at {list(position)}, "
            f"which {target} cannot hold; expected {spec}."
        )
    return cast


def _equal(cast: Array, array: Array) -> Array:
    """Elementwise: is the number the same? There and back, since int64 against float64 compares as float64."""
    same: Array = cast.astype(array.dtype) == array
    if array.dtype.kind in "fiu" and cast.dtype.kind in "iu" and array.dtype.kind != cast.dtype.kind:
        same &= (cast < 0) == (array < 0)  # a wrapped sign comes back unharmed
    if array.dtype.kind in "iu" and "float" in cast.dtype.name:
        same &= np.abs(cast.astype(np.float64)) < 2.0**63  # beyond, the way back is undefined
    return same


def join(batches: Sequence[tuple[str, Array]], spec: InputSpec) -> Array:
    """One batch from several files along axis 0; `batches` are (file, array) pairs, each fit but for its length."""
    for (first, a), (second, b) in pairwise(batches):
        if a.shape[1:] != b.shape[1:]:
            raise InputError(
                f"{first} has shape {a.shape}, {second} has {b.shape}: they cannot be one batch. "
                f"Explain them one at a time, or give a size in the settings."
            )
    return conform(np.concatenate([array for _, array in batches]), spec, f"{len(batches)} files together")
