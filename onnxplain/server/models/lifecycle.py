"""How models come and go: loaded beside what answers, swapped when they work, given up, drained, freed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from contextvars import Context
from dataclasses import dataclass

from onnxplain.errors import Busy, InputError, OnnxplainError, Unavailable
from onnxplain.server.models.entry import LOADING, READY, ModelEntry, freed
from onnxplain.server.models.load_turns import Key, LoadTurns
from onnxplain.server.models.served import Served
from onnxplain.server.models.versions import ModelVersions
from onnxplain.server.telemetry.logs import event
from onnxplain.sources import ModelSource, Release

LOG = logging.getLogger("onnxplain.server")
Loader = Callable[[ModelSource, Release], Awaitable[Served]]


@dataclass(eq=False)
class Load:
    """One load that goes on in the background, whoever waits for it. before: state and reason of what answers."""

    source: ModelSource
    release: Release
    entry: ModelEntry
    before: tuple[str, str]
    task: asyncio.Task[OnnxplainError | None]

    async def ended(self) -> OnnxplainError | None:
        """What went wrong, when it is over. Who stops waiting does not stop it."""
        await asyncio.wait({self.task})
        if self.task.cancelled():
            return Unavailable(f"model {self.release.name!r} was unloaded or replaced while it was loading; try again.")
        return self.task.result()


class ModelLifecycle:
    """Every version of every model that is here, and the loads that go on, at most one of each version.

    All methods belong to the event loop's thread and change everything they change at once; only loading and freeing
    take time, in tasks of their own, so no model waits for another. load: see `ModelRepository`. lazy: models load when
    they are asked for, except new versions of one that was good here, which must first prove to be.
    """

    def __init__(self, load: Loader, turns: LoadTurns, changed: Callable[[], None], lazy: bool = False):
        self.models: dict[str, ModelVersions] = {}
        self.turns, self.lazy = turns, lazy
        self.used: Callable[[], None] = lambda: None  # called when a call has ended that used a model
        self._load, self._changed = load, changed
        self._loads: dict[Key, Load] = {}
        self._aims: dict[str, set[str]] = {}  # model -> versions that shall be here
        self.leaving: set[Served] = set()  # being freed, or about to be
        self._closing: set[asyncio.Task[None]] = set()

    def entries(self) -> Iterator[ModelEntry]:
        """Every version of every model."""
        for versions in self.models.values():
            yield from versions.entries.values()

    @property
    def closing(self) -> int:
        """Models that end their last calls or are being freed."""
        return len(self._closing)

    def prefer(self, name: str) -> None:
        """Somebody waits for this model: its loads come before others."""
        for load in self.loads(name):
            self.turns.prefer((name, load.release.version))

    def loads(self, name: str = "") -> list[Load]:
        """Those that go on, of one model or of all."""
        return [load for (model, _), load in self._loads.items() if name in ("", model)]

    def bring(self, source: ModelSource, release: Release, since: float | None = None, note: str = "") -> Load | None:
        """Have a release here. The load that it takes, None where it takes none.

        since: monotonic time when somebody asked for it: whatever was loaded before then is loaded again.
        """
        key = (release.name, release.version)
        going = self._loads.get(key)
        if going is not None and going.release.fingerprint == release.fingerprint:
            going.release, going.entry.note = release, note
            return going
        if going is not None:
            self._give_up(going)
        versions = self.models.setdefault(release.name, ModelVersions(release.name))
        old = versions.entries.get(release.version)
        same = old is not None and old.release.fingerprint == release.fingerprint
        unproven = self.lazy and not any(entry.good for entry in versions.entries.values())
        if old is not None and same and (since is None or (old.served is not None and old.begun >= since)):
            if old.state == READY:
                old.release, old.note = release, note
                old.served_well = release if old.good else None
                versions.set_aliases(release)
                return None
            if since is None and (time.monotonic() < old.retry_at or unproven):
                return None
        if unproven and since is None:
            versions.entries[release.version] = ModelEntry(release, source, READY, note=note)
            versions.set_aliases(release)
            self._changed()
            return None
        entry = ModelEntry(release, source, note=note)
        if old is not None and (old.served is not None or old.cold):  # it answers on, or its callers wait for it
            before = (old.state, old.reason)
            if old.cold:
                entry, old.warming = old, True
            old.state, old.reason = LOADING, "" if old.cold else "reloading"
        else:
            before = ("", "")
            if old is not None and same:
                entry.failures, entry.served_well = old.failures, old.served_well
            versions.entries[release.version] = entry
        return self._begin(source, release, entry, before)

    async def warm(self, entry: ModelEntry) -> OnnxplainError | None:
        """Load a lazy model that is asked for, one load for all who ask. What went wrong."""
        if entry.due:
            entry.state = READY
        load = self.bring(entry.source, entry.release, time.monotonic(), entry.note)
        self.prefer(entry.release.name)
        return await load.ended() if load is not None else None

    def aim(self, name: str, versions: Collection[str]) -> None:
        """These versions shall be here and no others: they go when one of these answers and none is loading."""
        self._aims[name] = set(versions)
        self._settle(name)

    async def close(self) -> None:
        """Free everything, after calls being answered."""
        for name in list(self.models):
            self.aim(name, ())
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def evict(self, entry: ModelEntry) -> asyncio.Task[None]:
        """Put a lazy model out of memory that nobody uses; it loads again when it is asked for."""
        served, entry.served = entry.served, None
        assert served is not None and not entry.users
        return self._free(served, freed(served))

    # Inside

    def _begin(self, source: ModelSource, release: Release, entry: ModelEntry, before: tuple[str, str]) -> Load:
        key = (release.name, release.version)
        entry.begun = time.monotonic()
        # No context of a call: the load outlives it.
        task = asyncio.get_running_loop().create_task(self._run(key), context=Context())
        self._loads[key] = load = Load(source, release, entry, before, task)
        self._changed()
        return load

    async def _run(self, key: Key) -> OnnxplainError | None:
        """Load, and put it in place. Returns what went wrong."""
        load = self._loads[key]
        begun = time.perf_counter()
        served: Served | None = None
        failure: OnnxplainError | None = None
        try:
            served = await self._load(load.source, load.release)
        except OnnxplainError as error:
            failure = error
        except Exception as error:
            LOG.exception("load failed")
            failure = InputError(f"unexpected {type(error).__name__} while loading")
        # From here on nothing waits, so that nothing comes between.
        if self._loads.get(key) is not load:  # given up, and whoever loads did not look
            if served is not None:
                self._free(served, freed(served))
            return failure
        del self._loads[key]
        self.turns.forget(key)
        if served is not None:
            self._put(load, served)
            seconds = round(time.perf_counter() - begun, 3)
            event(LOG, logging.INFO, "loaded", model=key[0], version=key[1], seconds=seconds)
        elif failure is not None:
            self._fail(load, failure)
        self._settle(key[0])
        self._changed()
        return failure

    def _put(self, load: Load, served: Served) -> None:
        versions = self.models[load.release.name]
        old = versions.entries.get(load.release.version)
        load.entry.succeed(load.release, served)
        versions.entries[load.release.version] = load.entry
        versions.set_aliases(load.release)
        if old is not None and old is not load.entry:
            self._retire(old)

    def _fail(self, load: Load, failure: OnnxplainError) -> None:
        entry = self.models[load.release.name].entries[load.release.version]  # what answers, or the one that failed
        entry.warming = False
        if isinstance(failure, Busy) and load.before[0]:  # there was no room, which says nothing about the model
            entry.state, entry.reason = load.before
            return
        entry.fail(load.release, failure)

    def _give_up(self, load: Load) -> None:
        """End a load that nobody wants any more; everything is as it was before it."""
        name, version = load.release.name, load.release.version
        del self._loads[name, version]
        self.turns.forget((name, version))
        load.task.cancel()
        versions = self.models[name]
        entry = versions.entries[version]
        entry.warming = False
        if load.before[0]:
            entry.state, entry.reason = load.before
        else:
            del versions.entries[version]

    def _settle(self, name: str) -> None:
        """Let go of what is not aimed at any more, as soon as something answers in its place."""
        wanted = self._aims.get(name)
        versions = self.models.get(name)
        if wanted is None or versions is None:
            return
        keep = set(wanted)
        coming = any(load.release.version in wanted for load in self.loads(name))
        if wanted and (coming or not versions.any_answers(wanted)):
            keep |= {version for version, entry in versions.entries.items() if entry.answers}
        for load in self.loads(name):
            if load.release.version not in keep:
                self._give_up(load)
        for entry in versions.take_others(keep):
            self._retire(entry)
        if not versions.entries:
            del self.models[name]
            del self._aims[name]

    def _retire(self, entry: ModelEntry) -> None:
        """Close a model when its last call is answered."""
        entry.retire()
        if entry.served is not None:
            self._free(entry.served, entry.drain())

    def _free(self, served: Served, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self.leaving.add(served)
        self._closing.add(task)

        def gone(task: asyncio.Task[None]) -> None:
            self.leaving.discard(served)
            self._closing.discard(task)

        task.add_done_callback(gone)
        return task
