"""Calls that run out of time or are called off: they end, their work ends, and nothing of them stays."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import grpc
import numpy as np
import pytest
from running import Running, in_process_server, running_server

from onnxplain.server.options import ServerOptions
from onnxplain.sources import DirectorySource

from .nets import SIDE, store, times, work
from .process import cpu_seconds, eventually
from .rpc import explain, explain_request, healthy, infer, infer_arrays, infer_request, outcome

ROW = np.ones((1, 1, SIDE), np.float32)


def job(steps: int):
    return infer_request("work", {"x": ROW, "steps": np.array(steps, np.int64)})


def seconds_per_step(call) -> float:
    begun = time.perf_counter()
    call(job(1000))
    return (time.perf_counter() - begun) / 1000


def late(running: Running, calls: int, deadline: float, at_once: int) -> tuple[list[str], float]:
    """Codes of calls whose work takes 2 s, and the processor time the server takes in the second after them."""
    with grpc.insecure_channel(running.address) as channel:
        call = infer(channel)
        call(job(1))
        steps = int(2 / seconds_per_step(call))
        codes = []
        for _ in range(calls // at_once):
            pending = [call.future(job(steps), timeout=deadline) for _ in range(at_once)]
            codes += [each.code().name for each in pending]
        time.sleep(0.5)  # and the longest kernel, which is 0.3 ms here
        before = cpu_seconds(running.process.pid)
        time.sleep(1.0)
        busy = cpu_seconds(running.process.pid) - before
        assert outcome(call, job(1), timeout=5) == "OK"
        assert healthy(channel)
    return codes, busy


def test_a_deadline_ends_the_work_and_the_next_call_is_answered(server):
    codes, busy = late(server, 10, 0.1, 5)
    assert set(codes) == {"DEADLINE_EXCEEDED"}
    assert busy < 0.5  # of 1 s, in which 2 s of work would go on


@pytest.mark.soak
def test_two_hundred_deadlines_of_100_ms_against_2_s_of_work(tmp_path):
    store(work(), tmp_path, "work")
    with running_server(tmp_path, "--threads", "2") as running:
        codes, busy = late(running, 200, 0.1, 40)
    print(f"\ncodes { ({c: codes.count(c) for c in set(codes)}) }, processor time in the second after: {busy:.2f} s")
    assert set(codes) == {"DEADLINE_EXCEEDED"} and len(codes) == 200
    assert busy < 0.25  # of the 2 s that two threads have in it


def test_a_deadline_that_cannot_be_met_is_refused_without_work(server):
    with grpc.insecure_channel(server.address) as channel:
        call = infer(channel)
        steps = int(0.5 / seconds_per_step(call))
        for _ in range(12):  # so that a run is expected to take this long
            call(job(steps), timeout=30)
        before = cpu_seconds(server.process.pid)
        with pytest.raises(grpc.RpcError) as caught:
            call(job(steps), timeout=0.2)
        assert caught.value.code().name == "DEADLINE_EXCEEDED"
        assert "a run takes about" in caught.value.details()
        assert cpu_seconds(server.process.pid) - before < 0.2
        for _ in range(12):
            call(job(1), timeout=5)


async def cancelled(folder, calls: int, cancel: int, at_once: int) -> dict[str, int]:
    """Run `calls` calls, cancel `cancel` of them at random moments, look at what is left in the server."""
    rng, options = random.Random(0), ServerOptions(port=0, metrics_port=0, threads=1, queue_rows=at_once * 2)
    async with in_process_server(options, [DirectorySource(folder)]) as server:
        models = {name: server.repository.entry(name).served.model for name in ("times", "work")}
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            ask, reasons = infer(channel), explain(channel)
            await ask(job(20))
            await reasons(explain_request("times", {"x": np.ones((1, 4), np.float32)}))
            tasks, threads = len(asyncio.all_tasks()), threading.active_count()
            doomed = set(rng.sample(range(calls), cancel))
            semaphore = asyncio.Semaphore(at_once)
            counts = {"right": 0, "wrong": 0, "cancelled": 0, "other": 0}

            async def one(number: int) -> None:
                x = np.full((1, 4), number, np.float32)
                async with semaphore:
                    kind = number % 3
                    if kind == 0:
                        call = ask(infer_request("times", {"x": x}))
                    elif kind == 1:
                        call = ask(job(100))
                    else:
                        call = reasons(explain_request("times", {"x": x}, "2"))
                    if number in doomed:
                        await asyncio.sleep(rng.random() * 0.03)
                        call.cancel()
                    try:
                        reply = await call
                    except asyncio.CancelledError:
                        counts["cancelled"] += 1
                        return
                    except grpc.aio.AioRpcError:
                        counts["other"] += 1
                        return
                    if kind == 0:
                        good = np.array_equal(infer_arrays(reply)["y"], 3 * x)
                    elif kind == 1:
                        good = abs(np.linalg.norm(infer_arrays(reply)["y"]) - SIDE**0.5) < 1e-2
                    else:
                        relevance = np.frombuffer(reply.attributions[0].relevance.raw, np.float32)
                        good = np.allclose(relevance, 3 * x[0] * (np.arange(4) == 2), rtol=1e-6)  # the rule's epsilon
                    counts["right" if good else "wrong"] += 1

            await asyncio.gather(*(one(number) for number in range(calls)))
            assert counts["right"] + counts["cancelled"] == calls, counts
            for _ in range(200):  # the last of the called-off runs ends within a kernel
                held = [model.admission.rows + model.admission.nbytes for model in models.values()]
                held += [len(model.forward_queue._running) for model in models.values()]
                if not any(held) and not server.scheduler.waiting_rows() and len(asyncio.all_tasks()) <= tasks:
                    break
                await asyncio.sleep(0.01)
            assert [model.admission.rows for model in models.values()] == [0, 0]
            assert [model.admission.nbytes for model in models.values()] == [0, 0]
            assert server.scheduler.waiting_rows() == 0
            assert not any(model.forward_queue._running for model in models.values())
            assert all(
                entry.users == 0 for name in models for entry in server.repository._models[name].entries.values()
            )
            assert len(asyncio.all_tasks()) <= tasks
            assert threading.active_count() <= threads + 128  # threads that explanations wait in, kept for the next
    return counts


@pytest.fixture
def folder(tmp_path):
    store(times(3), tmp_path, "times")
    store(work(), tmp_path, "work")
    return tmp_path


def test_half_of_the_calls_are_cancelled_and_the_others_are_right(folder):
    counts = asyncio.run(cancelled(folder, 120, 60, 24))
    assert counts["wrong"] == counts["other"] == 0


@pytest.mark.soak
def test_500_of_1000_calls_are_cancelled_and_the_others_are_right(folder):
    counts = asyncio.run(cancelled(folder, 1000, 500, 32))
    print(f"\n{counts}")
    assert counts["wrong"] == counts["other"] == 0


def test_health_answers_while_the_only_slot_is_busy(server):
    with grpc.insecure_channel(server.address) as channel:
        running = infer(channel).future(job(4000), timeout=30)
        assert healthy(channel, timeout=2.0)
        running.cancel()
        assert eventually(lambda: outcome(infer(channel), job(1), timeout=5) == "OK", 10)
