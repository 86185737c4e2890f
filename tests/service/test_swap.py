"""Models that change while they are asked: no call fails, no connection sees an older version again, nothing stays."""

from __future__ import annotations

import asyncio
import gc
import os
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from running import in_process_server, running_server

from onnxplain.server.app import Server
from onnxplain.server.options import ServerOptions
from onnxplain.sources import DirectorySource
from onnxplain.wire.inference import INFERENCE
from onnxplain.wire.inference import messages as oip

from .nets import large, store, times
from .process import resident
from .rpc import code, explain, explain_request, infer, infer_arrays, infer_request, unary

X = np.ones((1, 4), np.float32)
OPTIONS = ServerOptions(port=0, metrics_port=0, control="poll", poll_seconds=0.1, threads=1)


@dataclass
class Seen:
    """What the connections saw. answers: (version, factor) in the order of one connection."""

    errors: list[str] = field(default_factory=list)
    answers: list[list[tuple[int, float]]] = field(default_factory=list)


async def ask(port: int, rate: float, connections: int, seen: Seen, stop: asyncio.Event) -> None:
    """Ask for answers and reasons in turn until told to stop, `rate` calls a second over some connections."""

    async def one() -> None:
        mine: list[tuple[int, float]] = []
        seen.answers.append(mine)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            answers, reasons = infer(channel), explain(channel)
            turn, due = 0, time.monotonic()
            while not stop.is_set():
                turn, due = turn + 1, due + connections / rate
                try:
                    if turn % 3:
                        reply = await answers(infer_request("m", {"x": X}), timeout=10)
                        mine.append((int(reply.model_version), float(infer_arrays(reply)["y"][0, 0])))
                    else:
                        told = await reasons(explain_request("m", {"x": X}, "0"), timeout=10)
                        score = np.frombuffer(told.scores.raw, np.float32)[0]
                        mine.append((int(told.model.version), float(score)))
                except grpc.RpcError as error:
                    seen.errors.append(f"{code(error)}: {error.details()}")
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    await asyncio.gather(*(one() for _ in range(connections)))


async def until(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.02)


def model(server: Server):
    return server.repository.entry("m").served.model


def rewrite(path: Path, factor: float) -> None:
    """The same version with other weights, in one step."""
    other = path.with_name(f".{path.name}.new")
    onnx.save(times(factor), other)
    os.replace(other, path)


async def swaps(folder: Path, count: int, rate: float) -> tuple[Seen, list[weakref.ref], dict]:
    """`count` changes of one model while it is asked: three new versions, then one rewritten in place, and so on."""
    store(times(1), folder, "m", 1)
    seen, stop, old = Seen(), asyncio.Event(), []
    async with in_process_server(OPTIONS, [DirectorySource(folder, "poll")]) as server:
        asking = asyncio.create_task(ask(server.port, rate, 4, seen, stop))
        version, factor, memory = 1, 1.0, 0
        for turn in range(count):
            now = model(server)
            old.append(weakref.ref(now))
            last, now, factor = id(now), None, factor + 1
            if turn % 4 == 3:
                rewrite(folder / "m" / str(version) / "model.onnx", factor)
            else:
                version += 1
                store(times(factor), folder, "m", version)
            await until(lambda last=last: id(model(server)) != last)
            if turn == min(count - 1, 10):
                memory = resident(os.getpid())
        stop.set()
        await asking
        await until(lambda: not server.repository.lifecycle.closing)
        gc.collect()
        alive = sum(1 for each in old if each() is not None)
        queues = len(server.context.session_cache._open)
        grown = resident(os.getpid()) - memory
    return seen, old, {"alive": alive, "queues": queues, "grown": grown, "version": version, "factor": factor}


def check(seen: Seen, found: dict, count: int) -> None:
    assert not seen.errors, seen.errors[:5]
    assert len(seen.answers) == 4 and all(seen.answers)
    for mine in seen.answers:
        versions, factors = zip(*mine, strict=True)
        assert list(versions) == sorted(versions)
        assert list(factors) == sorted(factors)  # each change multiplies by more, whether by name or in place
    assert max(factor for mine in seen.answers for _, factor in mine) >= count
    assert found["alive"] <= 1, "models that were replaced are still in memory"  # the last may be in a frame yet
    assert found["queues"] <= 4, "sessions of replaced models are still open"


def test_a_model_changes_under_load_without_an_error(tmp_path):
    seen, _, found = asyncio.run(swaps(tmp_path, 8, 50))
    check(seen, found, 8)


@pytest.mark.soak
def test_a_hundred_changes_at_fifty_calls_a_second(tmp_path):
    begun = time.monotonic()
    seen, _, found = asyncio.run(swaps(tmp_path, 100, 50))
    calls = sum(map(len, seen.answers))
    print(f"\n{calls} calls in {time.monotonic() - begun:.0f} s, {len(seen.errors)} errors, {found}")
    check(seen, found, 100)
    assert calls > 1000
    assert found["grown"] < 50 * 2**20


def test_a_bad_version_never_replaces_a_good_one(tmp_path):
    async def run() -> None:
        store(times(5), tmp_path, "m", 1)
        async with in_process_server(OPTIONS, [DirectorySource(tmp_path, "poll")]) as server:
            bad = tmp_path / "m" / "2"
            bad.mkdir()
            (bad / "model.onnx").write_bytes(b"no model")
            await until(lambda: any("m/2" in key for key in server.repository.problems()))
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                reply = await infer(channel)(infer_request("m", {"x": X}))
                assert reply.model_version == "1" and infer_arrays(reply)["y"][0, 0] == 5
            store(times(6), tmp_path, "m", 3)
            await until(lambda: server.repository.entry("m").release.version == "3")

    asyncio.run(run())


def cycles(folder: Path, count: int) -> int:
    """Load, ask and unload so many times; bytes that the server holds more afterwards."""
    store(times(2), folder, "m")
    store(large(20), folder, "large")
    with running_server(folder, "--model-control-mode", "explicit", "--threads", "1") as running:
        pid = running.process.pid
        with grpc.insecure_channel(running.address) as channel:
            load, unload = (unary(channel, f"/{INFERENCE}/RepositoryModel{do}") for do in ("Load", "Unload"))
            ask_it, before = infer(channel), 0
            for turn in range(count):
                for name, feeds in (("m", {"x": X}), ("large", {"x": np.ones((2, 512), np.float32)})):
                    load(oip.RepositoryModelLoadRequest(model_name=name), timeout=30)
                    ask_it(infer_request(name, feeds), timeout=10)
                    ask_it(infer_request(f"{name}.explain", feeds), timeout=10)
                    unload(oip.RepositoryModelUnloadRequest(model_name=name), timeout=30)
                if turn == min(4, count - 1):
                    before = resident(pid)
            with pytest.raises(grpc.RpcError) as caught:
                ask_it(infer_request("m", {"x": X}), timeout=10)
            assert code(caught.value) in ("NOT_FOUND", "UNAVAILABLE")
            time.sleep(0.5)
            return resident(pid) - before


def test_models_come_and_go_on_demand(tmp_path):
    assert cycles(tmp_path, 5) < 150 * 2**20


@pytest.mark.soak
def test_two_hundred_loads_and_unloads_leave_the_memory_as_it_was(tmp_path):
    grown = cycles(tmp_path, 200)
    print(f"\n+{grown / 2**20:.0f} MiB")
    assert grown < 150 * 2**20
