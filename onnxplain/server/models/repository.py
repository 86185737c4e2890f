"""Which models are served now: what callers ask, and how sources and operators change it."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from pathlib import Path

from onnxplain.errors import Busy, NotFound, OnnxplainError, Unavailable
from onnxplain.server.grpc_status import scrub
from onnxplain.server.models.entry import UNAVAILABLE, ModelEntry
from onnxplain.server.models.lifecycle import Loader, ModelLifecycle
from onnxplain.server.models.load_turns import LoadTurns
from onnxplain.server.models.readiness import ModelStanding, is_ready
from onnxplain.server.models.served import Served
from onnxplain.server.models.source_answers import SourceAnswers
from onnxplain.server.models.versions import ModelVersions
from onnxplain.server.telemetry.logs import event
from onnxplain.sources import ModelSource, Release

LOG = logging.getLogger("onnxplain.server")


class ModelRepository:
    """Models by name and version.

    control: "none" loads once, "poll" follows the sources, "explicit" loads on demand and `load` names first.
    load: (source, release) -> a model that was loaded, run and verified. turns: whose turn it is to load, shared with
    `load`. readiness: see `is_ready`. roots: folders that no reason may name. lazy: models load when they
    are first asked for. leaving: set when the server begins to go down: nothing is ready any more, though it answers.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        load: Loader,
        control: str = "none",
        first: Sequence[str] = (),
        changed: Callable[[], None] | None = None,
        *,
        turns: LoadTurns | None = None,
        readiness: str = "serving",
        roots: Iterable[str | Path] = (),
        lazy: bool = False,
    ):
        self.sources = list(sources)
        self.control = control
        self._readiness, self._roots = readiness, tuple(roots)
        self._wanted = set(first)
        self._all = control != "explicit" or "*" in self._wanted
        turns = turns or LoadTurns()
        self._answers = SourceAnswers(self.sources, turns)
        self.health = self._answers.health
        self._changed = changed or (lambda: None)
        self.lifecycle = ModelLifecycle(load, turns, self._on_change, lazy)
        self._models = self.lifecycle.models
        self._offers: dict[str, list[tuple[ModelSource, Release]]] = {}
        self._looked = False  # at every source, once
        self._first_loads: set[asyncio.Task[OnnxplainError | None]] = set()  # that this look began
        self._was_ready = self.leaving = False
        self._tasks: set[asyncio.Task[list[OnnxplainError]]] = set()

    # What callers ask

    @asynccontextmanager
    async def use(self, name: str, version: str = "") -> AsyncIterator[Served]:
        """A model for the time of one call: it is not freed meanwhile. Raises NotFound or Unavailable."""
        failure: OnnxplainError | None = None
        while True:
            entry = self._asked(name, version)
            with entry.used():
                if entry.served is None:
                    failure = await self.lifecycle.warm(entry)
                if entry.served is not None:
                    try:
                        yield entry.served
                    finally:
                        self.lifecycle.used()
                    return
            if isinstance(failure, Busy | Unavailable):
                raise failure.again()  # else there may be another version, or else its reason is raised above

    def entry(self, name: str, version: str = "") -> ModelEntry:
        """The entry that answers for `name` and `version` ("": the newest that is ready, "@alias", "7")."""
        return self._versions(name).entry(version)

    def versions(self, name: str) -> list[str]:
        """Versions of a model that answer, oldest first. Raises NotFound."""
        entries = self._versions(name).entries
        return [version for version in sorted(entries, key=int) if entries[version].answers]

    def index(self) -> list[tuple[str, str, str, str]]:
        """(name, version, state, reason) of everything here, and of everything that could be loaded."""
        rows = []
        for name in sorted({*self._models, *self._offers}):
            entries = self._models[name].entries if name in self._models else {}
            for version in sorted(entries, key=int):
                entry = entries[version]
                rows.append((name, version, entry.state, entry.reason or entry.remark))
            for _, release in self._offers.get(name, []):
                if release.version not in entries:
                    rows.append((name, release.version, UNAVAILABLE, "not loaded"))
        for source in self.sources:
            rows += [(name, "", UNAVAILABLE, reason) for name, reason in sorted(source.problems.items())]
        return [(name, version, state, scrub(reason, self._roots)) for name, version, state, reason in rows]

    def names(self) -> list[str]:
        """Models that answer now."""
        return [name for name, versions in sorted(self._models.items()) if versions.answers]

    def states(self) -> dict[str, bool]:
        """Whether it answers, of every model `m`, and of every version `m/1` of it."""
        states = {}
        for name, versions in self._models.items():
            states[name] = versions.answers
            states |= {f"{name}/{version}": version not in versions.problems for version in versions.entries}
        return states

    def served(self) -> list[Served]:
        """Everything that is in memory now."""
        entries = [entry for versions in self._models.values() for entry in versions.entries.values()]
        return [entry.served for entry in entries if entry.served is not None]

    @property
    def ready(self) -> bool:
        """Whether new calls should come here, by the policy."""
        looked = self._looked and all(task.done() for task in self._first_loads)
        models = [ModelStanding(v.good, v.answers, not v.problems) for v in self._models.values()]
        ready = is_ready(self._readiness, looked, bool(self.health.silent), self._was_ready, models)
        self._was_ready = self._was_ready or ready
        return ready and not self.leaving

    def problems(self) -> dict[str, str]:
        """What is not as it should be, by source or model/version, whether or not an older version answers."""
        problems = dict(self.health.silent)
        for name, versions in self._models.items():
            problems |= {f"{name}/{version}": reason for version, reason in versions.problems.items()}
        return problems

    # What changes it

    async def look(self) -> None:
        """Ask every source and begin what follows. Failures are noted and never take a working model away."""
        due = [source for source in self.sources if self._answers.due(source)]
        asking = [asyncio.get_running_loop().create_task(self._answers.ask(source)) for source in due]
        try:
            for source, task in zip(due, asking, strict=True):  # in their order: the first that has a model serves it
                releases, note = await task
                if releases is not None:
                    self._follow(source, releases, note)
        finally:
            for task in asking:
                task.cancel()
        if not self._looked:
            self._looked = True
            self._first_loads = {load.task for load in self.lifecycle.loads()}
        self._on_change()

    async def refresh(self) -> None:
        """Look, and wait for what that began."""
        await self.look()
        while loads := self.lifecycle.loads():
            await asyncio.wait({load.task for load in loads})

    async def poll(self, seconds: float, wake: asyncio.Event) -> None:
        """Look for ever, whatever is still loading; `wake` makes the next look come at once."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), seconds)
            wake.clear()
            try:
                await self.look()
            except Exception:
                LOG.exception("refresh failed")

    async def load(self, name: str) -> None:
        """Load or reload a model on demand. Raises NotFound, or what loading raised.

        It goes on when the caller does not wait for it; who asks again joins the load of the same files.
        """
        self._explicit("loaded")
        task = asyncio.get_running_loop().create_task(self._load_on_demand(name, time.monotonic()), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._load_ended)
        failed = await asyncio.shield(task)
        if failed:
            raise failed[0].again()

    async def unload(self, name: str) -> None:
        """Take a model away, or end its load; calls being answered finish."""
        self._explicit("unloaded")
        if name not in self._models:
            raise NotFound(f"no model {name[:200]!r} is loaded.").at("model_name")
        self._wanted.discard(name)
        self.lifecycle.aim(name, ())
        self._on_change()

    async def close(self) -> None:
        """Free everything, after calls being answered."""
        for task in self._tasks:
            task.cancel()
        self._answers.settle()
        await self.lifecycle.close()
        await self._answers.written()

    # Inside

    def _follow(self, source: ModelSource, releases: Sequence[Release], note: str = "") -> None:
        """Begin to bring what a source offers, and to let go of what it no longer does."""
        offered: dict[str, set[str]] = {}
        for entry in self.lifecycle.entries():
            if entry.source is source:
                entry.note = note
        for name in [n for n, offers in self._offers.items() if any(s is source for s, _ in offers)]:
            self._offers[name] = [(s, r) for s, r in self._offers[name] if s is not source]
        for release in releases:
            if release.name in self._models and not self._models[release.name].owned_by(source):
                event(LOG, logging.WARNING, "two sources have this model; the first is served", model=release.name)
                continue
            self._offer(source, release)
            if self._all or release.name in self._wanted:
                offered.setdefault(release.name, set()).add(release.version)
                self.lifecycle.bring(source, release, note=note)
        for name in [name for name, versions in self._models.items() if versions.has_any_of(source)]:
            self.lifecycle.aim(name, offered.get(name, set()))

    async def _load_on_demand(self, name: str, asked: float) -> list[OnnxplainError]:
        """Load everything that the sources offer by this name. What went wrong."""
        offers: list[tuple[ModelSource, Release, str]] = []
        for source in self.sources:
            releases, note = await self._answers.ask(source)
            for release in releases or ():
                self._offer(source, release)
                if release.name == name:
                    offers.append((source, release, note))
        if not offers and self.health.silent:
            reasons = "; ".join(self.health.silent.values())
            raise Unavailable(f"no model {name[:200]!r} in the sources that answer, and one does not: {reasons}")
        if not offers:
            known = ", ".join(source.name for source in self.sources)
            raise NotFound(f"no model {name[:200]!r} in {known}.").at("model_name")
        self._wanted.add(name)
        loads = [self.lifecycle.bring(source, release, asked, note) for source, release, note in offers]
        self.lifecycle.prefer(name)
        self.lifecycle.aim(name, {release.version for _, release, _ in offers})
        errors = [await load.ended() for load in loads if load is not None]
        return [error for error in errors if error is not None]

    def _load_ended(self, task: asyncio.Task[list[OnnxplainError]]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where the caller has left

    def _on_change(self) -> None:
        """Something came or went."""
        offers = [offer for offers in self._offers.values() for offer in offers]
        self._answers.remember(list(self.lifecycle.entries()), offers)
        self._changed()

    def _offer(self, source: ModelSource, release: Release) -> None:
        offers = self._offers.setdefault(release.name, [])
        offers[:] = [(s, r) for s, r in offers if (s, r.version) != (source, release.version)]
        offers.append((source, release))

    def _versions(self, name: str) -> ModelVersions:
        versions = self._models.get(name)
        if versions is None:
            raise NotFound(f"no model {name[:200]!r} here. {self._suggestion(name)}").at("model.name")
        return versions

    def _asked(self, name: str, version: str) -> ModelEntry:
        """What a call means, whether or not it must be loaded first. Raises NotFound, Unavailable."""
        versions = self._versions(name)
        if self.lifecycle.lazy and (entry := versions.chosen(version)).due:
            return entry
        self.lifecycle.prefer(name)  # if it is loading
        return versions.entry(version)

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
