"""Numpy's files: .npy holds an array, .npz several by name."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain.errors import InputError
from onnxplain.inputs.formats.registry import Contents, reader
from onnxplain.inputs.paths import read_bytes

# what numpy.load raises on files cut short, mislabelled or declaring absurd shapes
_BROKEN: tuple[type[Exception], ...] = (
    *(ValueError, OSError, EOFError, KeyError, SyntaxError, RuntimeError),
    *(MemoryError, OverflowError, zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


@reader(".npy")
def npy(path: Path) -> Contents:
    """One array without a name."""
    return Contents(path, {"": _load(path)})


@reader(".npz", holds="named arrays")
def npz(path: Path) -> Contents:
    """Every array by its name."""
    loaded = _load(path)
    if not isinstance(loaded, dict):
        return Contents(path, {"": loaded})
    return Contents(path, {"": loaded["arr_0"]} if list(loaded) == ["arr_0"] else loaded)


def _load(path: Path) -> Any:
    """The loader of numpy, without pickles."""
    data = read_bytes(path)
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except _BROKEN as error:
        if "allow_pickle" in str(error) and (data[:6] == b"\x93NUMPY" or data[:2] == b"PK"):
            raise InputError(
                f"{path}: holds Python objects (pickled), which are never loaded. Save numbers."
            ) from error
        raise InputError(f"{path}: not a numpy file, or cut short. Save it with numpy.save or numpy.savez.") from error
    if not arrays or not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise InputError(f"{path}: holds no arrays, or something else as well. Save it with numpy.savez.")
    return arrays
