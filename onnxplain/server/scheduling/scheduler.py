"""Who runs when: a few slots around onnxruntime, requests of one graph in one batch where their rows cannot mix."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxplain.errors import Expired, OnnxplainError, OutOfMemory, Unavailable
from onnxplain.runtime.session import Array, Stop
from onnxplain.server.call import Call

if TYPE_CHECKING:
    from onnxplain.server.scheduling.queue import ModelQueue

LOG = logging.getLogger("onnxplain.server")
Outputs = dict[str, Array]


@dataclass(eq=False)  # told apart by being another one, not by their arrays
class Ticket:
    """One run somebody waits for. rows: how many along axis 0. key: tickets with the same key may share a run."""

    lane: ModelQueue
    feeds: Mapping[str, Array]
    outputs: tuple[str, ...]
    rows: int
    key: tuple[object, ...] | None
    call: Call | None
    future: Future[Outputs] = field(default_factory=Future)
    queued: float = field(default_factory=time.monotonic)
    done: bool = False
    forget: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # so that a waiter who is cancelled does not end it: `finish` does

    def finish(self, found: Outputs | None, error: BaseException | None = None) -> None:
        """Answer once; whoever waits may be gone."""
        if self.done:
            return
        self.done = True
        if self.forget is not None:
            self.forget()
        with suppress(InvalidStateError):  # answered by another thread just now
            if error is not None:
                self.future.set_exception(error)
            else:
                assert found is not None
                self.future.set_result(found)

    def stopped(self) -> OnnxplainError | None:
        """Why nobody waits any more, if so."""
        if self.call is None:
            return None
        try:
            self.call.check()
        except OnnxplainError as error:
            return error
        return None


class Scheduler:
    """`slots` threads take the oldest ticket of all lanes, and with it what may share its run."""

    def __init__(self, slots: int = 1):
        self._changed = threading.Condition()
        self._waiting: dict[ModelQueue, deque[Ticket]] = {}
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"onnxplain-slot-{n}", daemon=True) for n in range(max(1, slots))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, ticket: Ticket) -> Future[Outputs]:
        """Put a ticket in line. Its future raises Expired or Cancelled when its call is stopped, wherever it is."""
        call = ticket.call
        if call is not None:
            call.check()
            left = None if call.deadline is None else call.deadline - time.monotonic()
            expected = ticket.lane.expected(ticket.rows)
            if left is not None and expected > left:
                ticket.lane.doubt()
                raise Expired(
                    f"the deadline is {max(left, 0):.2f} s away and a run takes about {expected:.2f} s: give more."
                )
        with self._changed:
            if self._closed:
                raise Unavailable("the server is shutting down; try another one.")
            self._waiting.setdefault(ticket.lane, deque()).append(ticket)
            self._changed.notify()
        if call is not None:
            ticket.forget = call.on_stop(lambda: self._give_up(ticket))
            if ticket.done:
                ticket.forget()
        return ticket.future

    def waiting_rows(self) -> int:
        """Rows in line, over all lanes."""
        with self._changed:
            return sum(ticket.rows for line in self._waiting.values() for ticket in line)

    def close(self) -> None:
        """Refuse what waits, let what runs end."""
        with self._changed:
            self._closed = True
            left = [ticket for line in self._waiting.values() for ticket in line]
            self._waiting.clear()
            self._changed.notify_all()
        for ticket in left:
            ticket.finish(None, Unavailable("the server is shutting down; try another one."))
        for thread in self._threads:
            thread.join(timeout=5)

    def _give_up(self, ticket: Ticket) -> None:
        """The call of a ticket was stopped: leave the line, or end the run if nobody else wants it."""
        with self._changed:
            line = self._waiting.get(ticket.lane)
            if line is not None and ticket in line:
                line.remove(ticket)
                if not line:
                    del self._waiting[ticket.lane]
        ticket.finish(None, ticket.stopped() or Expired("stopped"))
        ticket.lane.unwanted(ticket)

    def _work(self) -> None:
        while True:
            batch = self._next()
            if not batch:
                return
            try:
                batch[0].lane.execute(batch)
            except Exception as error:  # a slot must not be lost
                LOG.exception("a run failed outside of onnxruntime")
                for ticket in batch:
                    ticket.finish(None, error)

    def _next(self) -> list[Ticket]:
        """The tickets of the next run; empty at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            lane = min(self._waiting, key=lambda lane: self._waiting[lane][0].queued)
            line = self._waiting[lane]
            first = line.popleft()
            batch, rows = [first], first.rows
            if first.key is not None:
                for ticket in list(line):
                    if ticket.key == first.key and rows + ticket.rows <= lane.max_rows:
                        line.remove(ticket)
                        batch.append(ticket)
                        rows += ticket.rows
                        if rows == lane.max_rows:
                            break
            if not line:
                del self._waiting[lane]
            return batch


def run_batch(lane: ModelQueue, batch: Sequence[Ticket], stop: Stop) -> None:
    """Run tickets together and give each its rows; on failure apart, so that one's trouble is not the others'."""
    if len(batch) == 1:
        (ticket,) = batch
        try:
            ticket.finish(lane.session().run(ticket.feeds, ticket.outputs, stop))
        except OnnxplainError as error:
            ticket.finish(None, ticket.stopped() or error)
        except BaseException as error:
            ticket.finish(None, error)
        return
    feeds = {name: np.concatenate([ticket.feeds[name] for ticket in batch]) for name in batch[0].feeds}
    try:
        found = lane.session().run(feeds, batch[0].outputs, stop)
    except OutOfMemory:
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            run_batch(lane, part, stop)
        return
    except OnnxplainError:
        for ticket in batch:
            if not ticket.done:
                run_batch(lane, [ticket], stop)
        return
    except BaseException as error:
        for ticket in batch:
            ticket.finish(None, error)
        return
    start = 0
    for ticket in batch:
        rows = slice(start, start + ticket.rows)
        start += ticket.rows
        ticket.finish({name: lane.part(name, array, rows) for name, array in found.items()})
