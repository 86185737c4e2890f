"""One version of one model in the repository: its state, who uses it, when it is tried again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from onnxplain.errors import OnnxplainError
from onnxplain.server.models.served import Served
from onnxplain.server.scheduling.session_cache import free_memory
from onnxplain.server.telemetry.logs import event
from onnxplain.sources import ModelSource, Release

LOG = logging.getLogger("onnxplain.server")
READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"
COLD = "not in memory; it loads when it is asked for"
FIRST_RETRY, LONGEST_RETRY = 5.0, 60.0  # seconds between attempts at a release that failed or a source that is silent


@dataclass(eq=False)
class ModelEntry:
    """One version of one model. users: calls being answered by it; it is closed when there are none left.

    READY without `served` is a lazy model that is not in memory: it loads when it is asked for. served_well: what was
    last loaded well here. warming: it loads because it was asked for. note: what else is to be said of it. used_at:
    monotonic time of its last call; begun: of its load.
    """

    release: Release
    source: ModelSource
    state: str = LOADING
    reason: str = ""
    served: Served | None = None
    users: int = 0
    retired: bool = False
    failures: int = 0
    retry_at: float = 0.0  # monotonic time before which a failed release is not tried anew
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    served_well: Release | None = None
    note: str = ""
    used_at: float = 0.0
    begun: float = 0.0
    warming: bool = False

    @property
    def good(self) -> bool:
        """It was loaded well here, be it another build of the same version."""
        return self.served_well is not None

    @property
    def cold(self) -> bool:
        """It is not in memory and loads when it is asked for."""
        return self.served is None and self.state == READY

    @property
    def answers(self) -> bool:
        """A call would be answered, perhaps after loading."""
        return self.served is not None or self.state == READY or self.warming

    @property
    def due(self) -> bool:
        """It could not be loaded, and may be tried again."""
        return self.served is None and self.state == UNAVAILABLE and time.monotonic() >= self.retry_at

    @property
    def remark(self) -> str:
        """What the index says of it while nothing is wrong."""
        return "; ".join(filter(None, (self.note, COLD if self.cold else "")))

    @contextmanager
    def used(self) -> Iterator[None]:
        """While inside it is neither freed nor evicted."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            self.used_at = time.monotonic()
            if not self.users:
                self.idle.set()

    def succeed(self, release: Release, served: Served) -> None:
        """It was loaded."""
        self.release, self.served, self.served_well = release, served, release
        self.state, self.reason, self.failures, self.warming = READY, "", 0, False
        self.used_at = time.monotonic()

    def fail(self, release: Release, error: OnnxplainError) -> None:
        """This release could not be loaded; what answers goes on answering."""
        self.failures += 1
        self.retry_at = time.monotonic() + min(LONGEST_RETRY, FIRST_RETRY * 2 ** (self.failures - 1))
        self.state, self.reason = UNAVAILABLE, str(error)
        self.release = release
        event(LOG, logging.ERROR, "not loaded", model=release.name, version=release.version, reason=str(error))

    def retire(self) -> None:
        """No new calls; `drain` follows."""
        self.retired, self.state = True, UNLOADING

    async def drain(self) -> None:
        """Close the model when its last call is answered."""
        while self.users:
            self.idle.clear()
            await self.idle.wait()
        served, self.served = self.served, None
        if served is not None:
            await freed(served)
            event(LOG, logging.INFO, "freed", model=self.release.name, version=self.release.version)


async def freed(served: Served) -> None:
    """Close a model, and have its memory back."""
    await served.close()
    await asyncio.to_thread(free_memory)  # a model is a web of cycles: its memory waits for the collector
