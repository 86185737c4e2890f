"""Which models are served now: loaded beside the old ones, swapped when they work, drained, freed."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from onnxplain.errors import InputError, NotFound, OnnxplainError, Unavailable
from onnxplain.server.models.served import Served
from onnxplain.server.scheduling.session_cache import give_back
from onnxplain.server.telemetry.logs import event
from onnxplain.sources import Release, Source

LOG = logging.getLogger("onnxplain.server")
RETRY = (5.0, 60.0)  # seconds between attempts at a release that failed or a source that is silent: first, longest
READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"

Loader = Callable[[Source, Release], Awaitable[Served]]


@dataclass
class Entry:
    """One version of one model. users: calls being answered by it; it is closed when there are none left."""

    release: Release
    source: Source
    state: str = LOADING
    reason: str = ""
    served: Served | None = None
    users: int = 0
    retired: bool = False
    tries: int = 0
    again: float = 0.0  # monotonic time before which a failed release is not tried anew
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class ModelRepository:
    """Models by name and version.

    control: "none" loads once, "poll" follows the sources, "explicit" loads on demand and `load` names first.
    load: (source, release) -> a model that was loaded, run and verified.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        load: Loader,
        control: str = "none",
        first: Sequence[str] = (),
        changed: Callable[[], None] | None = None,
    ):
        self.sources = list(sources)
        self.control = control
        self.silent: dict[str, str] = {}  # source -> why it does not answer
        self._load = load
        self._wanted = set(first)
        self._all = control != "explicit" or "*" in self._wanted
        self._entries: dict[str, dict[str, Entry]] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        self._offers: dict[str, list[tuple[Source, Release]]] = {}
        self._turn = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._changed = changed or (lambda: None)
        self._backoff: dict[str, tuple[float, float]] = {}  # source -> (not before, wait)
        self._heard: set[str] = set()

    # What callers ask

    @asynccontextmanager
    async def use(self, name: str, version: str = "") -> AsyncIterator[Served]:
        """A model for the time of one call: it is not freed meanwhile. Raises NotFound or Unavailable."""
        entry = self.entry(name, version)
        assert entry.served is not None
        entry.users += 1
        try:
            yield entry.served
        finally:
            entry.users -= 1
            if not entry.users:
                entry.idle.set()

    def entry(self, name: str, version: str = "") -> Entry:
        """The entry that answers for `name` and `version` ("": the newest that is ready, "@alias", "7")."""
        versions = self._entries.get(name, {})
        if not versions:
            raise NotFound(f"no model {name[:200]!r} here. {self._near(name)}").at("model.name")
        if version.startswith("@"):
            found = self._aliases.get(name, {}).get(version[1:])
            if found is None:
                known = ", ".join("@" + a for a in self._aliases.get(name, {})) or "none"
                raise NotFound(f"model {name!r} has no alias {version[:100]!r}; it has {known}.").at("model.version")
            version = found
        if version:
            entry = versions.get(version)
            if entry is None:
                raise NotFound(
                    f"model {name!r} has no version {version[:100]!r} here; it has {', '.join(versions)}."
                ).at("model.version")
        else:
            ready = [entry for entry in versions.values() if entry.served is not None and not entry.retired]
            entry = max(ready or versions.values(), key=lambda e: int(e.release.version))
        if entry.served is None:
            if entry.state == LOADING:
                raise Unavailable(f"model {name!r} is loading; try again shortly.")
            raise Unavailable(f"model {name!r} could not be loaded: {entry.reason}")
        return entry

    def index(self) -> list[tuple[str, str, str, str]]:
        """(name, version, state, reason) of everything here, and of everything that could be loaded."""
        rows = []
        for name in sorted({*self._entries, *self._offers}):
            versions = self._entries.get(name, {})
            for version in sorted(versions, key=int):
                entry = versions[version]
                rows.append((name, version, entry.state, entry.reason))
            for _, release in self._offers.get(name, []):
                if release.version not in versions:
                    rows.append((name, release.version, UNAVAILABLE, "not loaded"))
        for source in self.sources:
            rows += [(name, "", UNAVAILABLE, reason) for name, reason in sorted(source.problems.items())]
        return rows

    def names(self) -> list[str]:
        """Models that answer now."""
        return [n for n, versions in sorted(self._entries.items()) if any(e.served for e in versions.values())]

    def served(self) -> list[Served]:
        """Everything that answers now."""
        return [e.served for versions in self._entries.values() for e in versions.values() if e.served is not None]

    @property
    def ready(self) -> bool:
        """Every wanted model answers, be it by its last good version, and every source was heard once."""
        asleep = [name for name in self.silent if name not in self._heard]
        return not asleep and all(any(e.served for e in versions.values()) for versions in self._entries.values())

    def problems(self) -> dict[str, str]:
        """What is not as it should be, by source or model/version, whether or not an older version answers."""
        found = dict(self.silent)
        for name, versions in self._entries.items():
            for entry in versions.values():
                if entry.state == UNAVAILABLE or (entry.state == LOADING and entry.served is None):
                    found[f"{name}/{entry.release.version}"] = entry.reason or "loading"
        return found

    # What changes it

    async def refresh(self) -> None:
        """Ask every source and follow it. Failures are noted and never take a working model away."""
        async with self._turn:
            for source in self.sources:
                if time.monotonic() < self._backoff.get(source.name, (0.0, 0.0))[0]:
                    continue
                try:
                    releases = await asyncio.to_thread(source.releases)
                except OnnxplainError as error:
                    self._silence(source, str(error))
                    continue
                except Exception as error:
                    LOG.exception("source failed")
                    self._silence(source, f"unexpected {type(error).__name__}")
                    continue
                self._heard.add(source.name)
                self.silent.pop(source.name, None)
                self._backoff.pop(source.name, None)
                await self._follow(source, releases)
            self._changed()

    async def poll(self, seconds: float, wake: asyncio.Event) -> None:
        """Refresh for ever; `wake` makes the next look come at once."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), seconds)
            wake.clear()
            try:
                await self.refresh()
            except Exception:
                LOG.exception("refresh failed")

    async def load(self, name: str) -> None:
        """Load or reload a model on demand. Raises NotFound, or what loading raised."""
        self._explicit("loaded")
        async with self._turn:
            offers = []
            for source in self.sources:
                for release in await asyncio.to_thread(source.releases):
                    self._offer(source, release)
                    if release.name == name:
                        offers.append((source, release))
            if not offers:
                raise NotFound(f"no model {name[:200]!r} in {', '.join(s.name for s in self.sources)}.").at(
                    "model_name"
                )
            self._wanted.add(name)
            errors = [await self._bring(source, release, force=True) for source, release in offers]
            await self._retire_others(name, {release.version for _, release in offers})
            self._changed()
        failed = [error for error in errors if error is not None]
        if failed:
            raise failed[0]

    async def unload(self, name: str) -> None:
        """Take a model away; calls being answered finish."""
        self._explicit("unloaded")
        async with self._turn:
            if name not in self._entries:
                raise NotFound(f"no model {name[:200]!r} is loaded.").at("model_name")
            self._wanted.discard(name)
            await self._retire_others(name, set())
            self._changed()

    async def close(self) -> None:
        """Free everything, after calls being answered."""
        for name in list(self._entries):
            await self._retire_others(name, set())
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    # Inside

    async def _follow(self, source: Source, releases: Sequence[Release]) -> None:
        """Bring what a source offers, then let go of what it no longer does."""
        offered: dict[str, set[str]] = {}
        for name in [n for n, offers in self._offers.items() if any(s is source for s, _ in offers)]:
            self._offers[name] = [(s, r) for s, r in self._offers[name] if s is not source]
        for release in releases:
            if not self._mine(source, release.name):
                event(LOG, logging.WARNING, "two sources have this model; the first is served", model=release.name)
                continue
            self._offer(source, release)
            if self._all or release.name in self._wanted:
                offered.setdefault(release.name, set()).add(release.version)
                await self._bring(source, release)
        for name in [n for n, versions in self._entries.items() if any(e.source is source for e in versions.values())]:
            wanted = offered.get(name, set())
            entries = self._entries[name]
            new = [entries[v] for v in wanted if v in entries]
            if wanted and not any(e.served is not None for e in new):
                continue  # nothing of the new works: the last good one goes on
            await self._retire_others(name, wanted)

    async def _bring(self, source: Source, release: Release, force: bool = False) -> OnnxplainError | None:
        """Load a release unless it is here; on failure what is here stays. Returns what went wrong."""
        versions = self._entries.setdefault(release.name, {})
        old = versions.get(release.version)
        if old is not None and not force:
            same = old.release.fingerprint == release.fingerprint
            if same and (old.served is not None and old.state == READY):
                self._point(release)
                return None
            if same and time.monotonic() < old.again:
                return None
        entry = Entry(release, source)
        if old is not None and old.served is not None:  # another build of the same version: the old one answers on
            old.state, old.reason = LOADING, "reloading"
        else:
            entry.tries = old.tries if old is not None and old.release.fingerprint == release.fingerprint else 0
            versions[release.version] = entry
        self._changed()
        begun = time.perf_counter()
        failure: OnnxplainError
        try:
            entry.served = await self._load(source, release)
        except OnnxplainError as error:
            failure = error
        except Exception as error:
            LOG.exception("load failed")
            failure = InputError(f"unexpected {type(error).__name__} while loading")
        else:
            entry.state = READY
            versions[release.version] = entry
            self._point(release)
            if old is not None and old.served is not None:
                self._let_go(old)
            seconds = round(time.perf_counter() - begun, 3)
            event(LOG, logging.INFO, "loaded", model=release.name, version=release.version, seconds=seconds)
            self._changed()
            return None
        kept = old if old is not None and old.served is not None else entry
        kept.tries += 1
        kept.again = time.monotonic() + min(RETRY[1], RETRY[0] * 2 ** (kept.tries - 1))
        kept.state, kept.reason = UNAVAILABLE, str(failure)
        kept.release = release
        event(LOG, logging.ERROR, "not loaded", model=release.name, version=release.version, reason=str(failure))
        self._changed()
        return failure

    async def _retire_others(self, name: str, wanted: set[str]) -> None:
        """Let go of every version that is not wanted any more."""
        versions = self._entries.get(name, {})
        for version in [v for v in versions if v not in wanted]:
            entry = versions.pop(version)
            if entry.served is not None:
                self._let_go(entry)
        if not versions:
            self._entries.pop(name, None)
            self._aliases.pop(name, None)

    def _let_go(self, entry: Entry) -> None:
        """Close a model when its last call is answered."""
        entry.retired, entry.state = True, UNLOADING

        async def drain() -> None:
            while entry.users:
                entry.idle.clear()
                await entry.idle.wait()
            assert entry.served is not None
            await entry.served.close()
            entry.served = None
            await asyncio.to_thread(give_back)  # a model is a web of cycles: its memory waits for the collector
            event(LOG, logging.INFO, "freed", model=entry.release.name, version=entry.release.version)

        task = asyncio.get_running_loop().create_task(drain())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _point(self, release: Release) -> None:
        """Aliases of a release that answers."""
        aliases = self._aliases.setdefault(release.name, {})
        for alias in [a for a, version in aliases.items() if version == release.version]:
            del aliases[alias]
        aliases.update(dict.fromkeys(release.aliases, release.version))

    def _mine(self, source: Source, name: str) -> bool:
        versions = self._entries.get(name, {})
        return all(entry.source is source for entry in versions.values())

    def _offer(self, source: Source, release: Release) -> None:
        offers = self._offers.setdefault(release.name, [])
        offers[:] = [(s, r) for s, r in offers if (s, r.version) != (source, release.version)]
        offers.append((source, release))

    def _silence(self, source: Source, reason: str) -> None:
        wait = self._backoff.get(source.name, (0.0, 0.0))[1]
        wait = min(RETRY[1], 2 * wait) if wait else RETRY[0]
        self._backoff[source.name] = (time.monotonic() + wait, wait)
        if self.silent.get(source.name) != reason:
            event(LOG, logging.ERROR, "source does not answer", source=source.name, reason=reason)
        self.silent[source.name] = reason

    def _explicit(self, what: str) -> None:
        if self.control != "explicit":
            raise Unsupported(
                f"models are {what} on demand only under --model-control-mode explicit; this server has {self.control}."
            )

    def _near(self, name: str) -> str:
        near = difflib.get_close_matches(name[:200], self.names(), n=3)
        known = ", ".join(self.names()[:20]) or "no model"
        return f"Did you mean {', '.join(near)}?" if near else f"There is {known}."


class Unsupported(OnnxplainError):
    """Something this server does not do as it was started."""

    status = "FAILED_PRECONDITION"
