"""Laws of whose turn it is, on simulated runs: no thread, no clock but the simulation's."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from onnxplain.server.call import Call
from onnxplain.server.scheduling.fair_order import SHORT, URGENT_RUNS, FairOrder, is_short
from onnxplain.server.scheduling.ticket import Ticket
from onnxplain.server.tokens import DEFAULT_PRIORITY, PRIORITIES, Caller


class Graph:
    """A queue whose runs take `seconds`. known: from its past runs; guess: what is expected, if something else."""

    def __init__(self, seconds, known=True, max_rows=1, guess=None):
        self.seconds, self.known, self.max_rows, self.guess = seconds, known, max_rows, guess

    def expected(self, rows):
        return (self.seconds if self.guess is None else self.guess) if self.known else 0.0

    def usual(self, rows):
        return self.seconds if self.known else None


def ticket(graph, caller="", share=1.0, priority=DEFAULT_PRIORITY, at=0.0, rows=1, key=None, timeout=None):
    call = Call(caller=Caller(caller, frozenset(), share))
    call.ask_for_turn(priority, timeout)
    made = Ticket(graph, {}, (), rows, key, call)
    made.queued_at = at
    return made


class Simulation:
    """Some slots over a FairOrder. clients: each (make a ticket at a time, how many it keeps open)."""

    def __init__(self, slots=1):
        self.order, self.slots, self.now = FairOrder(), slots, 0.0
        self.served, self.waits, self.turns = {}, {}, []
        self.events, self.count = [], itertools.count()

    def at(self, when, what):
        heapq.heappush(self.events, (when, next(self.count), what))

    def client(self, name, make, open_=1, pause=0.0, start=0.0):
        """Keeps `open_` tickets in the house, each followed by the next `pause` seconds after its answer."""

        def send():
            made = make(self.now)
            made.queued_at, made.client, made.again = self.now, name, lambda: self.at(self.now + pause, send)
            self.order.put(made)

        for _ in range(open_):
            self.at(start, send)

    def run(self, seconds):
        going = 0
        while self.events and self.now < seconds:
            self.now, _, what = heapq.heappop(self.events)
            going += what() or 0
            while self.events and self.events[0][0] <= self.now:  # all that comes at this moment, then the turns
                going += heapq.heappop(self.events)[2]() or 0
            while going < self.slots and (batch := self.order.take()):
                going += 1
                self.begin(batch)
        return self

    def begin(self, batch):
        took = batch[0].queue.seconds
        self.turns.append([t.client for t in batch])
        for t in batch:
            self.waits.setdefault(t.client, []).append(self.now - t.queued_at)

        def end():
            self.order.finished(batch, took)
            rows = sum(t.rows for t in batch)
            for t in batch:
                self.served[t.client] = self.served.get(t.client, 0.0) + took * t.rows / rows
                t.again()
            return -1

        self.at(self.now + took, end)


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("shares", [(1, 1), (2, 1), (1, 2, 3), (5, 1, 0.5)])
def test_callers_that_always_have_work_get_the_time_of_the_slots_by_their_shares(shares, slots):
    rng, sim = random.Random(0), Simulation(slots)
    for n, share in enumerate(shares):
        graphs = [Graph(seconds) for seconds in (0.02 * (n + 1), 0.3 / (n + 1))]  # whatever the length of their runs
        sim.client(str(n), lambda now, n=n, s=share, g=graphs: ticket(rng.choice(g), str(n), s), open_=8 * (3 - n % 3))
    sim.run(600)
    total = sum(sim.served.values())
    for n, share in enumerate(shares):
        assert sim.served[str(n)] / total == pytest.approx(share / sum(shares), rel=0.1)


@pytest.mark.parametrize("guess", [0.0, 0.01, 3.0])
def test_shares_hold_whatever_was_expected_of_the_runs(guess):
    sim = Simulation()
    sim.client("a", lambda now: ticket(Graph(0.3, guess=guess), "a"), 8)
    sim.client("b", lambda now: ticket(Graph(0.1, guess=0.1), "b"), 8)
    sim.run(300)
    assert sim.served["a"] == pytest.approx(sim.served["b"], rel=0.1)


def test_one_callers_flood_delays_anothers_call_by_no_more_than_the_run_that_goes_on_and_one_more():
    sim = Simulation()
    sim.client("flood", lambda now: ticket(Graph(0.2), "flood"), open_=500)
    sim.client("light", lambda now: ticket(Graph(0.05), "light"), pause=1.0, start=3.0)
    sim.run(200)
    assert len(sim.waits["light"]) > 100 and max(sim.waits["light"]) <= 2 * 0.2 + 1e-9


def test_nobody_saves_up_turns_while_away():
    sim = Simulation()
    sim.client("steady", lambda now: ticket(Graph(0.1), "steady"), open_=4)
    sim.client("late", lambda now: ticket(Graph(0.1), "late"), open_=4, start=100.0)
    sim.run(110)
    assert sim.served["late"] == pytest.approx(5, abs=0.3)


def test_of_equal_callers_the_oldest_is_next():
    order, graph = FairOrder(), Graph(1.0)
    tickets = [ticket(graph) for _ in range(10)]
    for each in tickets:
        order.put(each)
    assert [order.take()[0] for _ in range(10)] == tickets


def test_more_urgent_tickets_go_first():
    order, graph = FairOrder(), Graph(1.0)
    for priority in (9, 1, 5, 1):
        order.put(ticket(graph, priority=priority))
    assert [order.take()[0].priority for _ in range(4)] == [1, 1, 5, 9]


def test_the_least_urgent_get_their_turns_in_a_flood_of_the_most_urgent():
    sim = Simulation()
    sim.client("urgent", lambda now: ticket(Graph(0.1), priority=PRIORITIES[0]), open_=100)
    sim.client("patient", lambda now: ticket(Graph(0.1), priority=PRIORITIES[-1]), start=0.01)
    sim.run(3000)
    turns = [turn[0] for turn in sim.turns]
    assert max(sim.waits["patient"]) < 0.1 * (100 + 1) * (URGENT_RUNS + 2)  # as if all had waited in line so long
    assert turns.count("urgent") > turns.count("patient") > 10


def test_a_callers_own_patient_ticket_waits_no_longer_than_those_before_it_and_urgent_runs_between():
    order, graph = FairOrder(), Graph(0.1)
    patient = ticket(graph, priority=PRIORITIES[-1])
    order.put(patient)
    turns = []
    for _ in range(URGENT_RUNS + 1):
        order.put(ticket(graph, priority=1))
        order.put(ticket(graph, priority=1))
        turns += order.take()
    assert turns.index(patient) == URGENT_RUNS


def test_what_may_share_a_run_goes_with_it_whoevers_and_however_urgent_and_pays_for_its_rows():
    order, graph, other = FairOrder(), Graph(1.0, max_rows=4), Graph(1.0, max_rows=4)
    key = ("y",)
    led = ticket(graph, "a", priority=1, key=key)
    mixed = [ticket(graph, "b", priority=9, key=key), ticket(graph, "c", key=key, rows=2)]
    apart = [ticket(graph, "d", key=("z",)), ticket(other, "e", key=key), ticket(graph, "f", key=key)]
    for each in (*mixed, *apart, led):
        order.put(each)
    batch = order.take()
    assert batch == [led, *mixed]
    order.finished(batch, 2.0)
    assert [each.charged for each in batch] == [0.5, 0.5, 1.0]
    assert set(order) == set(apart)


def test_a_run_is_short_by_the_runs_before_it_and_long_before_the_first():
    assert is_short(ticket(Graph(SHORT)))
    assert not is_short(ticket(Graph(1.01 * SHORT))) and not is_short(ticket(Graph(0.001, known=False)))


def test_the_lane_takes_short_runs_only_the_oldest_of_the_caller_whose_turn_it_is():
    order = FairOrder()
    long, new, short = ticket(Graph(1.0)), ticket(Graph(0.001, known=False)), ticket(Graph(0.001))
    for each in (long, new, short):
        order.put(each)
    assert order.take(short=True) == [short] and order.take(short=True) == []
    assert order.take() == [long]


def test_a_ticket_that_waited_as_long_as_it_may_is_taken_out_and_those_taken_out_cost_nothing():
    order, graph = FairOrder(), Graph(1.0)
    stays, late = ticket(graph, "a"), ticket(graph, "b", timeout=0.5)
    order.put(stays)
    order.put(late)
    assert order.next_overdue() == late.expires and order.overdue(late.expires - 0.1) == []
    assert order.overdue(late.expires) == [late] and order.next_overdue() is None
    assert not order.remove(late) and order.remove(stays) and not len(order)
    assert all(not flow.tickets and not flow.virtual for flow in order._flows.values())


def test_callers_that_are_gone_are_forgotten():
    order, graph = FairOrder(), Graph(0.1)
    for n in range(5000):
        order.put(ticket(graph, str(n)))
        order.finished(order.take(), 0.1)
    assert len(order._flows) <= 1001
