"""Compiling as work like any other: in turn, bounded, shared by equal requests, given up when nobody waits for it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from onnxplain.errors import Busy, Cancelled, Expired, OnnxplainError, Unavailable
from onnxplain.interrupt import interruptible
from onnxplain.machine import cpus
from onnxplain.server.call import CALL
from onnxplain.server.memory_pressure import MemoryPressure

T = TypeVar("T")
IDLE = 5.0  # seconds after which a thread without work ends
NEWEST = 0.2  # weight of the newest job in the expected time
CPUS_PER_JOB = 4  # a job is Python for the most part: more at a time would take each other's turns, and the calls'
CALLERS = 1000  # of whom it is remembered when they had a turn
DRAINING = "this server is going down and compiles nothing more. Try again: another one may answer."


@dataclass(eq=False)  # told apart by being another one
class _Job:
    """Something to be made once. waiters: futures of those who wait. begun: monotonic time, None while it waits.

    caller: who asked first, "" where nobody has a name.
    """

    key: Hashable
    what: str
    work: Callable[[], Any]
    nbytes: int
    failed: Callable[[OnnxplainError], None] | None
    caller: str
    waiters: list[Future[Any]] = field(default_factory=list)
    begun: float | None = None


class CompileQueue:
    """Makes compiled graphs, and what costs as much, on threads of its own; nobody's thread waits for them.

    Callers take turns, each one's jobs in order. waiting: jobs that wait at most, half of them of one caller where
    callers have names. seconds: the longest a job may take. at_once: how many go on at a time, 0: by the
    CPUs. nbytes: of memory; jobs go on together while their estimates fit, one alone always may. pressure: is told what
    they take.
    """

    def __init__(
        self,
        waiting: int = 32,
        seconds: float = 60.0,
        at_once: int = 0,
        nbytes: float = math.inf,
        pressure: MemoryPressure | None = None,
    ):
        self._expecting = nullcontext if pressure is None else pressure.expecting
        self.waiting, self.seconds, self.nbytes = waiting, seconds, nbytes
        self.at_once = at_once or max(1, cpus() // CPUS_PER_JOB)
        self._changed = threading.Condition()
        self._jobs: dict[Hashable, _Job] = {}  # waiting and running, those that nobody wants any more apart
        self._queue: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._turns: dict[str, float] = {}  # -> monotonic time of the caller's newest turn
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._ends = math.inf  # monotonic time: what runs then is interrupted
        self._expected = 1.0  # seconds a job takes

    def submit(
        self,
        key: Hashable,
        what: str,
        work: Callable[[], T],
        nbytes: int = 0,
        failed: Callable[[OnnxplainError], None] | None = None,
    ) -> Future[T]:
        """Have `work` done once for all who ask with an equal key; the future is this caller's own.

        Cancel it, or stop the current call, to leave; the job ends within a step when the last one left. what: the job
        in words. nbytes: it takes, about. failed: told of an error that would come again. Raises Busy, Unavailable.
        """
        future: Future[T] = Future()
        call = CALL.get(None)
        caller = "" if call is None else call.caller.name
        with self._changed:
            if self._ends < math.inf:
                raise Unavailable(DRAINING)
            job = self._jobs.get(key)
            if job is None:
                self._require_place(caller)
                job = self._jobs[key] = _Job(key, what, work, nbytes, failed, caller)
                self._queue.append(job)
            job.waiters.append(future)
            self._wake()
        future.add_done_callback(lambda done: self._left(job, done))
        if call is not None:
            forget = call.on_stop(lambda: _fail(future, _reason(call.check) or Cancelled("the caller went away.")))
            future.add_done_callback(lambda done: forget())
        return future

    def close(self, grace: float = 0.0) -> None:
        """Refuse what waits and what comes; interrupt what still goes on after `grace` seconds. Returns at once."""
        with self._changed:
            self._ends = min(self._ends, time.monotonic() + grace)
            refused = [future for job in self._queue for future in job.waiters]
            for job in self._queue:
                del self._jobs[job.key]
            self._queue.clear()
            self._changed.notify_all()
        for future in refused:
            _fail(future, Unavailable(DRAINING))

    def join(self, seconds: float) -> None:
        """Wait for the threads to end, which they do after `close`."""
        until = time.monotonic() + seconds
        with self._changed:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    # Inside

    def _require_place(self, caller: str) -> None:
        """Raise Busy where no more jobs may wait, of all or of one caller that has a name."""
        retry, again = max(0.1, min(30.0, self._expected)), "try again shortly, or ask for one that is compiled."
        if len(self._queue) >= self.waiting:
            raise Busy(
                f"{len(self._queue)} recipes wait to be compiled, which is as many as may (--compile-queue); {again}",
                retry=retry,
            )
        own = sum(1 for job in self._queue if job.caller == caller)
        if caller and own >= max(1, self.waiting // 2):
            raise Busy(
                f"{own} recipes of {caller} wait to be compiled, which is as many as may of one caller, half of "
                f"--compile-queue; {again}",
                retry=retry,
            )

    def _wake(self) -> None:
        """Let a thread look for work; a new one where all are busy and another may be."""
        if len(self._queue) > self._idle and len(self._threads) < self.at_once:
            thread = threading.Thread(target=self._serve, name="onnxplain-compile", daemon=True)
            self._threads.add(thread)
            thread.start()
        self._changed.notify()

    def _left(self, job: _Job, future: Future[Any]) -> None:
        """Somebody waits no more. A job without anybody leaves the queue, or is interrupted at its next step."""
        with self._changed:
            if future in job.waiters:
                job.waiters.remove(future)
            if job.waiters or self._jobs.get(job.key) is not job:
                return
            del self._jobs[job.key]
            if job in self._queue:
                self._queue.remove(job)
                self._changed.notify_all()  # what stood behind it may fit beside those that run

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            result, error = None, None
            try:
                with self._expecting(job.nbytes), interruptible(partial(self._check, job)):
                    result = job.work()
            except BaseException as problem:  # a thread must not be lost, nor a waiter forgotten
                error = problem
            self._finish(job, result, error)
            del job, result, error  # this thread may wait long for the next

    def _next(self) -> _Job | None:
        """The next job in turn, as soon as it fits beside those that run; None: this thread may end."""
        with self._changed:
            woken = True
            while (job := self._in_turn()) is None or not self._fits(job):
                if self._ends < math.inf or not (woken or self._queue):
                    self._threads.discard(threading.current_thread())
                    return None
                self._idle += 1
                woken = self._changed.wait(IDLE)
                self._idle -= 1
            self._queue.remove(job)
            job.begun = time.monotonic()
            self._running.append(job)
            self._turns.pop(job.caller, None)  # the newest last
            self._turns[job.caller] = job.begun
            if len(self._turns) > CALLERS:
                del self._turns[next(iter(self._turns))]
            return job

    def _in_turn(self) -> _Job | None:
        """The oldest job of whoever had no turn for longest."""
        return min(self._queue, key=lambda job: self._turns.get(job.caller, -math.inf), default=None)

    def _fits(self, job: _Job) -> bool:
        return not self._running or sum(other.nbytes for other in self._running) + job.nbytes <= self.nbytes

    def _check(self, job: _Job) -> None:
        """Between two steps of a job: raise why it should end, if so."""
        now = time.monotonic()
        assert job.begun is not None
        if not job.waiters:
            raise Cancelled("nobody waits for it any more.")
        if now > self._ends:
            raise Unavailable(DRAINING)
        if now - job.begun > self.seconds:
            raise Expired(
                f"{job.what} took more than the {self.seconds:g} s that this server gives it (--max-compile-seconds). "
                "Its operator can have recipes compiled while the model loads ([serving] recipes)."
            )

    def _finish(self, job: _Job, result: Any, error: BaseException | None) -> None:
        with self._changed:
            assert job.begun is not None
            self._expected += NEWEST * (time.monotonic() - job.begun - self._expected)
            self._running.remove(job)
            if self._jobs.get(job.key) is job:
                del self._jobs[job.key]
            waiters, job.waiters = job.waiters, []
            self._changed.notify_all()
        if isinstance(error, OnnxplainError) and job.failed is not None and not isinstance(error, LEFT_OPEN):
            job.failed(error)
        for future in waiters:
            if error is None:
                with suppress(InvalidStateError):  # it left just now
                    future.set_result(result)
            else:
                _fail(future, error.again() if isinstance(error, OnnxplainError) else error)


LEFT_OPEN = (Cancelled, Unavailable, Busy)  # says nothing of the next time


def _fail(future: Future[Any], error: BaseException) -> None:
    with suppress(InvalidStateError):  # answered by another thread just now
        future.set_exception(error)


def _reason(check: Callable[[], None]) -> OnnxplainError | None:
    try:
        check()
    except OnnxplainError as error:
        return error
    return None
