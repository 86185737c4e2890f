"""Which models are served now: loaded beside the old ones, swapped when they work, drained, freed."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from onnxplain.errors import InputError, NotFound, OnnxplainError
from onnxplain.server.models.entry import LOADING, READY, UNAVAILABLE, ModelEntry
from onnxplain.server.models.served import Served
from onnxplain.server.models.source_health import SourceHealth
from onnxplain.server.models.versions import ModelVersions
from onnxplain.server.telemetry.logs import event
from onnxplain.sources import ModelSource, Release

LOG = logging.getLogger("onnxplain.server")
Loader = Callable[[ModelSource, Release], Awaitable[Served]]


class ModelRepository:
    """Models by name and version.

    control: "none" loads once, "poll" follows the sources, "explicit" loads on demand and `load` names first.
    load: (source, release) -> a model that was loaded, run and verified.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        load: Loader,
        control: str = "none",
        first: Sequence[str] = (),
        changed: Callable[[], None] | None = None,
    ):
        self.sources = list(sources)
        self.control = control
        self.health = SourceHealth()
        self._load = load
        self._wanted = set(first)
        self._all = control != "explicit" or "*" in self._wanted
        self._models: dict[str, ModelVersions] = {}
        self._offers: dict[str, list[tuple[ModelSource, Release]]] = {}
        self._changing = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._changed = changed or (lambda: None)

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

    def entry(self, name: str, version: str = "") -> ModelEntry:
        """The entry that answers for `name` and `version` ("": the newest that is ready, "@alias", "7")."""
        versions = self._models.get(name)
        if versions is None:
            raise NotFound(f"no model {name[:200]!r} here. {self._suggestion(name)}").at("model.name")
        return versions.entry(version)

    def index(self) -> list[tuple[str, str, str, str]]:
        """(name, version, state, reason) of everything here, and of everything that could be loaded."""
        rows = []
        for name in sorted({*self._models, *self._offers}):
            entries = self._models[name].entries if name in self._models else {}
            for version in sorted(entries, key=int):
                rows.append((name, version, entries[version].state, entries[version].reason))
            for _, release in self._offers.get(name, []):
                if release.version not in entries:
                    rows.append((name, release.version, UNAVAILABLE, "not loaded"))
        for source in self.sources:
            rows += [(name, "", UNAVAILABLE, reason) for name, reason in sorted(source.problems.items())]
        return rows

    def names(self) -> list[str]:
        """Models that answer now."""
        return [name for name, versions in sorted(self._models.items()) if versions.answers]

    def served(self) -> list[Served]:
        """Everything that answers now."""
        entries = [entry for versions in self._models.values() for entry in versions.entries.values()]
        return [entry.served for entry in entries if entry.served is not None]

    @property
    def ready(self) -> bool:
        """Every wanted model answers, be it by its last good version, and every source was heard once."""
        return self.health.all_answered_once and all(versions.answers for versions in self._models.values())

    def problems(self) -> dict[str, str]:
        """What is not as it should be, by source or model/version, whether or not an older version answers."""
        problems = dict(self.health.silent)
        for name, versions in self._models.items():
            problems |= {f"{name}/{version}": reason for version, reason in versions.problems.items()}
        return problems

    # What changes it

    async def refresh(self) -> None:
        """Ask every source and follow it. Failures are noted and never take a working model away."""
        async with self._changing:
            for source in self.sources:
                if not self.health.is_due(source.name):
                    continue
                try:
                    releases = await asyncio.to_thread(source.releases)
                except OnnxplainError as error:
                    self.health.failed(source.name, str(error))
                    continue
                except Exception as error:
                    LOG.exception("source failed")
                    self.health.failed(source.name, f"unexpected {type(error).__name__}")
                    continue
                self.health.answered(source.name)
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
        async with self._changing:
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
            errors = [await self._load_release(source, release, force=True) for source, release in offers]
            await self._retire_others(name, {release.version for _, release in offers})
            self._changed()
        failed = [error for error in errors if error is not None]
        if failed:
            raise failed[0]

    async def unload(self, name: str) -> None:
        """Take a model away; calls being answered finish."""
        self._explicit("unloaded")
        async with self._changing:
            if name not in self._models:
                raise NotFound(f"no model {name[:200]!r} is loaded.").at("model_name")
            self._wanted.discard(name)
            await self._retire_others(name, set())
            self._changed()

    async def close(self) -> None:
        """Free everything, after calls being answered."""
        for name in list(self._models):
            await self._retire_others(name, set())
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    # Inside

    async def _follow(self, source: ModelSource, releases: Sequence[Release]) -> None:
        """Bring what a source offers, then let go of what it no longer does."""
        offered: dict[str, set[str]] = {}
        for name in [n for n, offers in self._offers.items() if any(s is source for s, _ in offers)]:
            self._offers[name] = [(s, r) for s, r in self._offers[name] if s is not source]
        for release in releases:
            if release.name in self._models and not self._models[release.name].owned_by(source):
                event(LOG, logging.WARNING, "two sources have this model; the first is served", model=release.name)
                continue
            self._offer(source, release)
            if self._all or release.name in self._wanted:
                offered.setdefault(release.name, set()).add(release.version)
                await self._load_release(source, release)
        for name in [name for name, versions in self._models.items() if versions.has_any_of(source)]:
            wanted = offered.get(name, set())
            if wanted and not self._models[name].any_answers(wanted):
                continue  # nothing of the new works: the last good one goes on
            await self._retire_others(name, wanted)

    async def _load_release(self, source: ModelSource, release: Release, force: bool = False) -> OnnxplainError | None:
        """Load a release unless it is here; on failure what is here stays. Returns what went wrong."""
        versions = self._models.setdefault(release.name, ModelVersions(release.name))
        old = versions.entries.get(release.version)
        if old is not None and not force:
            same = old.release.fingerprint == release.fingerprint
            if same and (old.served is not None and old.state == READY):
                versions.set_aliases(release)
                return None
            if same and time.monotonic() < old.retry_at:
                return None
        entry = ModelEntry(release, source)
        if old is not None and old.served is not None:  # another build of the same version: the old one answers on
            old.state, old.reason = LOADING, "reloading"
        else:
            entry.failures = old.failures if old is not None and old.release.fingerprint == release.fingerprint else 0
            versions.entries[release.version] = entry
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
            versions.entries[release.version] = entry
            versions.set_aliases(release)
            if old is not None and old.served is not None:
                self._retire(old)
            seconds = round(time.perf_counter() - begun, 3)
            event(LOG, logging.INFO, "loaded", model=release.name, version=release.version, seconds=seconds)
            self._changed()
            return None
        kept = old if old is not None and old.served is not None else entry
        kept.fail(release, failure)
        self._changed()
        return failure

    async def _retire_others(self, name: str, wanted: set[str]) -> None:
        """Let go of every version that is not wanted any more."""
        versions = self._models.get(name)
        if versions is None:
            return
        for entry in versions.take_others(wanted):
            if entry.served is not None:
                self._retire(entry)
        if not versions.entries:
            del self._models[name]

    def _retire(self, entry: ModelEntry) -> None:
        """Close a model when its last call is answered."""
        entry.retire()
        task = asyncio.get_running_loop().create_task(entry.drain())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _offer(self, source: ModelSource, release: Release) -> None:
        offers = self._offers.setdefault(release.name, [])
        offers[:] = [(s, r) for s, r in offers if (s, r.version) != (source, release.version)]
        offers.append((source, release))

    def _explicit(self, what: str) -> None:
        if self.control != "explicit":
            raise Unsupported(
                f"models are {what} on demand only under --model-control-mode explicit; this server has {self.control}."
            )

    def _suggestion(self, name: str) -> str:
        near = difflib.get_close_matches(name[:200], self.names(), n=3)
        known = ", ".join(self.names()[:20]) or "no model"
        return f"Did you mean {', '.join(near)}?" if near else f"There is {known}."


class Unsupported(OnnxplainError):
    """Something this server does not do as it was started."""

    status = "FAILED_PRECONDITION"
