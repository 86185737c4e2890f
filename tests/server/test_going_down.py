"""The end of a process that served."""

from __future__ import annotations

import subprocess
import sys

import pytest

WORK = """
import asyncio, time
from onnxplain.server.going_down import run

async def main():
    await asyncio.to_thread(time.sleep, 0)
    {more}

run(main())
print("and then?")
"""


@pytest.mark.parametrize(
    "more, goes_on",
    [("", True), ("asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)", False)],
    ids=["threads that wait for work", "a thread that works"],
)
def test_only_threads_that_work_are_given_up(more, goes_on):
    done = subprocess.run(
        [sys.executable, "-c", WORK.format(more=more)], capture_output=True, text=True, timeout=30, check=True
    )
    assert (done.stdout == "and then?\n") == goes_on
