"""One graph and those who wait for it: looks like a Session to an explainer, shares runs between requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from onnxplain.runtime.session import Array, Session, Stop
from onnxplain.server.call import CALL
from onnxplain.server.scheduling.scheduler import Outputs, Scheduler, Ticket, run_batch
from onnxplain.server.scheduling.session_cache import SessionCache

MEMORY = 0.2  # weight of the newest run in the expected time


@dataclass
class QueueStats:
    """What a lane did: for ModelStatistics and metrics. Times in seconds."""

    runs: int = 0
    rows: int = 0
    requests: int = 0
    failures: int = 0
    queued: float = 0.0
    computed: float = 0.0
    batches: dict[int, int] = field(default_factory=dict)
    last: float = 0.0


class ModelQueue:
    """One graph in onnxruntime.

    open: makes the session, again after it was put away to save memory. nbytes: what an open session holds, about.
    axes: the row axis of every input and output where rows go apart, else None: then every request runs alone.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        shelf: SessionCache,
        open_session: Callable[[], Session],
        outputs: Sequence[str],
        nbytes: int,
        max_rows: int = 1,
        observe: Callable[[float, float, int], None] | None = None,
    ):
        self.outputs = list(outputs)
        self.max_rows = max_rows
        self.axes: Mapping[str, int] | None = None
        self.nbytes = nbytes
        self.tally = QueueStats()
        self._scheduler, self._shelf, self._open = scheduler, shelf, open_session
        self._observe = observe
        self._lock = threading.Lock()
        self._expected = 0.0  # seconds per run, decaying mean
        self._running: dict[Stop, list[Ticket]] = {}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Outputs:
        """Wait in line and run; for threads. The current call's deadline and cancellation hold."""
        return self.submit(feeds, outputs).result()

    def submit(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Future[Outputs]:
        """Stand in line. Raises Expired, Cancelled, Unavailable."""
        names = tuple(self.outputs if outputs is None else outputs)
        lengths = {array.shape[0] if array.ndim else -1 for array in feeds.values()}
        rows = max(1, *lengths) if lengths else 1
        key: tuple[object, ...] | None = None
        if self.axes is not None and len(lengths) == 1 and 0 < rows <= self.max_rows and set(names) <= set(self.axes):
            key = (names, *((name, array.dtype.str, array.shape[1:]) for name, array in sorted(feeds.items())))
        return self._scheduler.submit(Ticket(self, feeds, names, rows, key, CALL.get(None)))

    def session(self) -> Session:
        """The session, opened if it is not."""
        return self._shelf.take(self, self._open)

    def expected(self, rows: int) -> float:
        """Seconds a run takes, as far as is known; 0 before the first."""
        return self._expected if rows <= self.max_rows else self._expected * rows / self.max_rows

    def doubt(self) -> None:
        """Somebody was refused by what is expected: believe it less, so that a single slow run is forgotten."""
        self._expected *= 0.8

    def part(self, name: str, array: Array, rows: slice) -> Array:
        """One ticket's rows of an output of a shared run."""
        assert self.axes is not None
        index = [slice(None)] * array.ndim
        index[self.axes[name]] = rows
        return array[tuple(index)]

    def unwanted(self, ticket: Ticket) -> None:
        """Nobody waits for a ticket: end its run if that holds for all that share it."""
        with self._lock:
            for stop, batch in self._running.items():
                if ticket in batch and all(t.done for t in batch):
                    stop()

    def execute(self, batch: list[Ticket]) -> None:
        """One run, on the thread of a slot."""
        begun = time.monotonic()
        wanted = []
        for ticket in batch:
            reason = ticket.stopped()
            if reason is not None:
                ticket.finish(None, reason)
            elif not ticket.done:
                wanted.append(ticket)
        if not wanted:
            return
        rows = sum(t.rows for t in wanted)
        for ticket in wanted:  # before anybody is answered, since the answer tells it
            if ticket.call is not None:
                fields = ticket.call.fields
                fields["queue_ms"] = fields.get("queue_ms", 0.0) + round(1e3 * (begun - ticket.queued), 3)  # type: ignore[operator]
                fields["batch_rows"] = rows
        stop = Stop()
        with self._lock:
            self._running[stop] = wanted
        if all(t.done for t in wanted):  # stopped in between
            stop()
        with self._shelf.pinned(self):
            try:
                run_batch(self, wanted, stop)
            except BaseException as error:  # the session could not be opened
                for ticket in wanted:
                    ticket.finish(None, error)
        with self._lock:
            del self._running[stop]
        self._count(wanted, begun, time.monotonic() - begun)

    def _count(self, batch: list[Ticket], begun: float, seconds: float) -> None:
        rows, tally = sum(t.rows for t in batch), self.tally
        waited = sum(begun - t.queued for t in batch)
        failed = sum(1 for t in batch if t.future.exception() is not None)
        if not failed:
            alone = seconds if rows <= self.max_rows else seconds * self.max_rows / rows
            self._expected = alone if not tally.runs else (1 - MEMORY) * self._expected + MEMORY * alone
        with self._lock:
            tally.runs += 1
            tally.rows += rows
            tally.requests += len(batch)
            tally.failures += failed
            tally.queued += waited
            tally.computed += seconds
            tally.batches[rows] = tally.batches.get(rows, 0) + 1
            tally.last = time.time()
        if self._observe is not None:
            self._observe(waited / len(batch), seconds, rows)


def separable(lane: ModelQueue, feeds: Mapping[str, Array], tolerance: float = 1e-5) -> bool:
    """Whether rows run together answer as rows run apart, within `tolerance` of the largest value. feeds: some rows."""
    axes = lane.axes
    if axes is None:
        return False
    names = [name for name in lane.outputs if name in axes]
    together = lane.session().run(feeds, names)
    count = len(next(iter(feeds.values())))
    for row in range(count):
        alone = lane.session().run({name: array[row : row + 1] for name, array in feeds.items()}, names)
        for name in names:
            a, b = lane.part(name, together[name], slice(row, row + 1)), alone[name]
            if a.shape != b.shape:
                return False
            if a.dtype.kind != "f":
                if not np.array_equal(a, b):
                    return False
                continue
            scale = float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b)))
            if not np.allclose(a, b, rtol=0, atol=tolerance * scale + 1e-30, equal_nan=True):
                return False
    return True
