"""How many rows a caller may send: so many a second, and some at once."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from onnxplain.errors import Busy


@dataclass
class RowRate:
    """A bucket of rows. rows_per_second: flow in, until there are `burst`. Equal is what has the same numbers."""

    name: str
    rows_per_second: float
    burst: float
    _left: float = field(init=False, repr=False, compare=False)
    _at: float = field(default_factory=time.monotonic, init=False, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._left = self.burst

    def take(self, rows: int) -> None:
        """Use rows up. Raises Busy with the token's name, and with the seconds after which there are enough."""
        limit = f"{self.rows_per_second:g} rows a second and {self.burst:g} at once"
        if rows > self.burst:
            raise Busy(f"{rows} rows in one request: token {self.name!r} has {limit}. Send fewer at once.", retry=0.0)
        with self._lock:
            now = time.monotonic()
            self._left = min(self.burst, self._left + (now - self._at) * self.rows_per_second)
            self._at = now
            if rows > self._left:
                raise Busy(
                    f"token {self.name!r} has {limit}, which are used up; try again shortly.",
                    retry=max(0.01, (rows - self._left) / self.rows_per_second),
                )
            self._left -= rows
