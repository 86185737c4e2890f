"""Which lazy models stay in memory: all together within a budget; the one not used for longest goes first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from onnxplain.errors import Busy
from onnxplain.machine import resident_bytes
from onnxplain.server.models.entry import READY, ModelEntry
from onnxplain.server.models.lifecycle import ModelLifecycle
from onnxplain.server.telemetry.logs import event
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import Release, ResolvedModel

LOG = logging.getLogger("onnxplain.server")
WAIT = 10.0  # seconds that a load waits for room while running calls use all there is
GROWN = 0.1  # seconds between looks at what is held: models grow with each recipe that is asked for
LOADING = 1.3  # memory of a model while it loads, by what it keeps
NOISE = 32 * 2**20  # bytes by which a process grows without any model
USUALLY_SHORT = 2.0  # onnxruntime keeps weights twice: as they are, and packed for its kernels
SHORT = 4.0  # how many times too low the estimates may be at most
TIMES_ITS_FILE = 8.0  # memory of a model by the size of its files, before any was loaded here


class ModelResidency:
    """Room for models. budget: bytes of all models in memory together: weights, graphs, open sessions.

    A model is taken to need what it needed last time, else as many times the size of its files as the hungriest so far.
    One that needs more than the whole budget is loaded alone. What models hold is estimated; where the process has
    grown by more since it began, all estimates are raised likewise.
    """

    def __init__(self, budget: int, lifecycle: ModelLifecycle, metrics: Metrics):
        self.began = resident_bytes() or 0
        self.budget = max(budget - self.began, budget // 2)
        self._lifecycle, self._metrics = lifecycle, metrics
        self._sizes: dict[tuple[str, str, str], int] = {}  # bytes by name, version, fingerprint, when it was loaded
        self._times, self._short = TIMES_ITS_FILE, USUALLY_SHORT
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._reserved: dict[asyncio.Future[None], int] = {}
        self._look: asyncio.TimerHandle | None = None

    @property
    def nbytes(self) -> int:
        """Held by models, those that are being freed too, and kept for those that load."""
        held = self._estimated()
        return int(held * self._raised(held))

    def _estimated(self) -> int:
        in_use = [entry.served for entry in self._lifecycle.entries() if entry.served is not None]
        held = sum(served.nbytes for served in (*in_use, *self._lifecycle.leaving))
        return held + sum(self._reserved.values())

    def _raised(self, estimated: int) -> float:
        """By what to multiply estimates; estimated: their sum. Learned while nothing loads or goes."""
        grown = (resident_bytes() or 0) - self.began - NOISE
        now = min(SHORT, max(1.0, grown / estimated)) if estimated else 1.0
        if estimated and not self._reserved and not self._lifecycle.leaving:
            self._short = 0.9 * self._short + 0.1 * now
        return max(now, self._short)

    @asynccontextmanager
    async def room(self, release: Release, resolved: ResolvedModel) -> AsyncIterator[None]:
        """While inside there is room to load a model. Raises Busy where running calls use all there is for WAIT s."""
        key = (release.name, release.version, release.fingerprint)
        nbytes = int(LOADING * (self._sizes.get(key) or self._times * _size_of_files(resolved)))
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((nbytes, admitted))
        try:
            self.make_room()
            await asyncio.wait({admitted}, timeout=WAIT)
            if not admitted.done():
                raise Busy(
                    f"no room for model {release.name!r}: it needs about {nbytes} bytes, and models that are answering "
                    f"use what there is of the {self.budget} of --memory-budget. Try again shortly.",
                    retry=1.0,
                )
            yield
        finally:
            with suppress(ValueError):
                self._waiting.remove((nbytes, admitted))
            self._reserved.pop(admitted, None)
            asyncio.get_running_loop().call_soon(self._loaded, key, resolved)

    def soon(self) -> None:
        """Something was used or freed: look at what is held, at once where somebody waits for room."""
        if self._waiting:
            asyncio.get_running_loop().call_soon(self.make_room)
        elif self._look is None:
            self._look = asyncio.get_running_loop().call_later(GROWN, self.make_room)

    def make_room(self) -> None:
        """Evict what nobody uses until the rest fits; let in who waits and now has room, in the order of coming."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
        held = self._estimated()
        raised = self._raised(held)
        budget = int(self.budget / raised)
        while True:
            wanted = min(self._waiting[0][0], budget) if self._waiting else 0
            self._evict(held + wanted - budget)
            if not self._waiting or held + wanted > budget:  # full, until what goes is gone
                break
            _, admitted = self._waiting.popleft()
            self._reserved[admitted] = wanted
            admitted.set_result(None)
            held += wanted
        self._metrics.models_held(int(raised * held))

    def close(self) -> None:
        """Look no more."""
        if self._look is not None:
            self._look.cancel()

    def _evict(self, excess: int) -> None:
        """Put the longest unused away until so many bytes go, as far as there are any that nobody uses."""
        excess -= sum(served.nbytes for served in self._lifecycle.leaving)
        for entry in sorted(self._idle(), key=lambda entry: entry.used_at):
            if excess <= 0:
                return
            assert entry.served is not None
            name, version, nbytes = entry.release.name, entry.release.version, entry.served.nbytes
            excess -= nbytes
            idle = round(time.monotonic() - entry.used_at, 1)
            event(LOG, logging.INFO, "evicted", model=name, version=version, bytes=nbytes, idle_seconds=idle)
            self._metrics.evicted(name)
            self._lifecycle.evict(entry).add_done_callback(lambda _: self.soon())

    def _loaded(self, key: tuple[str, str, str], resolved: ResolvedModel) -> None:
        """Learn what a model needs, and see whether it fits."""
        for entry in self._lifecycle.entries():
            release = entry.release
            if entry.served is not None and (release.name, release.version, release.fingerprint) == key:
                self._sizes[key] = nbytes = entry.served.nbytes
                self._times = max(self._times, nbytes / max(1, _size_of_files(resolved)))
        self.make_room()

    def _idle(self) -> list[ModelEntry]:
        return [
            entry
            for entry in self._lifecycle.entries()
            if entry.served is not None and not entry.users and entry.state == READY
        ]


def _size_of_files(resolved: ResolvedModel) -> int:
    """Bytes of a model and of the weights beside it."""
    beside = resolved.path.parent.glob(f"{resolved.path.name}*")
    return sum(path.stat().st_size for path in beside if path.is_file())
