"""How many rows a run of a looped method has: a few sizes are tried on its first batches, the fastest is kept."""

from __future__ import annotations

import threading

TRIED = (8, 32, 128, 512, 2048)
FIXED = 32  # where nothing is tried
TIMES = 2  # batches of each size; the faster counts, as the first of a size makes its buffers
GAIN = 1.05  # by which a larger size must be faster; a smaller one takes less memory, and is sooner told to stop
SLOW = 0.25  # seconds of a run above which no larger one is tried: progress and an interrupt wait for it


class BatchSize:
    """The size of the next batch.

    Rows do not depend on it: the answers of models in batches of two or more are mostly the same to the last bit, and
    what methods add up in float64 differs by its rounding.
    """

    def __init__(self, chosen: int = 0) -> None:
        """Chosen: the size to keep, where nothing is to be tried."""
        self._trial, self._times, self._fastest = 0, 0, 0.0  # rows a second of the best trial so far
        self._now, self._chosen = 0.0, chosen
        self._lock = threading.Lock()

    def rows(self, left: int, most: int) -> int:
        """For a batch with `left` rows to come, of which `most` fit in memory; no single row is left over."""
        return even(min(self._chosen or TRIED[self._trial], most), left)

    def took(self, rows: int, seconds: float, most: int) -> None:
        """Tell how long a batch took; one that was cut short by the end tells nothing."""
        with self._lock:
            self._took(rows, seconds, most)

    def _took(self, rows: int, seconds: float, most: int) -> None:
        if self._chosen or rows < min(TRIED[self._trial], most):
            return
        self._times, self._now = self._times + 1, max(self._now, rows / max(seconds, 1e-9))
        if self._times < TIMES:
            return
        faster = self._now > GAIN * self._fastest
        if not faster:
            self._chosen = TRIED[self._trial - 1]
        elif rows / self._now > SLOW or self._trial + 1 == len(TRIED) or rows >= most:
            self._chosen = TRIED[self._trial]
        else:
            self._fastest, self._times, self._now, self._trial = self._now, 0, 0.0, self._trial + 1


def even(size: int, left: int) -> int:
    """At most `size` of the rows left, and not so many that one would be left alone: some kernels add one row up anew.

    left: at least 1.
    """
    return size - 1 if left == size + 1 and size > 2 else min(size, left)
