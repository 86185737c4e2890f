"""Who runs when: a few slots around onnxruntime, requests of one graph in one batch where their rows cannot mix."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future

from onnxplain.errors import Expired, Unavailable
from onnxplain.server.scheduling.ticket import RunResult, Ticket, TicketQueue

LOG = logging.getLogger("onnxplain.server")


class Scheduler:
    """`slots` threads take the oldest ticket of all queues, and with it what may share its run."""

    def __init__(self, slots: int = 1):
        self._changed = threading.Condition()
        self._waiting: dict[TicketQueue, deque[Ticket]] = {}
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"onnxplain-slot-{n}", daemon=True) for n in range(max(1, slots))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, ticket: Ticket) -> Future[RunResult]:
        """Put a ticket into its queue. Its future raises Expired or Cancelled when its call is stopped."""
        call = ticket.call
        if call is not None:
            call.check()
            left = None if call.deadline is None else call.deadline - time.monotonic()
            expected = ticket.queue.expected(ticket.rows)
            if left is not None and expected > left:
                ticket.queue.doubt()
                raise Expired(
                    f"the deadline is {max(left, 0):.2f} s away and a run takes about {expected:.2f} s: give more."
                )
        with self._changed:
            if self._closed:
                raise Unavailable("the server is shutting down; try another one.")
            self._waiting.setdefault(ticket.queue, deque()).append(ticket)
            self._changed.notify()
        if call is not None:
            ticket.forget = call.on_stop(lambda: self._give_up(ticket))
            if ticket.done:
                ticket.forget()
        return ticket.future

    def waiting_rows(self) -> int:
        """Rows that wait, over all queues."""
        with self._changed:
            return sum(ticket.rows for tickets in self._waiting.values() for ticket in tickets)

    def close(self) -> None:
        """Refuse what waits, let what runs end."""
        with self._changed:
            self._closed = True
            left = [ticket for tickets in self._waiting.values() for ticket in tickets]
            self._waiting.clear()
            self._changed.notify_all()
        for ticket in left:
            ticket.fail(Unavailable("the server is shutting down; try another one."))
        for thread in self._threads:
            thread.join(timeout=5)

    def _give_up(self, ticket: Ticket) -> None:
        """The call of a ticket was stopped: leave the queue, or end the run if nobody else wants it."""
        with self._changed:
            tickets = self._waiting.get(ticket.queue)
            if tickets is not None and ticket in tickets:
                tickets.remove(ticket)
                if not tickets:
                    del self._waiting[ticket.queue]
        ticket.fail(ticket.stopped() or Expired("stopped"))
        ticket.queue.unwanted(ticket)

    def _work(self) -> None:
        while True:
            batch = self._next()
            if not batch:
                return
            try:
                batch[0].queue.execute(batch)
            except Exception as error:  # a slot must not be lost
                LOG.exception("a run failed outside of onnxruntime")
                for ticket in batch:
                    ticket.fail(error)

    def _next(self) -> list[Ticket]:
        """The tickets of the next run; empty at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            queue = min(self._waiting, key=lambda queue: self._waiting[queue][0].queued_at)
            tickets = self._waiting[queue]
            first = tickets.popleft()
            batch, rows = [first], first.rows
            if first.key is not None:
                for ticket in list(tickets):
                    if ticket.key == first.key and rows + ticket.rows <= queue.max_rows:
                        tickets.remove(ticket)
                        batch.append(ticket)
                        rows += ticket.rows
                        if rows == queue.max_rows:
                            break
            if not tickets:
                del self._waiting[queue]
            return batch
