"""Laws of reading messages where memory is short: in line, one at least, and who is slow or gone holds up nobody."""

from __future__ import annotations

import asyncio

import pytest

from onnxplain.errors import Busy
from onnxplain.server import memory_pressure, reading_turns
from onnxplain.server.memory_pressure import MemoryPressure
from onnxplain.server.reading_turns import COPIES, ReadingTurns

BOUND, LARGEST = 1000, 100


@pytest.fixture(autouse=True)
def measured_each_time(monkeypatch):
    monkeypatch.setattr(memory_pressure, "LOOK", -1.0)


def turns(held: list[int]) -> ReadingTurns:
    return ReadingTurns(MemoryPressure(BOUND, lambda: None, lambda: held[0]), LARGEST)


class Message:
    """One that is read until it is released. began: it is being read."""

    def __init__(self, turns: ReadingTurns, log: list[int], number: int = 0):
        self.began, self.over = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._read(turns, log, number))

    async def _read(self, turns: ReadingTurns, log: list[int], number: int) -> None:
        async with turns.turn():
            log.append(number)
            self.began.set()
            await self.over.wait()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("held, together", [(0, 3), (BOUND - 2 * COPIES * LARGEST, 2), (BOUND, 1), (10 * BOUND, 1)])
def test_as_many_are_read_as_would_fit_if_each_were_as_large_as_may_be_and_one_always(held, together, monkeypatch):
    monkeypatch.setattr(reading_turns, "HOLDS", 60.0)

    async def scene() -> None:
        log: list[int] = []
        one = turns([held])
        messages = [Message(one, log, n) for n in range(6)]
        for n in range(6):
            await settled()
            assert log == list(range(min(6, n + together)))  # in the order they came
            messages[n].over.set()
        await asyncio.gather(*(message.task for message in messages))
        assert one._reading == 0 and not one._waiting

    asyncio.run(scene())


def test_what_is_expected_counts_as_held():
    async def scene() -> None:
        pressure, log = MemoryPressure(BOUND, lambda: None, lambda: 0), []
        one = ReadingTurns(pressure, LARGEST)
        with pressure.expecting(BOUND):
            messages = [Message(one, log, n) for n in range(2)]
            await settled()
            assert log == [0]
            for message in messages:
                message.over.set()
            await asyncio.gather(*(message.task for message in messages))
        assert pressure.expected == 0

    asyncio.run(scene())


def test_a_message_that_comes_slowly_loses_its_place_and_is_read_all_the_same(monkeypatch):
    monkeypatch.setattr(reading_turns, "HOLDS", 0.01)

    async def scene() -> None:
        log: list[int] = []
        one = turns([BOUND])
        slow, quick = Message(one, log, 1), Message(one, log, 2)
        await asyncio.wait_for(quick.began.wait(), 5)
        quick.over.set()
        slow.over.set()
        await asyncio.gather(slow.task, quick.task)
        assert one._reading == 0

    asyncio.run(scene())


def test_who_waits_too_long_is_told_when_to_come_back_and_who_leaves_takes_no_place(monkeypatch):
    monkeypatch.setattr(reading_turns, "HOLDS", 60.0)
    monkeypatch.setattr(reading_turns, "WAIT", 0.05)

    async def scene() -> None:
        log: list[int] = []
        one = turns([BOUND])
        first, late = Message(one, log, 1), Message(one, log, 2)
        with pytest.raises(Busy, match="memory-budget") as caught:
            await late.task
        assert caught.value.retry > 0
        monkeypatch.setattr(reading_turns, "WAIT", 5.0)
        gone, last = Message(one, log, 3), Message(one, log, 4)
        await settled()
        first.over.set()
        while not gone.began.is_set() and not one._waiting[0].done() and len(one._waiting) > 1:
            await asyncio.sleep(0)
        gone.task.cancel()  # as its place is given to it
        await asyncio.wait_for(last.began.wait(), 5)
        last.over.set()
        await asyncio.gather(first.task, last.task)
        assert one._reading == 0 and not one._waiting

    asyncio.run(scene())


def test_without_a_bound_nobody_waits():
    async def scene() -> None:
        log: list[int] = []
        messages = [Message(ReadingTurns(None, LARGEST), log, n) for n in range(5)]
        await settled()
        assert log == list(range(5))
        for message in messages:
            message.over.set()
        await asyncio.gather(*(message.task for message in messages))

    asyncio.run(scene())
