"""The rows of a partition as one file, and back: npz, or Parquet where pyarrow is.

Every row is there, in order, explained or with the reason why not. Arrays of rows may differ in shape (pictures of
several sizes), so each lies flat, row behind row, with its shape beside it. Equal rows make equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxplain.bulk.locations import FRESH
from onnxplain.errors import InputError, UsageError

Array = NDArray[Any]
RELEVANCE, STANDARD_ERROR = ".relevance", ".standard_error"


@dataclass(frozen=True)
class Row:
    """One explained row, or one that could not be.

    row: its number over all files; path, index: the file, and where in it. error: why there is no explanation, ""
    where there is one. targets: names of what was explained; target_scores: their values. scores: of the explained
    tensor, float32. relevances: by attributed tensor, float32, targets along axis 0; standard_errors: of a method that
    draws samples, the same. notes: what the method notes of its answer, with this row's own figures.
    """

    row: int
    path: str
    index: int
    error: str = ""
    targets: tuple[str, ...] = ()
    target_scores: tuple[float, ...] = ()
    scores: Array | None = None
    relevances: Mapping[str, Array] = field(default_factory=dict)
    standard_errors: Mapping[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class PartitionFormat(NamedTuple):
    """How partitions are written and read."""

    suffix: str
    encode: Callable[[Sequence[Row]], bytes]
    decode: Callable[[bytes], Iterator[Row]]


def _arrays(row: Row) -> dict[str, Array]:
    scores = {} if row.scores is None else {"scores": row.scores}
    errors = {f"{name}{STANDARD_ERROR}": value for name, value in row.standard_errors.items()}
    return {**scores, **{f"{name}{RELEVANCE}": value for name, value in row.relevances.items()}, **errors}


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in _arrays(row)))


def _row(common: Mapping[str, Any], arrays: Mapping[str, Array]) -> Row:
    relevances, errors = (
        {name.removesuffix(suffix): array for name, array in arrays.items() if name.endswith(suffix)}
        for suffix in (RELEVANCE, STANDARD_ERROR)
    )
    return Row(**common, scores=arrays.get("scores"), relevances=relevances, standard_errors=errors)


def _to_npz(rows: Sequence[Row]) -> bytes:
    count = max((len(row.targets) for row in rows), default=0)
    most = max((len(row.notes) for row in rows), default=0)
    columns: dict[str, Array] = {
        "row": np.array([row.row for row in rows], np.int64),
        "path": np.array([row.path for row in rows], np.str_),
        "index": np.array([row.index for row in rows], np.int64),
        "error": np.array([row.error for row in rows], np.str_),
        "targets": np.array([row.targets or ("",) * count for row in rows], np.str_).reshape(len(rows), count),
        "target_scores": np.array([row.target_scores or (np.nan,) * count for row in rows], np.float64),
    }
    if most:
        filled = [(*row.notes, *("",) * (most - len(row.notes))) for row in rows]
        columns["notes"] = np.array(filled, np.str_).reshape(len(rows), most)
    for name in _names(rows):
        arrays = [_arrays(row).get(name, np.zeros(0, np.float32)) for row in rows]
        rank = max(array.ndim for row, array in zip(rows, arrays, strict=True) if not row.error)
        columns[name] = np.concatenate([array.reshape(-1) for array in arrays])
        columns[f"{name}.shape"] = np.array(
            [(0,) * rank if row.error else array.shape for row, array in zip(rows, arrays, strict=True)], np.int64
        ).reshape(len(rows), rank)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **columns)
    return buffer.getvalue()


def _from_npz(content: bytes) -> Iterator[Row]:
    with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
        columns = {name: loaded[name] for name in loaded.files}
    names = [name for name in columns if f"{name}.shape" in columns]
    at = dict.fromkeys(names, 0)
    for n, error in enumerate(map(str, columns["error"])):
        arrays = {}
        for name in names if not error else ():
            shape = tuple(map(int, columns[f"{name}.shape"][n]))
            arrays[name] = columns[name][at[name] : at[name] + prod(shape)].reshape(shape)
            at[name] += prod(shape)
        common = {name: columns[name][n].item() for name in ("row", "path", "index", "error")}
        if not error:
            common["targets"] = tuple(map(str, columns["targets"][n]))
            common["target_scores"] = tuple(map(float, columns["target_scores"][n]))
            common["notes"] = tuple(str(note) for note in columns["notes"][n] if note) if "notes" in columns else ()
        yield _row(common, arrays)


def _to_parquet(rows: Sequence[Row]) -> bytes:
    pyarrow, parquet = _pyarrow()
    columns: dict[str, Any] = {
        "row": pyarrow.array([row.row for row in rows], pyarrow.int64()),
        "path": pyarrow.array([row.path for row in rows], pyarrow.string()),
        "index": pyarrow.array([row.index for row in rows], pyarrow.int64()),
        "error": pyarrow.array([row.error or None for row in rows], pyarrow.string()),
        "targets": pyarrow.array([list(row.targets) for row in rows], pyarrow.list_(pyarrow.string())),
        "target_scores": pyarrow.array([list(row.target_scores) for row in rows], pyarrow.list_(pyarrow.float64())),
        "notes": pyarrow.array([list(row.notes) for row in rows], pyarrow.list_(pyarrow.string())),
    }
    for name in _names(rows):
        arrays = [_arrays(row).get(name) for row in rows]
        flat = [None if array is None else array.reshape(-1) for array in arrays]
        shapes = [None if array is None else list(array.shape) for array in arrays]
        columns[name] = pyarrow.array(flat, pyarrow.large_list(pyarrow.float32()))
        columns[f"{name}.shape"] = pyarrow.array(shapes, pyarrow.list_(pyarrow.int64()))
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def _from_parquet(content: bytes) -> Iterator[Row]:
    _, parquet = _pyarrow()
    table = parquet.read_table(io.BytesIO(content))
    names = [name for name in table.column_names if f"{name}.shape" in table.column_names]
    for n in range(table.num_rows):
        cell = {name: table.column(name)[n] for name in table.column_names}
        common = {name: cell[name].as_py() for name in ("row", "path", "index")}
        common |= {name: tuple(cell[name].as_py()) for name in ("targets", "target_scores", "notes") if name in cell}
        arrays = {}
        for name in names:
            if cell[name].is_valid:
                arrays[name] = cell[name].values.to_numpy(zero_copy_only=False).reshape(cell[f"{name}.shape"].as_py())
        yield _row({**common, "error": cell["error"].as_py() or ""}, arrays)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"--format parquet is written by pyarrow; {FRESH}, or take --format npz.") from error
    return pyarrow, parquet


FORMATS = {
    "npz": PartitionFormat(".npz", _to_npz, _from_npz),
    "parquet": PartitionFormat(".parquet", _to_parquet, _from_parquet),
}


def require(name: str) -> None:
    """Raise UsageError where a format needs what is not installed."""
    if name == "parquet":
        _pyarrow()


def decode(name: str, content: bytes, where: str) -> Iterator[Row]:
    """The rows of a partition. Raises InputError for a file that is none."""
    try:
        yield from FORMATS[name].decode(content)
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise InputError(f"{where}: not a partition of a bulk run, or cut short.") from error
