"""Which sources answer, and when one that does not is asked again."""

from __future__ import annotations

import logging
import time

from onnxplain.server.models.entry import FIRST_RETRY, LONGEST_RETRY
from onnxplain.server.telemetry.logs import event

LOG = logging.getLogger("onnxplain.server")


class SourceHealth:
    """By name of the source. silent: why it does not answer now."""

    def __init__(self) -> None:
        self.silent: dict[str, str] = {}
        self._answered: set[str] = set()
        self._backoff: dict[str, tuple[float, float]] = {}  # (not before, wait), in seconds

    def is_due(self, source: str) -> bool:
        """Whether it may be asked now."""
        return time.monotonic() >= self._backoff.get(source, (0.0, 0.0))[0]

    def answered(self, source: str) -> None:
        """It did."""
        self._answered.add(source)
        self.silent.pop(source, None)
        self._backoff.pop(source, None)

    def failed(self, source: str, reason: str) -> None:
        """It did not; the wait doubles. Logged when the reason is another one."""
        wait = self._backoff.get(source, (0.0, 0.0))[1]
        wait = min(LONGEST_RETRY, 2 * wait) if wait else FIRST_RETRY
        self._backoff[source] = (time.monotonic() + wait, wait)
        if self.silent.get(source) != reason:
            event(LOG, logging.ERROR, "source does not answer", source=source, reason=reason)
        self.silent[source] = reason

    def ever_answered(self, source: str) -> bool:
        """It was heard at least once."""
        return source in self._answered
