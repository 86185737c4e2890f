"""Who runs when: a few slots around onnxruntime, and a lane beside them for short runs."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future

from onnxplain.errors import Expired, Unavailable
from onnxplain.server.scheduling.fair_order import SHORT, FairOrder, is_short
from onnxplain.server.scheduling.ticket import Answer, RunResult, Ticket

LOG = logging.getLogger("onnxplain.server")
LOOK = 3600.0  # seconds after which it is looked for overdue tickets in any case
GONE = "the server is shutting down; try another one."


class Scheduler:
    """`slots` threads take tickets in fair order, and with each what may share its run.

    One thread more, the lane, takes short runs only, and only while every slot is busy with a long one: work of some
    milliseconds never waits for work of seconds, and long work never loses a slot to it.
    """

    def __init__(self, slots: int = 1):
        self._lock = threading.Lock()
        self._for_slots, self._for_lane = threading.Condition(self._lock), threading.Condition(self._lock)
        self._for_watch = threading.Condition(self._lock)
        self._order = FairOrder()
        self._closed = False
        self._slots = max(1, slots)
        self._going: dict[int, tuple[float, bool]] = {}  # slot -> monotonic time its run began, whether that is short
        self._lane_sleeps = False  # until it is told
        self._watch: threading.Thread | None = None
        names: dict[int | None, str] = {None: "lane", **{n: f"slot-{n}" for n in range(self._slots)}}
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), name=f"onnxplain-{name}", daemon=True)
            for slot, name in names.items()
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
        with self._lock:
            if self._closed:
                raise Unavailable(GONE)
            self._order.put(ticket)
            self._for_slots.notify()
            self._tell_lane()
            if ticket.expires is not None:
                self._start_watch()
        if call is not None:
            ticket.forget = call.on_stop(lambda: self._give_up(ticket))
            if ticket.done:
                ticket.forget()
        return ticket.future

    def waiting_rows(self) -> int:
        """Rows that wait, over all queues."""
        with self._lock:
            return sum(ticket.rows for ticket in self._order)

    def close(self) -> None:
        """Refuse what waits, let what runs end."""
        with self._lock:
            self._closed = True
            left = self._order.clear()
            for condition in (self._for_slots, self._for_lane, self._for_watch):
                condition.notify_all()
        for ticket in left:
            ticket.fail(Unavailable(GONE))
        for thread in self._threads:
            thread.join(timeout=5)

    def _give_up(self, ticket: Ticket) -> None:
        """The call of a ticket was stopped: leave the queue, or end the run if nobody else wants it."""
        with self._lock:
            self._order.remove(ticket)
        ticket.fail(ticket.stopped() or Expired("stopped"))
        ticket.queue.unwanted(ticket)

    def _work(self, slot: int | None) -> None:
        """Take runs and do them. slot: its number, None: the lane."""
        while True:
            batch = self._next(slot)
            if not batch:
                return
            begun = time.monotonic()
            try:
                answers = batch[0].queue.execute(batch)
            except Exception as error:  # a slot must not be lost
                LOG.exception("a run failed outside of onnxruntime")
                answers = [Answer(ticket, error) for ticket in batch]
            with self._lock:
                self._order.finished(batch, time.monotonic() - begun)
                if slot is not None:
                    del self._going[slot]
            for answer in answers:
                answer.give()
                del answer
            del batch, answers  # else a model that was replaced stays in memory until the next run

    def _next(self, slot: int | None) -> list[Ticket]:
        """The tickets of the next run; empty at the end."""
        with self._lock:
            while not self._closed:
                if slot is None:
                    batch = self._order.take(short=True) if self._lane_is_open() else []
                    if batch:
                        return batch
                    self._lane_sleeps = not self._order
                    self._for_lane.wait(SHORT if self._order else None)  # a run thought short may turn out long
                    self._lane_sleeps = False
                else:
                    batch = self._order.take()
                    if batch:
                        self._going[slot] = time.monotonic(), is_short(batch[0])
                        if self._order:
                            self._tell_lane()
                        return batch
                    self._for_slots.wait()
            return []

    def _tell_lane(self) -> None:
        """There is work while every slot is busy: the lane sees to it, now or when a run turns out long."""
        if (self._lane_sleeps and len(self._going) == self._slots) or self._lane_is_open():
            self._for_lane.notify()

    def _lane_is_open(self) -> bool:
        """Whether every slot is busy with a run that is long, or takes longer than was thought."""
        if len(self._going) < self._slots:
            return False
        now = time.monotonic()
        return all(not short or now - begun > SHORT for begun, short in self._going.values())

    # How long a ticket may wait

    def _start_watch(self) -> None:
        if self._watch is None:
            self._watch = threading.Thread(target=self._look_for_overdue, name="onnxplain-overdue", daemon=True)
            self._watch.start()
        self._for_watch.notify()

    def _look_for_overdue(self) -> None:
        """End tickets that have waited as long as they may, when it is time."""
        while not self._closed:
            with self._lock:
                late, until = self._order.overdue(time.monotonic()), self._order.next_overdue()
                if not late and not self._closed:
                    # A client may say ten thousand years, of which a lock's clock knows nothing.
                    self._for_watch.wait(None if until is None else min(LOOK, max(0.0, until - time.monotonic())))
            for ticket in late:
                waited = time.monotonic() - ticket.queued_at
                ticket.fail(
                    Expired(
                        f"it waited {waited:.3f} s for its turn, which is as long as its timeout lets it; give more."
                    )
                )
