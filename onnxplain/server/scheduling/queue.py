"""One graph and those who wait for it: looks like a Session to an explainer, shares runs between requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np

from onnxplain.errors import OnnxplainError, OutOfMemory
from onnxplain.runtime.session import Array, Session, Stop
from onnxplain.server.call import CALL
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.scheduling.ticket import Answer, Outputs, RunReport, RunResult, Ticket

NEWEST = 0.2  # weight of the newest run in the expected time
_REPORTS: ContextVar[list[RunReport]] = ContextVar("reports")  # unset where nobody collects them


@dataclass
class QueueStats:
    """What a queue did: for ModelStatistics and metrics. Times in seconds; last: seconds since 1970."""

    runs: int = 0
    rows: int = 0
    requests: int = 0
    failures: int = 0
    queued: float = 0.0
    computed: float = 0.0
    batches: dict[int, int] = field(default_factory=dict)
    last: float = 0.0


@contextmanager
def collected_reports() -> Iterator[list[RunReport]]:
    """While inside: the report of every `ModelQueue.run` of this thread, appended to what is yielded.

    An explainer runs its graphs by itself and returns an Explanation; whoever called it learns here how they went.
    """
    reports: list[RunReport] = []
    token = _REPORTS.set(reports)
    try:
        yield reports
    finally:
        _REPORTS.reset(token)


class ModelQueue:
    """One graph in onnxruntime.

    open_session: makes the session, again after it was closed to save memory. nbytes: what an open session holds,
    about. axes: the row axis of every input and output where rows go apart, else None: then every request runs alone.
    observe: told of each run its mean seconds in the queue, its seconds in onnxruntime, its rows and its requests.
    check: given the session when it is first opened; what it raises is what those who wait for the session get.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        session_cache: SessionCache,
        open_session: Callable[[], Session],
        outputs: Sequence[str],
        nbytes: int,
        max_rows: int = 1,
        observe: Callable[[float, float, int, int], None] | None = None,
    ):
        self.outputs = list(outputs)
        self.max_rows = max_rows
        self.axes: Mapping[str, int] | None = None
        self.nbytes = nbytes
        self.stats = QueueStats()
        self.check: Callable[[Session], None] | None = None
        self._scheduler, self._session_cache, self._open_session = scheduler, session_cache, open_session
        self._observe = observe
        self._lock = threading.Lock()
        self._expected = 0.0  # seconds per run, decaying mean
        self._usual: float | None = None  # the same without doubts
        self._running: dict[Stop, list[Ticket]] = {}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Outputs:
        """Wait and run; for threads. The current call's deadline and cancellation hold."""
        result = self.submit(feeds, outputs).result()
        reports = _REPORTS.get(None)
        if reports is not None:
            reports.append(result.report)
        return result.outputs

    def submit(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Future[RunResult]:
        """Enqueue a run. Raises Expired, Cancelled, Unavailable."""
        names = tuple(self.outputs if outputs is None else outputs)
        lengths = {array.shape[0] if array.ndim else -1 for array in feeds.values()}
        rows = max(1, *lengths) if lengths else 1
        key: tuple[object, ...] | None = None
        if self.axes is not None and len(lengths) == 1 and 0 < rows <= self.max_rows and set(names) <= set(self.axes):
            key = (names, *((name, array.dtype.str, array.shape[1:]) for name, array in sorted(feeds.items())))
        return self._scheduler.submit(Ticket(self, feeds, names, rows, key, CALL.get(None)))

    def session(self) -> Session:
        """The session, opened if it is not."""
        return self._session_cache.get(self, self._open)

    def _open(self) -> Session:
        session = self._open_session()
        if self.check is not None:
            self.check(session)
            self.check = None
        return session

    def expected(self, rows: int) -> float:
        """Seconds a run takes, as far as is known; 0 before the first."""
        return self._expected if rows <= self.max_rows else self._expected * rows / self.max_rows

    def usual(self, rows: int) -> float | None:
        """Seconds a run took lately, whatever was doubted; None before the first."""
        if self._usual is None or rows <= self.max_rows:
            return self._usual
        return self._usual * rows / self.max_rows

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

    def execute(self, batch: list[Ticket]) -> list[Answer]:
        """One run, on the thread of a slot, counted. Call what is returned to answer the tickets."""
        begun = time.monotonic()
        wanted = []
        for ticket in batch:
            reason = ticket.stopped()
            if reason is not None:
                ticket.fail(reason)
            elif not ticket.done:
                wanted.append(ticket)
        if not wanted:
            return []
        stop = Stop()
        with self._lock:
            self._running[stop] = wanted
        try:
            if all(t.done for t in wanted):  # stopped in between
                stop()
            with self._session_cache.pinned(self):
                answers = self._run_batch(wanted, stop, begun, sum(t.rows for t in wanted))
        except BaseException as error:  # the session could not be opened
            answers = [Answer(ticket, error) for ticket in wanted]
        finally:
            with self._lock:
                del self._running[stop]
        self._count(wanted, answers, begun, time.monotonic() - begun)
        return answers

    def _run_batch(self, batch: Sequence[Ticket], stop: Stop, begun: float, batch_rows: int) -> list[Answer]:
        """Run tickets together, each gets its rows; on failure apart, so that one's trouble is not the others'.

        begun: monotonic time. batch_rows: of the run that was meant, which is what is reported.
        """
        reports = [RunReport(begun - ticket.queued_at, batch_rows) for ticket in batch]
        if len(batch) == 1:
            (ticket,) = batch
            try:
                return [Answer(ticket, RunResult(self.session().run(ticket.feeds, ticket.outputs, stop), reports[0]))]
            except OnnxplainError as error:
                return [Answer(ticket, ticket.stopped() or error)]
            except BaseException as error:
                return [Answer(ticket, error)]
        feeds = {name: np.concatenate([ticket.feeds[name] for ticket in batch]) for name in batch[0].feeds}
        try:
            outputs = self.session().run(feeds, batch[0].outputs, stop)
        except OutOfMemory:
            half = len(batch) // 2
            parts = (batch[:half], batch[half:])
            return [answer for part in parts for answer in self._run_batch(part, stop, begun, batch_rows)]
        except OnnxplainError:
            apart = [[ticket] for ticket in batch if not ticket.done]
            return [answer for part in apart for answer in self._run_batch(part, stop, begun, batch_rows)]
        except BaseException as error:
            return [Answer(ticket, error) for ticket in batch]
        answers, start = [], 0
        for ticket, report in zip(batch, reports, strict=True):
            rows = slice(start, start + ticket.rows)
            start += ticket.rows
            parts_of = {name: self.part(name, array, rows) for name, array in outputs.items()}
            answers.append(Answer(ticket, RunResult(parts_of, report)))
        return answers

    def _count(self, batch: list[Ticket], answers: list[Answer], begun: float, seconds: float) -> None:
        rows, stats = sum(t.rows for t in batch), self.stats
        waited = sum(begun - t.queued_at for t in batch)
        failed = len(batch) - sum(1 for answer in answers if not answer.failed and not answer.ticket.done)
        if not failed:
            alone = seconds if rows <= self.max_rows else seconds * self.max_rows / rows
            self._expected = alone if not stats.runs else (1 - NEWEST) * self._expected + NEWEST * alone
            self._usual = alone if self._usual is None else (1 - NEWEST) * self._usual + NEWEST * alone
        with self._lock:
            stats.runs += 1
            stats.rows += rows
            stats.requests += len(batch)
            stats.failures += failed
            stats.queued += waited
            stats.computed += seconds
            stats.batches[rows] = stats.batches.get(rows, 0) + 1
            stats.last = time.time()
        if self._observe is not None:
            self._observe(waited / len(batch), seconds, rows, len(batch))
