"""Laws of memory that is measured: full is said at once, what can be given back is, small things go through."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from onnxplain.errors import Busy
from onnxplain.server import memory_pressure
from onnxplain.server.memory_ledger import MemoryLedger
from onnxplain.server.memory_pressure import COPIES, SOFT, MemoryPressure

BOUND = 1000


class Process:
    """Holds so many bytes; relief leaves `after`."""

    def __init__(self, holds: int, after: int = 0):
        self.holds, self.after, self.reliefs = holds, after, 0
        self.relieved = threading.Event()

    def relieve(self) -> None:
        self.reliefs += 1
        self.holds = self.after
        self.relieved.set()

    def pressure(self) -> MemoryPressure:
        return MemoryPressure(BOUND, self.relieve, lambda: self.holds)


@pytest.fixture(autouse=True)
def measured_each_time(monkeypatch):
    monkeypatch.setattr(memory_pressure, "LOOK", -1.0)


def test_below_the_bound_nothing_is_refused_and_nothing_relieved():
    process = Process(100)
    process.pressure().require("a request", int(SOFT * BOUND - 100) // COPIES)
    assert not process.reliefs


def test_near_the_bound_work_goes_on_while_memory_is_given_back():
    process = Process(int(SOFT * BOUND) + 1)
    process.pressure().require("a request")
    assert process.relieved.wait(5)


def test_at_the_bound_work_is_refused_until_memory_was_given_back():
    process = Process(BOUND + 1, after=10)
    pressure = process.pressure()
    with pytest.raises(Busy, match="memory-budget") as caught:
        pressure.require("a request", 10)
    assert caught.value.retry > 0
    assert process.relieved.wait(5)
    pressure.require("a request", 10)


def test_many_that_ask_relieve_once():
    process = Process(BOUND + 1, after=BOUND + 1)
    pressure = process.pressure()
    for _ in range(100):
        with pytest.raises(Busy):
            pressure.require("a request")
    assert process.relieved.wait(5) and process.reliefs == 1


def test_relief_that_does_not_help_comes_ever_more_rarely_until_the_process_is_full(monkeypatch):
    monkeypatch.setattr(memory_pressure, "PAUSE", 0.01)
    process = Process(int(SOFT * BOUND) + 1, after=int(SOFT * BOUND) + 1)
    pressure, until = process.pressure(), time.monotonic() + 0.5
    while time.monotonic() < until:
        pressure.require("a request")
        time.sleep(0.001)
    assert 2 <= process.reliefs <= 7  # doubling; each after its pause would be 50
    before = process.reliefs
    process.holds = BOUND + 1
    until = time.monotonic() + 5
    while process.reliefs == before and time.monotonic() < until:
        time.sleep(0.01)
        with suppress(Busy):
            pressure.require("a request")
    assert process.reliefs > before


def test_a_ledger_takes_nothing_in_while_the_process_is_full_and_sends_what_it_has():
    process, refused = Process(BOUND + 1), []
    ledger = MemoryLedger(10**6, refused=lambda: refused.append(1), pressure=process.pressure())
    process.after = BOUND + 1
    for kind in ("requests", "chunks"):
        with pytest.raises(Busy):
            ledger.booking(kind, "it", 10)
    ledger.booking("replies", "the reply", 10).release()
    assert len(refused) == 2 and ledger.nbytes == 0


def test_where_the_system_says_nothing_nothing_is_refused():
    MemoryPressure(BOUND, lambda: None, lambda: None).require("a request", 10)


def test_what_was_let_in_counts_until_it_is_given_back():
    process, message = Process(100), BOUND // (2 * COPIES)
    pressure = process.pressure()
    ledger = MemoryLedger(10**6, pressure=pressure)
    booking = ledger.booking("requests", "it", message)
    assert pressure.expected == COPIES * message
    with pytest.raises(Busy, match=f"up to {COPIES * message} more"):  # though nothing of it is there yet
        ledger.booking("requests", "another", message)
    booking.release()
    assert pressure.expected == 0
    ledger.booking("requests", "another", message).release()
    ledger.booking("replies", "a reply", message)
    assert pressure.expected == 0  # it is there


def test_room_for_a_session_is_made_before_it_and_refused_only_while_others_work():
    process = Process(BOUND - 10, after=100)
    pressure = process.pressure()
    pressure.make_room("a session", 500)
    assert process.reliefs == 1
    process.holds = process.after = BOUND - 10
    pressure.make_room("a session", 500)  # alone: waiting would not help it
    with pressure.expecting(1), pytest.raises(Busy, match="a session takes 500 bytes") as caught:
        pressure.make_room("a session", 500)
    assert caught.value.retry > 0
