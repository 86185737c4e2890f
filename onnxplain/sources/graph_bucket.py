"""A graph cache in a bucket: entries of `prepared` as objects below an address that fsspec reads and writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from onnxplain.errors import OnnxplainError, UsageError
from onnxplain.prepared import FolderCache, GraphCache
from onnxplain.prepared.entry import Buffer
from onnxplain.prepared.folder import SUFFIX
from onnxplain.sources.object_store import ObjectStore

T = TypeVar("T")
LOG = logging.getLogger("onnxplain.graphs")
SECONDS = 20.0  # for one entry; compiling takes some seconds too
PAUSE = 60.0  # seconds in which a bucket that failed is not asked again


class BucketCache:
    """See `GraphCache`. Who may write to the bucket decides what is answered; how long objects stay, its own rules.

    A bucket that is down or refuses costs time, no answer: it is said in the log, and left alone for a while.
    """

    def __init__(self, address: str, seconds: float = SECONDS):
        self._store = ObjectStore(address, seconds)
        self._silent_until = 0.0  # monotonic

    def get(self, name: str) -> bytes | None:
        """As in `GraphCache`."""
        return self._tried(lambda: self._store.read(f"{name}{SUFFIX}"))

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """As in `GraphCache`."""
        return self._tried(lambda: self._store.write(f"{name}{SUFFIX}", b"".join(parts))) is not None

    def drop(self, name: str) -> None:
        """As in `GraphCache`."""
        self._tried(lambda: self._store.remove(f"{name}{SUFFIX}"))

    def _tried(self, call: Callable[[], T]) -> T | None:
        if time.monotonic() < self._silent_until:
            return None
        try:
            return call()
        except UsageError:  # a package that is missing: no answer will come, and an operator can mend it
            raise
        except OnnxplainError as error:
            self._silent_until = time.monotonic() + PAUSE
            LOG.warning("graph cache: %s", error)
            return None


def graph_cache(address: str, nbytes: int) -> GraphCache:
    """The cache at a folder or, where that is `scheme://…`, in a bucket. nbytes: of a folder. Raises as these do."""
    return BucketCache(address) if "://" in address else FolderCache(Path(address), nbytes)
