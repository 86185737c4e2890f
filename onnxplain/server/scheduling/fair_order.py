"""Which run is next: callers by their shares, priorities that starve nobody, companions that may share the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnxplain.server.scheduling.ticket import Ticket

SHORT = 0.025  # seconds of a run that need not wait for longer ones
URGENT_RUNS = 4  # that overtake somebody less urgent, before a turn goes by shares alone
FLOWS = 1000  # callers of whom it is remembered what they had, though nothing of theirs is here


@dataclass
class _Flow:
    """What one caller had. virtual: seconds of runs by its share; tickets: waiting or in a run."""

    virtual: float
    tickets: int = 0


class FairOrder:
    """Tickets that wait. Not for several threads: the scheduler's lock is around it.

    A turn goes to the most urgent priority, after URGENT_RUNS such turns in a row to any; of these to the caller that
    had the least seconds of runs by its share; of its tickets to the oldest. So a caller that always has work gets its
    share of the seconds whatever others send; one that comes anew begins where the others are, without savings; and the
    oldest ticket of a caller waits for at most URGENT_RUNS + 1 turns for each turn that the shares give others first.
    What may share the run goes with it, whoever's it is, and is charged for its rows.
    """

    def __init__(self) -> None:
        self._tickets: dict[Ticket, None] = {}  # oldest first
        self._flows: dict[str, _Flow] = {}
        self._clock = 0.0  # where the flow of the newest run stood when it began
        self._urgent_runs = 0

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)

    def __len__(self) -> int:
        return len(self._tickets)

    def put(self, ticket: Ticket) -> None:
        """Let a ticket wait."""
        flow = self._flows.get(ticket.caller)
        if flow is None:
            self._forget_idle()
            flow = self._flows[ticket.caller] = _Flow(self._clock)
        if not flow.tickets:
            flow.virtual = max(flow.virtual, self._clock)
        flow.tickets += 1
        self._tickets[ticket] = None

    def remove(self, ticket: Ticket) -> bool:
        """Take a ticket out that nobody wants any more; whether it waited."""
        if ticket not in self._tickets:
            return False
        del self._tickets[ticket]
        self._flows[ticket.caller].tickets -= 1
        return True

    def take(self, short: bool = False) -> list[Ticket]:
        """The tickets of the next run, empty where there is none. short: only of runs that are known to be short."""
        eligible = [ticket for ticket in self._tickets if not short or is_short(ticket)]
        if not eligible:
            return []
        urgent = min(ticket.priority for ticket in eligible)
        if any(ticket.priority > urgent for ticket in eligible):
            self._urgent_runs = (self._urgent_runs + 1) % (URGENT_RUNS + 1)
            if self._urgent_runs:
                eligible = [ticket for ticket in eligible if ticket.priority == urgent]
        first = min(eligible, key=lambda ticket: self._flows[ticket.caller].virtual)  # of equal ones the oldest
        self._clock = max(self._clock, self._flows[first.caller].virtual)
        batch = self._with_companions(first)
        self._charge(batch, first.queue.expected(sum(ticket.rows for ticket in batch)))
        for ticket in batch:
            del self._tickets[ticket]
        return batch

    def finished(self, batch: list[Ticket], seconds: float) -> None:
        """A run took so long: what was charged for it is put right."""
        for ticket in batch:
            self._flows[ticket.caller].virtual -= ticket.charged / ticket.share
        self._charge(batch, seconds)
        for ticket in batch:
            self._flows[ticket.caller].tickets -= 1

    def overdue(self, now: float) -> list[Ticket]:
        """Those that have waited as long as they may, taken out."""
        late = [ticket for ticket in self._tickets if ticket.expires is not None and ticket.expires <= now]
        for ticket in late:
            self.remove(ticket)
        return late

    def next_overdue(self) -> float | None:
        """When the next will have waited as long as it may, monotonic time; None: none will."""
        return min((ticket.expires for ticket in self._tickets if ticket.expires is not None), default=None)

    def clear(self) -> list[Ticket]:
        """All that wait, taken out."""
        tickets = list(self._tickets)
        for ticket in tickets:
            self.remove(ticket)
        return tickets

    def _with_companions(self, first: Ticket) -> list[Ticket]:
        batch, rows, most = [first], first.rows, first.queue.max_rows
        if first.key is None:
            return batch
        for ticket in self._tickets:
            if rows >= most:
                break
            fits = ticket.queue is first.queue and ticket.key == first.key and rows + ticket.rows <= most
            if fits and ticket is not first:
                batch.append(ticket)
                rows += ticket.rows
        return batch

    def _charge(self, batch: list[Ticket], seconds: float) -> None:
        rows = sum(ticket.rows for ticket in batch)
        for ticket in batch:
            ticket.charged = seconds * ticket.rows / rows
            self._flows[ticket.caller].virtual += ticket.charged / ticket.share

    def _forget_idle(self) -> None:
        if len(self._flows) >= FLOWS:
            self._flows = {caller: flow for caller, flow in self._flows.items() if flow.tickets}


def is_short(ticket: Ticket) -> bool:
    """Whether a ticket's run will be short, by the runs of its graph before. Before the first it counts as long."""
    usual = ticket.queue.usual(ticket.rows)
    return usual is not None and usual <= SHORT
