"""A run that somebody waits for, how it went, and what the scheduler asks of the queue it belongs to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from onnxplain.errors import OnnxplainError
from onnxplain.runtime.session import Array
from onnxplain.server.call import Call
from onnxplain.server.tokens import DEFAULT_PRIORITY

Outputs = dict[str, Array]


@dataclass(frozen=True)
class RunReport:
    """How a run went. queue_seconds: it waited; batch_rows: rows of the whole run, other requests' among them."""

    queue_seconds: float = 0.0
    batch_rows: int = 0

    def then(self, later: RunReport) -> RunReport:
        """Two runs of one request: the times add up, the batch is the later one's."""
        return RunReport(self.queue_seconds + later.queue_seconds, later.batch_rows)


class RunResult(NamedTuple):
    """What a run returns."""

    outputs: Outputs
    report: RunReport


class TicketQueue(Protocol):
    """One graph's queue, as the scheduler sees it."""

    max_rows: int  # of one run

    def expected(self, rows: int) -> float:
        """Seconds a run takes, as far as is known."""
        ...

    def usual(self, rows: int) -> float | None:
        """Seconds a run took lately, whatever was doubted; None before the first."""
        ...

    def doubt(self) -> None:
        """Somebody was refused by what is expected."""
        ...

    def execute(self, batch: list[Ticket]) -> list[Answer]:
        """One run, on the thread of a slot; tickets that it does not answer are answered already."""
        ...

    def unwanted(self, ticket: Ticket) -> None:
        """Nobody waits for a ticket any more."""
        ...


@dataclass(eq=False)  # told apart by being another one, not by their arrays
class Ticket:
    """One run somebody waits for. rows: how many along axis 0. key: tickets with the same key may share a run.

    queued_at: monotonic time; expires: until then it may wait. forget: takes its callback off the call. caller, share,
    priority: the call's, the least urgent priority having the highest number. charged: seconds its caller has paid.
    """

    queue: TicketQueue
    feeds: Mapping[str, Array]
    outputs: tuple[str, ...]
    rows: int
    key: tuple[object, ...] | None
    call: Call | None
    future: Future[RunResult] = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)
    done: bool = False
    forget: Callable[[], None] | None = None
    caller: str = ""
    share: float = 1.0
    priority: int = DEFAULT_PRIORITY
    expires: float | None = None
    charged: float = 0.0

    def __post_init__(self) -> None:
        if self.call is not None:
            self.caller, self.share, self.priority = self.call.caller.name, self.call.caller.share, self.call.priority
            if self.call.queue_seconds is not None:
                self.expires = self.queued_at + self.call.queue_seconds
        self.future.set_running_or_notify_cancel()  # so that a waiter who is cancelled does not end it: `finish` does

    def succeed(self, result: RunResult) -> None:
        """Answer with what the run returned, unless it was answered before."""
        if self._end():
            with suppress(InvalidStateError):  # answered by another thread just now
                self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Answer with an error, unless it was answered before."""
        if self._end():
            with suppress(InvalidStateError):
                self.future.set_exception(error)

    def stopped(self) -> OnnxplainError | None:
        """Why nobody waits any more, if so."""
        if self.call is None:
            return None
        try:
            self.call.check()
        except OnnxplainError as error:
            return error
        return None

    def _end(self) -> bool:
        """Whether this is its first answer; whoever waits may be gone."""
        if self.done:
            return False
        self.done = True
        if self.forget is not None:
            self.forget()
        return True


@dataclass(frozen=True)
class Answer:
    """What a ticket is answered with, not given yet: the slot does its own accounts first, and then only waits.

    Whoever is told wants the interpreter at once; a slot that went on would keep it from him.
    """

    ticket: Ticket
    outcome: RunResult | BaseException

    @property
    def failed(self) -> bool:
        """Whether it is an error."""
        return isinstance(self.outcome, BaseException)

    def give(self) -> None:
        """Answer the ticket."""
        if isinstance(self.outcome, BaseException):
            self.ticket.fail(self.outcome)
        else:
            self.ticket.succeed(self.outcome)
