"""Laws of compiling as bounded work: order, number, sharing, giving up, drain."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time

import pytest

from onnxplain.errors import Busy, Cancelled, Expired, Unavailable, UnsupportedModel
from onnxplain.interrupt import check_interrupt
from onnxplain.server.call import CALL, Call
from onnxplain.server.scheduling.compile_queue import IDLE, CompileQueue
from onnxplain.server.tokens import Caller

SOON = 5.0  # seconds: what would hang for ever is found by then


@pytest.fixture
def queue():
    made = CompileQueue(waiting=4, seconds=30.0, at_once=1)
    yield made
    made.close()
    made.join(SOON)


class Work:
    """A job of many steps that goes on until it is released. begun, over: how often it was."""

    def __init__(self, log=None, name=""):
        self.begun, self.over, self.release = threading.Semaphore(0), threading.Event(), threading.Event()
        self.count, self.log, self.name = 0, log if log is not None else [], name

    def __call__(self):
        self.count += 1
        self.log.append(self.name)
        self.begun.release()
        try:
            while not self.release.is_set():
                check_interrupt()
                time.sleep(0.001)
        finally:
            self.over.set()
        return self.name


def asked(queue, work, key=None, **more):
    return queue.submit(work if key is None else key, "it", work, **more)


def running(queue, work):
    future = asked(queue, work)
    assert work.begun.acquire(timeout=SOON)
    return future


def test_equal_requests_share_one_job_and_each_gets_its_result(queue):
    work = Work(name="graph")
    futures = [asked(queue, work) for _ in range(50)]
    work.release.set()
    assert [future.result(SOON) for future in futures] == ["graph"] * 50
    assert work.count == 1
    assert asked(queue, work).result(SOON) == "graph" and work.count == 2  # it keeps nothing


def test_jobs_run_in_order_and_never_more_than_may_at_once():
    for at_once in (1, 3):
        queue, log, going, most = CompileQueue(100, 30.0, at_once), [], [], []

        def work(n, log=log, going=going, most=most):
            log.append(n)
            going.append(n)
            most.append(len(going))
            time.sleep(0.005)
            going.remove(n)

        futures = [queue.submit(n, "it", lambda n=n, work=work: work(n)) for n in range(30)]
        for future in futures:
            future.result(SOON)
        assert max(most) <= at_once
        assert log == sorted(log) if at_once == 1 else sorted(log) == list(range(30))
        queue.close()
        queue.join(SOON)


def test_several_at_once_are_used_where_they_may():
    queue, meet = CompileQueue(8, 30.0, 3), threading.Barrier(3)
    futures = [queue.submit(n, "it", lambda: meet.wait(SOON)) for n in range(3)]
    assert sorted(future.result(SOON) for future in futures) == [0, 1, 2]
    queue.close()


def test_jobs_go_on_together_only_while_their_bytes_fit_and_one_alone_always_may():
    queue = CompileQueue(8, 30.0, 2, nbytes=10)
    one, two = Work(), Work()
    first = asked(queue, one, nbytes=50)
    second = asked(queue, two, nbytes=5)
    assert one.begun.acquire(timeout=SOON)
    assert not two.begun.acquire(timeout=0.1)
    one.release.set()
    assert two.begun.acquire(timeout=SOON)
    two.release.set()
    first.result(SOON), second.result(SOON)
    queue.close()


def of(queue, caller, work):
    """Asked by a caller with a name."""
    context = contextvars.copy_context()
    context.run(CALL.set, Call(caller=Caller(caller, frozenset())))
    return context.run(asked, queue, work)


def test_callers_take_turns_each_in_its_own_order():
    log, queue = [], CompileQueue(waiting=20, at_once=1)
    first = Work(log, "first")
    running(queue, first)
    jobs = [(caller, Work(log, f"{caller}{n}")) for caller, jobs in (("a", 4), ("b", 2), ("c", 1)) for n in range(jobs)]
    futures = [of(queue, caller, work) for caller, work in jobs]
    for _, work in jobs:
        work.release.set()
    first.release.set()
    for future in futures:
        future.result(SOON)
    queue.close()
    assert log == ["first", "a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_one_caller_takes_half_of_the_places_at_most(queue):
    work = Work()
    running(queue, work)
    waiting = [of(queue, "a", Work()) for _ in range(2)]
    with pytest.raises(Busy, match=r"2 recipes of a wait .* --compile-queue"):
        of(queue, "a", Work())
    waiting += [of(queue, "b", Work()) for _ in range(2)]
    with pytest.raises(Busy, match="4 recipes wait"):
        of(queue, "c", Work())
    for future in waiting:
        future.cancel()
    work.release.set()


def test_a_full_queue_says_so_at_once_and_when_to_come_back(queue):
    work = Work()
    running(queue, work)
    waiting = [asked(queue, Work()) for _ in range(4)]
    with pytest.raises(Busy, match="--compile-queue") as caught:
        asked(queue, Work())
    assert caught.value.retry > 0
    shared = asked(queue, work)  # who shares a job takes no place
    work.release.set()
    shared.result(SOON)
    for future in waiting:
        future.cancel()


def test_a_job_ends_within_a_step_when_the_last_who_waits_leaves(queue):
    work = Work()
    one, two = running(queue, work), asked(queue, work)
    one.cancel()
    assert not work.over.wait(0.05)
    two.cancel()
    assert work.over.wait(SOON)
    after = Work()
    after.release.set()
    asked(queue, after).result(SOON)


def test_a_stopped_call_leaves_with_its_reason(queue):
    work, call = Work(), Call()
    token = CALL.set(call)
    future = running(queue, work)
    CALL.reset(token)
    call.stop(Expired("too late"))
    with pytest.raises(Expired, match="too late"):
        future.result(SOON)
    assert work.over.wait(SOON)


def test_a_cancelled_task_leaves(queue):
    work = Work()

    async def main():
        task = asyncio.ensure_future(asyncio.wrap_future(asked(queue, work)))
        await asyncio.to_thread(work.begun.acquire, timeout=SOON)
        task.cancel()
        assert await asyncio.to_thread(work.over.wait, SOON)

    asyncio.run(main())


def test_a_job_that_nobody_waits_for_is_never_begun(queue):
    work, left, wanted = Work(), Work(), Work()
    running(queue, work)
    asked(queue, left).cancel()
    last = asked(queue, wanted)
    work.release.set()
    wanted.release.set()
    last.result(SOON)
    assert left.count == 0


def test_who_asks_after_a_job_was_given_up_gets_a_new_one(queue):
    work = Work(name="anew")
    running(queue, work).cancel()
    again = asked(queue, work)
    assert work.begun.acquire(timeout=SOON)
    work.release.set()
    assert again.result(SOON) == "anew" and work.count == 2


def test_a_job_has_so_many_seconds_and_no_more():
    queue, told = CompileQueue(4, 0.05, 1), []
    work = Work()
    future = asked(queue, work, failed=told.append)
    with pytest.raises(Expired, match="--max-compile-seconds"):
        future.result(SOON)
    assert [type(error) for error in told] == [Expired]
    queue.close()


def test_an_error_reaches_each_as_its_own_and_only_one_that_would_come_again_is_told(queue):
    told = []

    def fail():
        time.sleep(0.05)
        raise UnsupportedModel("no")

    futures = [queue.submit("bad", "it", fail, failed=told.append) for _ in range(3)]
    errors = [future.exception(SOON) for future in futures]
    assert [str(error) for error in errors] == ["no"] * 3 and len({id(error) for error in errors}) == 3
    assert len(told) == 1
    work = Work()
    running(queue, work).cancel()
    assert work.over.wait(SOON)
    given_up = queue.submit("left", "it", Work(), failed=told.append)
    given_up.cancel()
    assert len(told) == 1


def test_a_bug_in_one_job_ends_neither_the_thread_nor_the_next(queue):
    with pytest.raises(ZeroDivisionError):
        queue.submit("bug", "it", lambda: 1 // 0).result(SOON)
    assert queue.submit("fine", "it", lambda: 7).result(SOON) == 7


def test_closing_refuses_what_waits_at_once_and_interrupts_what_runs_when_its_grace_is_over():
    queue, work, waits = CompileQueue(4, 30.0, 1), Work(), Work()
    first, second = running(queue, work), asked(queue, waits)
    queue.close(0.2)
    with pytest.raises(Unavailable):
        second.result(0.1)
    with pytest.raises(Unavailable):
        asked(queue, Work())
    assert not first.done()
    with pytest.raises(Unavailable):
        first.result(SOON)
    assert work.over.is_set() and waits.count == 0
    queue.join(SOON)


def test_what_ends_within_the_grace_is_answered():
    queue, work = CompileQueue(4, 30.0, 1), Work(name="done")
    first = running(queue, work)
    queue.close(SOON)
    work.release.set()
    assert first.result(SOON) == "done"


def test_threads_that_have_nothing_to_do_end(monkeypatch):
    monkeypatch.setattr("onnxplain.server.scheduling.compile_queue.IDLE", 0.02)
    queue = CompileQueue(4, 30.0, 2)
    for _ in range(3):
        assert queue.submit("k", "it", lambda: 1).result(SOON) == 1
        threads = list(queue._threads)
        for thread in threads:
            thread.join(SOON)
            assert not thread.is_alive()


def test_cancelling_is_said_to_nobody_as_a_fault(queue):
    work, call = Work(), Call()
    token = CALL.set(call)
    future = asked(queue, work)
    CALL.reset(token)
    call.stop()
    with pytest.raises(Cancelled):
        future.result(SOON)


def test_a_thread_that_ends_its_job_after_the_queue_was_closed_ends_with_it(queue):
    work = Work()
    running(queue, work)
    queue.close(grace=SOON)
    work.release.set()
    begun = time.monotonic()
    queue.join(SOON)
    assert not queue._threads and time.monotonic() - begun < IDLE / 2


def test_what_stands_behind_a_job_that_nobody_wants_any_more_begins_at_once():
    queue = CompileQueue(waiting=4, seconds=30.0, at_once=2, nbytes=100)
    long, large, small = Work(), Work(), Work()
    running_now = asked(queue, long, nbytes=60)
    assert long.begun.acquire(timeout=SOON)
    left = asked(queue, large, nbytes=60)
    asked(queue, small, nbytes=10)
    time.sleep(0.1)  # the second thread waits for room by then
    left.cancel()
    assert small.begun.acquire(timeout=IDLE / 2)
    running_now.cancel()
    queue.close()
    queue.join(SOON)
