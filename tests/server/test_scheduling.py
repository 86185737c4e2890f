"""Laws of waiting, sharing runs, stopping and admission, on sessions that only pretend."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from onnxplain.errors import Busy, Cancelled, Expired, InputError, OutOfMemory, Unavailable
from onnxplain.server.call import CALL, Call
from onnxplain.server.models.probe import rows_are_independent
from onnxplain.server.row_rate import RowRate
from onnxplain.server.scheduling.admission import AdmissionControl
from onnxplain.server.scheduling.queue import ModelQueue, collected_reports
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.server.tokens import Caller

AXES = {"x": 0, "y": 0}


class Doubler:
    """y = 2 x, slowly. runs: rows of each run. bad: a value that fails the run. room: rows that fit in memory."""

    def __init__(self, seconds=0.0, bad=None, room=10**9):
        self.seconds, self.bad, self.room = seconds, bad, room
        self.runs, self.stopped = [], 0
        self.outputs = ["y"]

    def run(self, feeds, outputs=None, stop=None):
        x = feeds["x"]
        self.runs.append(len(x))
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            if stop is not None and stop.options.terminate:
                self.stopped += 1
                raise InputError("terminated")
            time.sleep(0.002)
        if len(x) > self.room:
            raise OutOfMemory("no room")
        if self.bad is not None and (x == self.bad).any():
            raise InputError("a bad value")
        return {"y": 2 * x}


@pytest.fixture
def scheduler():
    made = Scheduler(1)
    yield made
    made.close()


def queue_of(scheduler, session, max_rows=8, axes=AXES):
    queue = ModelQueue(scheduler, SessionCache(10**9), lambda: session, ["y"], 1, max_rows)
    queue.axes = axes
    return queue


def rows(value, count=1):
    return {"x": np.full((count, 3), float(value), np.float32)}


def together(queue, feeds):
    """Submit everything while one slow run holds the slot, then collect."""
    hold = queue.submit({"x": np.zeros((1, 2), np.float32)})  # another shape: shares with nobody
    futures = [queue.submit(f) for f in feeds]
    hold.result(10)
    return futures


def test_requests_that_wait_share_one_run_and_get_their_own_rows(scheduler):
    session = Doubler(0.1)
    futures = together(queue_of(scheduler, session), [rows(n, 1 + n % 2) for n in range(5)])
    for n, future in enumerate(futures):
        assert np.array_equal(future.result(10).outputs["y"], 2 * rows(n, 1 + n % 2)["x"])
    assert session.runs == [1, 7]


def test_a_run_has_at_most_max_rows_and_a_larger_request_runs_alone(scheduler):
    session = Doubler(0.1)
    futures = together(queue_of(scheduler, session, max_rows=4), [rows(1, 3), rows(2, 3), rows(3, 9), rows(4)])
    assert [len(f.result(10).outputs["y"]) for f in futures] == [3, 3, 9, 1]
    assert sorted(session.runs[1:]) == [3, 4, 9]


def test_rows_that_cannot_go_apart_never_share(scheduler):
    session = Doubler(0.05)
    futures = together(queue_of(scheduler, session, axes=None), [rows(n) for n in range(4)])
    assert all(np.array_equal(f.result(10).outputs["y"], 2 * rows(n)["x"]) for n, f in enumerate(futures))
    assert session.runs == [1] * 5


def test_one_bad_member_fails_alone(scheduler):
    futures = together(queue_of(scheduler, Doubler(0.05, bad=2.0)), [rows(n) for n in range(4)])
    for n, future in enumerate(futures):
        if n == 2:
            with pytest.raises(InputError, match="bad value"):
                future.result(10)
        else:
            assert np.array_equal(future.result(10).outputs["y"], 2 * rows(n)["x"])


def test_a_batch_without_memory_is_halved_until_it_fits(scheduler):
    session = Doubler(0.02, room=2)
    futures = together(queue_of(scheduler, session), [rows(n) for n in range(8)])
    assert all(np.array_equal(f.result(10).outputs["y"], 2 * rows(n)["x"]) for n, f in enumerate(futures))
    assert max(session.runs) == 8 and session.runs.count(2) == 4


def test_the_oldest_request_of_all_queues_is_next(scheduler):
    order, queues = [], []
    for name in "ab":
        session = Doubler(0.03)  # more than is short: those may go before
        session.run = lambda feeds, outputs, stop, n=name, inner=session.run: (order.append(n), inner(feeds))[1]
        queues.append(queue_of(scheduler, session, max_rows=1))
    blocker = queue_of(scheduler, Doubler(0.1))
    hold = blocker.submit(rows(0))
    futures = [queues[n % 2].submit(rows(n)) for n in range(6)]
    hold.result(10)
    [f.result(10) for f in futures]
    assert order == list("ababab")


def test_a_stopped_call_leaves_the_queue_and_does_not_run(scheduler):
    session = Doubler(0.1)
    queue, call = queue_of(scheduler, session, max_rows=1), Call()
    hold = queue.submit(rows(0))
    token = CALL.set(call)
    waiting = queue.submit(rows(1))
    CALL.reset(token)
    call.stop()
    with pytest.raises(Cancelled):
        waiting.result(0.05)
    hold.result(10)
    queue.submit(rows(2)).result(10)
    assert session.runs == [1, 1] and scheduler.waiting_rows() == 0


def test_a_stopped_call_ends_its_run_unless_somebody_else_shares_it(scheduler):
    session = Doubler(0.4)
    queue, one, two = queue_of(scheduler, session), Call(), Call()
    hold = queue.submit({"x": np.zeros((1, 2), np.float32)})
    futures = []
    for call in (one, two):
        token = CALL.set(call)
        futures.append(queue.submit(rows(1)))
        CALL.reset(token)
    hold.result(10)
    time.sleep(0.1)
    one.stop(Expired("late"))
    with pytest.raises(Expired):
        futures[0].result(0.05)
    assert futures[1].result(10).outputs["y"].sum() == 6 and session.stopped == 0
    token = CALL.set(call := Call())
    alone = queue.submit(rows(1))
    CALL.reset(token)
    time.sleep(0.1)
    begun = time.monotonic()
    call.stop()
    with pytest.raises(Cancelled):
        alone.result(1)
    queue.submit({"x": np.zeros((0, 3), np.float32)})
    while not session.stopped and time.monotonic() < begun + 5:
        time.sleep(0.01)
    assert session.stopped == 1


def test_a_deadline_that_cannot_be_met_is_said_at_once_and_forgotten_in_time(scheduler):
    queue = queue_of(scheduler, Doubler(0.3))
    queue.submit(rows(0)).result(10)
    token = CALL.set(Call(deadline=time.monotonic() + 0.1))
    begun = time.monotonic()
    with pytest.raises(Expired, match="deadline"):
        queue.submit(rows(1))
    assert time.monotonic() - begun < 0.1
    for _ in range(20):  # a single slow run must not refuse for ever
        CALL.set(Call(deadline=time.monotonic() + 0.1))
        try:
            queue.submit(rows(1))
            break
        except Expired:
            continue
    else:
        pytest.fail("still refused")
    CALL.reset(token)


def test_closing_refuses_what_waits(scheduler):
    queue = queue_of(scheduler, Doubler(0.1), max_rows=1)
    futures = [queue.submit(rows(n)) for n in range(3)]
    time.sleep(0.02)
    scheduler.close()
    assert futures[0].result(10).outputs["y"].sum() == 0
    for future in futures[1:]:
        with pytest.raises(Unavailable):
            future.result(1)
    with pytest.raises(Unavailable):
        queue.submit(rows(9))


def test_many_threads_get_their_own_answers():
    scheduler = Scheduler(3)
    session = Doubler()
    queue = queue_of(scheduler, session)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: queue.run(rows(n))["y"], range(500)))
    assert all(np.array_equal(y, 2 * rows(n)["x"]) for n, y in enumerate(found))
    assert queue.stats.requests == 500 and queue.stats.rows == 500 and queue.stats.failures == 0
    scheduler.close()


def test_a_probe_finds_rows_that_mix(scheduler):
    class Mixes(Doubler):
        def run(self, feeds, outputs=None, stop=None):
            return {"y": feeds["x"] - feeds["x"].mean(0, keepdims=True)}

    assert rows_are_independent(queue_of(scheduler, Doubler()), {"x": np.random.default_rng(0).random((3, 4))})
    assert not rows_are_independent(queue_of(scheduler, Mixes()), {"x": np.random.default_rng(0).random((3, 4))})


def test_admission_counts_what_is_inside_and_says_full_at_once():
    admission = AdmissionControl(4, 1000, "m", Metrics())
    with admission.admit(3, 10):
        with pytest.raises(Busy, match="3 of 4 rows"), admission.admit(2, 10):
            pass
        with admission.admit(1, 10):
            assert admission.rows == 4
        with pytest.raises(Busy), admission.admit(1, 10**6):
            pass
    assert admission.rows == admission.nbytes == 0
    with pytest.raises(Busy, match="in one request"), admission.admit(5, 1):
        pass


def test_the_session_cache_closes_the_session_not_used_for_longest_but_none_that_runs(scheduler):
    session_cache, made = SessionCache(25), []

    def queue(name):
        found = ModelQueue(scheduler, session_cache, lambda: (made.append(name), Doubler())[1], ["y"], 10)
        found.axes = AXES
        return found

    a, b, c = map(queue, "abc")
    a.session(), b.session(), a.session()
    assert session_cache.nbytes == 20
    c.session()  # b goes
    a.session()
    assert made == ["a", "b", "c"] and session_cache.nbytes == 20
    b.session()  # c goes
    assert made[-1] == "b"
    with session_cache.pinned(a), session_cache.pinned(b):
        with pytest.raises(Busy):
            c.session()
        assert session_cache.nbytes == 20
    session_cache.drop(a)
    assert session_cache.nbytes == 10


def test_a_session_is_made_once_however_many_ask(scheduler):
    made = []

    def slow():
        time.sleep(0.1)
        made.append(1)
        return Doubler()

    queue = ModelQueue(scheduler, SessionCache(10**9), slow, ["y"], 1)
    threads = [threading.Thread(target=queue.session) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert made == [1]


def test_a_run_comes_back_with_how_it_went(scheduler):
    """Seconds in the queue and rows of the shared run, to each who shared it; of several runs to whoever made them."""
    queue = queue_of(scheduler, Doubler(0.1))
    results = [future.result(10) for future in together(queue, [rows(n) for n in range(3)])]
    assert [result.report.batch_rows for result in results] == [3, 3, 3]
    assert all(0.05 < result.report.queue_seconds < 5 for result in results)
    with collected_reports() as reports:
        queue.run(rows(1))
        queue.run(rows(2, 2))
    queue.run(rows(3))
    assert [report.batch_rows for report in reports] == [1, 2]
    both = reports[0].then(reports[1])
    assert both.batch_rows == 2 and both.queue_seconds == reports[0].queue_seconds + reports[1].queue_seconds


def learned(queue):
    """The queue after its first run, so that it is known how long one takes."""
    queue.submit(rows(0)).result(10)
    return queue


def test_a_short_run_never_waits_for_long_ones(scheduler):
    short, long = learned(queue_of(scheduler, Doubler())), queue_of(scheduler, Doubler(0.4), max_rows=1)
    heavy = [long.submit(rows(n)) for n in range(5)]
    time.sleep(0.05)
    begun = time.monotonic()
    for n in range(20):
        short.submit(rows(n)).result(10)
    assert time.monotonic() - begun < 0.3 and not heavy[1].done()
    [future.result(10) for future in heavy]


def test_a_run_that_was_thought_short_holds_up_others_no_longer_than_a_short_one_takes(scheduler):
    session = Doubler()
    tricky, short = learned(queue_of(scheduler, session, max_rows=1)), learned(queue_of(scheduler, Doubler()))
    session.seconds = 1.0
    slow = tricky.submit(rows(1))
    time.sleep(0.02)
    begun = time.monotonic()
    short.submit(rows(2)).result(10)
    assert time.monotonic() - begun < 0.5 and not slow.done()
    slow.result(10)


def test_a_short_run_that_comes_at_once_with_one_that_was_only_thought_short_does_not_wait_for_it(scheduler):
    session = Doubler()
    tricky, short = learned(queue_of(scheduler, session, max_rows=1)), learned(queue_of(scheduler, Doubler()))
    for _ in range(5):
        session.seconds, tricky._usual = 0.4, 0.001
        slow, quick = tricky.submit(rows(1)), short.submit(rows(2))
        quick.result(10)
        assert not slow.done()
        slow.result(10)


def test_long_runs_lose_no_slot_to_short_ones(scheduler):
    short, long = learned(queue_of(scheduler, Doubler(0.002), max_rows=1)), queue_of(scheduler, Doubler(0.05))
    stop = threading.Event()

    def flood():
        while not stop.is_set():
            short.submit(rows(1)).result(10)

    threads = [threading.Thread(target=flood) for _ in range(4)]
    [thread.start() for thread in threads]
    begun = time.monotonic()
    for n in range(5):
        long.submit(rows(n)).result(10)
    took = time.monotonic() - begun
    stop.set()
    [thread.join() for thread in threads]
    assert took < 5 * (0.05 + 0.1) + 1


def submitted(queue, feeds, call):
    token = CALL.set(call)
    try:
        return queue.submit(feeds)
    finally:
        CALL.reset(token)


def test_a_run_waits_no_longer_than_its_timeout(scheduler):
    queue, call = queue_of(scheduler, Doubler(0.4), max_rows=1), Call()
    call.ask_for_turn(0, 0.05)
    hold = queue.submit(rows(0))
    begun = time.monotonic()
    with pytest.raises(Expired, match="timeout"):
        submitted(queue, rows(1), call).result(10)
    assert time.monotonic() - begun < 0.35 and not hold.done()
    hold.result(10)
    assert submitted(queue, rows(2), call).result(10).outputs["y"].any()  # a run that begins in time goes on


def test_a_timeout_beyond_all_clocks_is_none_and_shorter_ones_hold_after_it(scheduler):
    """A Duration has room for ten thousand years, and Triton's `timeout` for more."""
    queue = queue_of(scheduler, Doubler(0.3), max_rows=1)
    endless, short = Call(), Call()
    endless.ask_for_turn(0, 2.0**63)
    short.ask_for_turn(0, 0.05)
    running = submitted(queue, rows(1), Call())
    waiting = submitted(queue, rows(2), endless)
    time.sleep(0.05)
    late = submitted(queue, rows(3), short)
    with pytest.raises(Expired, match="waited"):
        late.result(10)
    assert [future.result(10).outputs["y"].flat[0] for future in (running, waiting)] == [2, 4]


def test_an_urgent_call_is_before_those_that_wait(scheduler):
    order, session = [], Doubler(0.03)
    inner = session.run
    session.run = lambda feeds, outputs, stop: (order.append(int(feeds["x"][0, 0])), inner(feeds))[1]
    queue, futures = queue_of(scheduler, session, max_rows=1), []
    futures.append(queue_of(scheduler, Doubler(0.1)).submit(rows(0)))  # while that goes on, they wait
    for n, priority in enumerate((5, 5, 9, 1, 2)):
        call = Call()
        call.ask_for_turn(priority, None)
        futures.append(submitted(queue, rows(n), call))
    [future.result(10) for future in futures]
    assert order == [3, 4, 0, 1, 2]


def test_rows_beyond_a_callers_rate_are_refused_with_the_tokens_name_and_when_to_come_back():
    admission, rate = AdmissionControl(100, 1000, "m", Metrics()), RowRate("ann", 50.0, 4.0)
    token = CALL.set(Call(caller=Caller("ann", frozenset(), rate=rate)))
    for _ in range(2):
        with admission.admit(2, 10):
            pass
    with pytest.raises(Busy, match="'ann'") as caught, admission.admit(3, 10):
        pass
    assert 0.03 < caught.value.retry <= 0.06 and admission.rows == 0
    with pytest.raises(Busy, match="Send fewer"), admission.admit(5, 10):
        pass
    time.sleep(caught.value.retry)
    with admission.admit(3, 10):
        pass
    CALL.reset(token)
    with admission.admit(90, 10):  # nobody else's is counted
        pass
