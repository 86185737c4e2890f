"""The compiled recipes of one model: bounded by number and bytes; and why others cannot be compiled."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from onnxplain.errors import OnnxplainError
from onnxplain.server.models.variant import Variant
from onnxplain.server.scheduling.session_cache import free_memory

NUMBER = 24  # compiled recipes kept per model
FAILURES = 256  # recipes per model of which it is remembered that they cannot be compiled
REMEMBERED = 60.0  # seconds


class VariantCache:
    """Variants by what was asked, the one not used for longest dropped first, never one that is to be kept.

    nbytes: of all together, one alone may have more. close: frees a variant, once when it was dropped and nobody uses
    it, and again when it was used after that.
    """

    def __init__(self, nbytes: int, close: Callable[[Variant], None], number: int = NUMBER):
        self.nbytes, self.number = nbytes, number
        self._close = close
        self._variants: OrderedDict[Hashable, Variant] = OrderedDict()
        self._kept: set[Hashable] = set()
        self._failures: OrderedDict[Hashable, tuple[float, OnnxplainError]] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def get(self, key: Hashable) -> Variant | None:
        """The variant, now the one used last. Raises, anew, why there can be none, where that is remembered."""
        with self._lock:
            variant = self._variants.get(key)
            if variant is not None:
                self._variants.move_to_end(key)
                return variant
            until, error = self._failures.get(key, (0.0, None))
            if error is None or until < time.monotonic():
                return None
        raise error.again()

    def put(self, key: Hashable, variant: Variant, keep: bool = False) -> None:
        """Hold a variant, and drop what is then too much. keep: it stays while the model does."""
        with self._lock:
            dropped = [] if self._closed else self._insert(key, variant, keep)
            if self._closed:
                dropped = [variant]
            for old in dropped:
                old.dropped = True
            idle = [old for old in dropped if not old.users]
        for old in idle:
            self._close(old)
        if dropped:
            del dropped, idle
            free_memory()

    def discard(self, variant: Variant) -> None:
        """Hold a variant no longer: it turned out to be wrong."""
        with self._lock:
            self._variants = OrderedDict((key, held) for key, held in self._variants.items() if held is not variant)

    def fail(self, key: Hashable, error: OnnxplainError) -> None:
        """Remember for a while that there can be no such variant: asking again costs nothing."""
        with self._lock:
            self._failures[key] = (time.monotonic() + REMEMBERED, error.again())
            self._failures.move_to_end(key)
            while len(self._failures) > FAILURES:
                self._failures.popitem(last=False)

    @contextmanager
    def using(self, variant: Variant) -> Iterator[Variant]:
        """While inside, the variant is not freed, dropped or not."""
        with self._lock:
            variant.users += 1
        try:
            yield variant
        finally:
            with self._lock:
                variant.users -= 1
                unused = variant.dropped and not variant.users
            if unused:
                self._close(variant)

    def variants(self) -> list[Variant]:
        """Those that are held."""
        with self._lock:
            return list(self._variants.values())

    def close(self) -> None:
        """Forget all. What comes later is dropped at once."""
        with self._lock:
            self._closed = True
            self._variants.clear()
            self._failures.clear()

    def _insert(self, key: Hashable, variant: Variant, keep: bool) -> list[Variant]:
        dropped = []
        if (old := self._variants.pop(key, None)) is not None and old is not variant:
            dropped.append(old)
        self._variants[key] = variant
        if keep:
            self._kept.add(key)
        for candidate in [other for other in self._variants if other not in self._kept and other != key]:
            loose = len(self._variants) - len(self._kept)
            if loose <= self.number and sum(v.nbytes for v in self._variants.values()) <= self.nbytes:
                break
            dropped.append(self._variants.pop(candidate))
        return dropped
