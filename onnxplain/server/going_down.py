"""The end of a server, in bounded time: open calls, what is closed behind them, and the process itself."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from onnxplain.server.open_calls import OpenCalls
from onnxplain.server.runtime_folder import remove_runtime_folder
from onnxplain.server.telemetry.logs import event, flush

T = TypeVar("T")
LOG = logging.getLogger("onnxplain.server")
REST = 4.0  # seconds at most from the end of --drain-timeout to the end of the process
TELL = 0.5  # of it, for the last replies and statuses to be written
CLOSE = 2.0  # of it, for sessions, worker processes and threads
THREADS = 0.5  # of it, for threads that compute what nobody waits for


async def drain(server: grpc.aio.Server, calls: OpenCalls, seconds: float) -> None:
    """Refuse new calls and connections, give open calls `seconds`, then end them and close all connections."""
    calls.drain()
    refusing = asyncio.ensure_future(server.stop(seconds + TELL))
    if not await calls.until_none(seconds):
        calls.cut()
        await calls.until_none(TELL)
    await within(2 * TELL, "the connections", server.stop(TELL), refusing)


async def within(seconds: float, what: str, *steps: Awaitable[object]) -> None:
    """Take steps of an end side by side; what fails or does not end in time is logged and left."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    done, late = await asyncio.wait(tasks, timeout=seconds)
    for task in done:
        if not task.cancelled() and task.exception() is not None:
            LOG.error("an end failed", exc_info=task.exception(), extra={"fields": {"of": what}})
    if late:
        event(LOG, logging.WARNING, "not closed in time", what=what, seconds=seconds)
        for task in late:
            task.cancel()


def force_end(seconds: float) -> None:
    """End the process after so many seconds, whatever it does then."""

    def end() -> None:
        event(LOG, logging.ERROR, "not ended in time", seconds=seconds)
        _exit()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def run(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, except that no thread that still works holds the process when `main` has ended well."""
    runner, threads = asyncio.Runner(), ThreadPoolExecutor(thread_name_prefix="asyncio")
    runner.get_loop().set_default_executor(threads)
    try:
        result = runner.run(main)
        threads.shutdown(wait=False)  # those without work end now
        _leave()
    finally:
        runner.close()
    return result


def _leave() -> None:
    """Wait a moment for threads that Python would wait for without end; if some go on, end the process here."""
    until = time.monotonic() + THREADS
    while busy := [t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]:
        if time.monotonic() > until:
            event(LOG, logging.INFO, "work was given up", threads=", ".join(sorted({t.name for t in busy})))
            _exit()
        time.sleep(0.01)


def _exit() -> None:
    """End the process without waiting for anything but what was logged."""
    remove_runtime_folder()
    flush()
    os._exit(0)
