"""A bound on the time of calls into libraries that have none of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from onnxplain.errors import Unavailable

Answer = TypeVar("Answer")
AT_ONCE = 16  # threads, those included that nobody waits for any more
_threads = threading.BoundedSemaphore(AT_ONCE)


def within(seconds: float, call: Callable[[], Answer], where: str) -> Answer:
    """What `call` returns or raises. Raises Unavailable when that takes longer; where: begins the sentence.

    A call that is late goes on in its thread, since nothing can end it; the process may exit meanwhile.
    """
    if not _threads.acquire(timeout=seconds):
        raise Unavailable(f"{where}: {AT_ONCE} calls to registries are stuck already. It is asked again.")
    answers: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))
        finally:
            _threads.release()

    threading.Thread(target=run, name="registry", daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise Unavailable(f"{where}: no answer within {seconds:g} s. It is asked again.") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]  # None only where `call` returned it
