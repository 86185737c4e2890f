"""What of one source was last served well: read when the server starts without the source, written as models change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextvars import Context

from onnxplain.errors import OnnxplainError
from onnxplain.server.models.load_turns import in_thread
from onnxplain.server.telemetry.logs import event
from onnxplain.sources import Release, RememberingSource

LOG = logging.getLogger("onnxplain.server")


class ReleaseRecord:
    """Kept on disk by the source; writing never holds anybody up, and the last state wins."""

    def __init__(self, source: RememberingSource):
        self.source = source
        self._kept: dict[str, list[Release]] | None = None  # by model; None: not read yet
        self._writing: asyncio.Task[None] | None = None
        self._changed = False

    async def read(self) -> list[Release]:
        """What the record held when the server began, then what it holds now."""
        if self._kept is None:
            kept: dict[str, list[Release]] = {}
            for release in await in_thread(self.source.remembered):
                kept.setdefault(release.name, []).append(release)
            self._kept = self._kept or kept
        return [release for releases in self._kept.values() for release in releases]

    def update(self, good: Mapping[str, Sequence[Release]], offered: Collection[str]) -> None:
        """Keep what is served well now. What is offered but not loaded well yet stays as it was kept; the rest goes."""
        if self._kept is None:
            return
        waiting = {name: releases for name, releases in self._kept.items() if name in offered and name not in good}
        kept = dict(sorted({**waiting, **{name: list(releases) for name, releases in good.items()}}.items()))
        if kept == self._kept:
            return
        self._kept, self._changed = kept, True
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write(), context=Context())

    async def written(self) -> None:
        """Until the disk has the last state."""
        if self._writing is not None:
            await asyncio.wait({self._writing})

    async def _write(self) -> None:
        try:
            while self._changed:
                self._changed = False
                releases = await self.read()
                await in_thread(lambda releases=releases: self.source.remember(releases))  # type: ignore[misc]
        except OnnxplainError as error:
            event(LOG, logging.ERROR, "not remembered", source=self.source.name, reason=str(error))
        finally:
            self._writing = None
