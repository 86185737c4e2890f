"""How many rows fit in one run, and chunked outputs put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from onnxplain.machine import free_memory_bytes
from onnxplain.runtime.session import Array

SHARE_OF_MEMORY = 0.4  # of what is free, for the activations of one run


def rows_per_run(bytes_per_row: int, rows: int) -> int:
    """How many rows one run may take without using more than its share of the free memory."""
    return max(1, min(rows, int(SHARE_OF_MEMORY * free_memory_bytes() / max(1, bytes_per_row))))


def chunks(rows: int, size: int) -> list[slice]:
    """Row ranges of at most `size`."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def nbytes(shape: Sequence[int | str | None], unknown: int = 64) -> int:
    """Bytes of a float32 tensor; unknown lengths count as `unknown`, the first axis as one row."""
    return 4 * prod(dim if isinstance(dim, int) else unknown for dim in shape[1:]) if shape else 4


def concatenate(parts: Sequence[Mapping[str, Array]], axes: Mapping[str, int | None]) -> dict[str, Array]:
    """Chunked outputs put together along each one's row axis; outputs without rows are taken from the first chunk."""
    if len(parts) == 1:
        return dict(parts[0])
    joined = {}
    for name, first in parts[0].items():
        axis = axes.get(name)
        joined[name] = first if axis is None else np.concatenate([part[name] for part in parts], axis)
    return joined


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
