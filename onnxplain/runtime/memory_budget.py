"""A budget of memory that a user gives: how many rows of a run it holds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxplain.errors import UsageError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[kmgt]i?)b?", re.IGNORECASE)
SAFETY = 1.3  # what runs were seen to take, as a share of its estimate: 0.1 to 1.25
BESIDE = 16 << 20  # bytes of what does not grow with the rows: small tensors, pieces of arenas, threads


def nbytes_of(text: str | int) -> int:
    """1GB, 256 MB, 1.5GiB or plain bytes as a number. Raises UsageError."""
    found = SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    nbytes = int(float(found[1]) * UNITS[found[2].lower()]) if found else text
    if isinstance(nbytes, str) or nbytes <= 0:
        raise UsageError(f"memory {text}: give a size above 0 such as 256MB, 1GB or 1.5GiB, or a number of bytes.")
    return nbytes


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that explaining may take above what there is when model and sessions are open."""

    nbytes: int

    def rows(self, bytes_per_row: int, rows: int, held: int = 0, together: bool = False) -> int:
        """How many of so many rows one run may have.

        bytes_per_row: estimated. held: bytes that are taken whatever the rows of a run. together: the rows cannot go
        apart. Raises UsageError where not one fits, or not all that must.
        """
        least = rows if together else 1
        row = int(SAFETY * bytes_per_row) + 1
        held += BESIDE
        fit = (self.nbytes - held) // row
        if fit < least:
            needed = -(-(held + least * row) // 10**6)
            what = f"{rows} rows that cannot go apart" if together and rows > 1 else "one row"
            raise UsageError(
                f"memory {said(self.nbytes)} does not hold {what} of this explanation, by what is known of the model's "
                f"tensors: give at least {needed}MB."
            )
        return min(rows, fit)


def said(nbytes: int) -> str:
    """In decimal units, as `nbytes_of` reads them."""
    for unit in "GM":
        size = UNITS[unit.lower()]
        if nbytes >= size:
            return f"{nbytes / size:.3g}{unit}B"
    return f"{nbytes} bytes"
