"""Messages on their way in: how large one is, is known when it is there. So few are read at a time when it matters."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from onnxplain.errors import Busy
from onnxplain.server.memory_pressure import RETRY, MemoryPressure

COPIES = 3  # of a message while it is read: in gRPC's pieces, in one piece, parsed
HOLDS = 0.1  # seconds for which a message keeps its place: one that comes slowly takes memory slowly, and is measured
WAIT = 5.0  # seconds at most until a message may be read


class ReadingTurns:
    """As many messages are read at a time as would fit if each were as large as may be; one always is.

    pressure: None: any number. largest: bytes of a message. For the event loop's thread.
    """

    def __init__(self, pressure: MemoryPressure | None, largest: int):
        self._pressure, self._largest = pressure, largest
        self._reading = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """While inside, one message is read. Raises Busy where others take too long."""
        pressure = self._pressure
        if pressure is None:
            yield
            return
        if self._waiting or not self._fits(pressure):
            await self._place(pressure)
        else:
            self._reading += 1
        holds = True

        def leave() -> None:
            nonlocal holds
            if holds:
                holds = False
                self._leave(pressure)

        timer = asyncio.get_running_loop().call_later(HOLDS, leave)
        try:
            yield
        finally:
            timer.cancel()
            leave()

    def _fits(self, pressure: MemoryPressure) -> bool:
        """Whether one more may be read."""
        if not self._reading:
            return True
        return pressure.resident + pressure.expected + COPIES * self._largest * (self._reading + 1) <= pressure.bound

    async def _place(self, pressure: MemoryPressure) -> None:
        """Wait in line. Raises Busy."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(WAIT):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():  # it was given just now, and nobody takes it
                self._leave(pressure)
            with suppress(ValueError):
                self._waiting.remove(place)
            if not isinstance(error, TimeoutError):
                raise
            raise Busy(
                f"this server holds {pressure.resident} of its {pressure.bound} bytes (--memory-budget) and reads "
                "other messages. Try again shortly.",
                retry=RETRY,
            ) from None

    def _leave(self, pressure: MemoryPressure) -> None:
        """A place is free: let those who are first in line read."""
        self._reading -= 1
        while self._waiting and self._fits(pressure):
            place = self._waiting.popleft()
            if not place.done():
                self._reading += 1
                place.set_result(None)
