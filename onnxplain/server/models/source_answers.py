"""What the sources say, one question at a time each; of one that was never heard, what was last served well of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence

from onnxplain.errors import OnnxplainError
from onnxplain.server.models.entry import ModelEntry
from onnxplain.server.models.load_turns import LoadTurns
from onnxplain.server.models.release_record import ReleaseRecord
from onnxplain.server.models.source_health import SourceHealth
from onnxplain.sources import ModelSource, Release, RememberingSource

LOG = logging.getLogger("onnxplain.server")
ANSWER = 300.0  # seconds for a source to say what it has; one that hangs holds up no other


class SourceAnswers:
    """health: which sources answer."""

    def __init__(self, sources: Iterable[ModelSource], turns: LoadTurns):
        self.health = SourceHealth()
        self._turns = turns
        self._records: dict[ModelSource, ReleaseRecord] = {
            source: ReleaseRecord(source) for source in sources if isinstance(source, RememberingSource)
        }
        self._closed = False

    def due(self, source: ModelSource) -> bool:
        """Whether it may be asked now: it was not silent just before, and nothing is being fetched from it."""
        return self.health.is_due(source.name) and not self._turns.busy(source)

    async def ask(self, source: ModelSource) -> tuple[Sequence[Release] | None, str]:
        """What a source offers, None if nothing is known of it; and what is to be said of that."""
        record = self._records.get(source)
        kept = await record.read() if record is not None else []
        try:
            async with self._turns.source(source) as turn:
                releases = await asyncio.wait_for(turn.run(source.releases), ANSWER)
        except TimeoutError:
            self.health.failed(source.name, f"no answer within {ANSWER:g} s")
        except OnnxplainError as error:
            self.health.failed(source.name, str(error))
        except Exception as error:
            LOG.exception("source failed")
            self.health.failed(source.name, f"unexpected {type(error).__name__}")
        else:
            self.health.answered(source.name)
            return releases, ""
        if kept and not self.health.ever_answered(source.name):
            return kept, f"from the cache, as last served well: {source.name} does not answer"
        return None, ""

    def remember(self, entries: Collection[ModelEntry], offers: Collection[tuple[ModelSource, Release]]) -> None:
        """Have every source keep what of it is served well now."""
        for source, record in self._records.items() if not self._closed else ():
            good: dict[str, list[Release]] = {}
            for entry in entries:
                if entry.source is source and entry.served_well is not None:
                    good.setdefault(entry.release.name, []).append(entry.served_well)
            record.update(good, {release.name for offering, release in offers if offering is source})

    def settle(self) -> None:
        """The server ends: what goes from now on is not forgotten."""
        self._closed = True

    async def written(self) -> None:
        """Until the disk has what was to be kept."""
        for record in self._records.values():
            await record.written()
