"""Work of many steps that can be given up: whoever starts it says when, the engine asks at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Check = Callable[[], None]
_CHECKS: ContextVar[tuple[tuple[object, Check], ...]] = ContextVar("interrupts", default=())  # outermost first


class _Interrupted(BaseException):
    """On its way to the `interruptible` whose check raised; no `except Exception` on the way takes it for its own."""

    def __init__(self, owner: object, reason: Exception):
        super().__init__(str(reason))
        self.owner, self.reason = owner, reason


@contextmanager
def interruptible(check: Check) -> Iterator[None]:
    """While inside, in this thread or task: `check` is called at every step, and what it raises ends the work.

    It comes out here, whatever the work catches. check: quick; it returns to go on. Checks outside of this one hold on.
    """
    owner = object()
    token = _CHECKS.set((*_CHECKS.get(), (owner, check)))
    try:
        yield
    except _Interrupted as interrupted:
        if interrupted.owner is not owner:
            raise
        raise interrupted.reason from None
    finally:
        _CHECKS.reset(token)


def check_interrupt() -> None:
    """Ask whether to go on. The engine calls it before each node, each rewrite and each session."""
    for owner, check in _CHECKS.get():
        try:
            check()
        except Exception as reason:
            raise _Interrupted(owner, reason) from None
