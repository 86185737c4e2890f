"""Models that load when they are asked for, and make room for each other: whoever asks is answered, and rightly."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from running import MODELS, in_process_server

from onnxplain.server.app import Server
from onnxplain.server.models import residency
from onnxplain.server.models.entry import COLD, READY, UNAVAILABLE
from onnxplain.server.options import ServerOptions
from onnxplain.sources import DirectorySource
from onnxplain.wire.inference import INFERENCE, RPCS
from onnxplain.wire.inference import messages as oip

from .nets import store, times, work
from .rpc import code, explain, explain_request, infer, infer_arrays, infer_request, unary

X = np.ones((1, 4), np.float32)
TINY = 400_000  # bytes: more than one `times` holds, less than two


@asynccontextmanager
async def serving(folder: Path, **more: Any) -> AsyncIterator[tuple[Server, grpc.aio.Channel]]:
    options = ServerOptions(port=0, metrics_port=0, threads=1, lazy=True, **more)
    async with (
        in_process_server(options, [DirectorySource(folder, options.control)]) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield server, channel


async def rpc(channel: grpc.aio.Channel, name: str, request: Any) -> Any:
    return await unary(channel, f"/{INFERENCE}/{name}", RPCS[name].response)(request, timeout=20)


async def index(channel: grpc.aio.Channel) -> dict[tuple[str, str], tuple[str, str]]:
    reply = await rpc(channel, "RepositoryIndex", oip.RepositoryIndexRequest())
    return {(m.name, m.version): (m.state, m.reason) for m in reply.models}


async def factor(channel: grpc.aio.Channel, name: str, timeout: float = 20.0, **more: Any) -> float:
    reply = await infer(channel)(infer_request(name, {"x": X}, **more), timeout=timeout)
    return float(infer_arrays(reply)["y"][0, 0])


def evictions(server: Server) -> float:
    samples = [s for m in server.metrics.registry.collect() for s in m.samples]
    return sum(s.value for s in samples if s.name == "onnxplain_model_evictions_total")


def loads(server: Server) -> float:
    return server.metrics.registry.get_sample_value("onnxplain_model_loads_total", {"result": "ok"}) or 0.0


@pytest.mark.soak
def test_thirty_models_where_five_fit_all_answer_and_memory_stays_bounded(tmp_path):
    for n in range(30):
        shutil.copytree(MODELS / "digits_cnn", tmp_path / f"m{n}", ignore=shutil.ignore_patterns("samples"))
    picture = np.load(MODELS / "digits_cnn/samples/three.npy")[:1].astype(np.float32)
    budget = 120_000_000  # the half for models, as the process of the test is large by itself; one holds 11 MB
    most = 0

    async def story() -> None:
        nonlocal most
        async with serving(tmp_path, model_bytes=budget) as (server, channel):
            assert server.residency is not None
            answers: dict[str, set[bytes]] = {"": set(), ".explain": set()}

            async def ask(name: str, kind: str) -> None:
                nonlocal most
                assert server.residency is not None
                while True:
                    try:
                        reply = await infer(channel)(infer_request(name + kind, {"input": picture}), timeout=60)
                        break
                    except grpc.RpcError as error:
                        assert code(error) == "RESOURCE_EXHAUSTED" and "google.rpc.RetryInfo" in str(
                            error.trailing_metadata()
                        )
                        await asyncio.sleep(0.2)
                most = max(most, server.residency.nbytes)
                answers[kind].add(reply.raw_output_contents[0])

            asks = [(f"m{n}", kind) for n in range(30) for kind in answers] * 2
            random.Random(0).shuffle(asks)
            waiting = iter(asks)

            async def client() -> None:
                for name, kind in waiting:
                    await ask(name, kind)

            await asyncio.gather(*(client() for _ in range(3)))
            assert [len(found) for found in answers.values()] == [1, 1]  # copies: every one answers alike
            print(f"\n{evictions(server):.0f} evictions, {loads(server):.0f} loads, at most {most} bytes of {budget}")
            assert evictions(server) >= 25 and loads(server) >= 30
            assert most <= server.residency.budget <= budget
            assert len(server.repository.served()) <= 6
            assert all(state == READY for state, _ in (await index(channel)).values())

    asyncio.run(story())


def test_a_lazy_model_is_ready_before_it_is_loaded_and_asking_that_loads_nothing(tmp_path):
    store(times(2), tmp_path, "m")

    async def story() -> None:
        async with serving(tmp_path) as (server, channel):
            assert await index(channel) == {("m", "1"): (READY, COLD)}
            for name in ("m", "m.explain"):
                assert (await rpc(channel, "ModelReady", oip.ModelReadyRequest(name=name))).ready
            assert not (await rpc(channel, "ModelReady", oip.ModelReadyRequest(name="n"))).ready
            assert loads(server) == 0
            assert await factor(channel, "m") == 2
            assert (await index(channel))["m", "1"] == (READY, "")

    asyncio.run(story())


def test_equal_askers_share_one_load_and_those_that_give_up_do_not_end_it(tmp_path):
    store(times(2), tmp_path, "m")

    async def story() -> None:
        async with serving(tmp_path) as (server, channel):
            early = [asyncio.create_task(factor(channel, "m", timeout=0.01)) for _ in range(5)]
            found = await asyncio.gather(*(factor(channel, "m") for _ in range(20)))
            assert found == [2.0] * 20 and loads(server) == 1
            told = await explain(channel)(explain_request("m", {"x": X}, "0"), timeout=20)
            assert told.scores and loads(server) == 1
            for task in early:
                with pytest.raises(grpc.RpcError):
                    await task

    asyncio.run(story())


def test_a_lazy_model_that_cannot_be_loaded_says_why_and_is_tried_again(tmp_path):
    (tmp_path / "bad/1").mkdir(parents=True)
    (tmp_path / "bad/1/model.onnx").write_bytes(b"no model")
    store(times(2), tmp_path, "m")

    async def story() -> None:
        async with serving(tmp_path) as (server, channel):
            for _ in range(2):
                with pytest.raises(grpc.RpcError) as caught:
                    await factor(channel, "bad")
                assert code(caught.value) == "UNAVAILABLE" and str(tmp_path) not in str(caught.value.details())
            state, reason = (await index(channel))["bad", "1"]
            assert state == UNAVAILABLE and reason and str(tmp_path) not in reason
            assert not (await rpc(channel, "ModelReady", oip.ModelReadyRequest(name="bad"))).ready
            assert server.repository.ready  # it was never good here
            store(times(5), tmp_path, "new")
            shutil.copy(tmp_path / "new/1/model.onnx", tmp_path / "bad/1/model.onnx")
            server.repository.lifecycle.models["bad"].entries["1"].retry_at = 0.0
            assert await factor(channel, "bad") == 5

    asyncio.run(story())


def test_a_bad_new_version_never_replaces_a_lazy_one_that_was_good(tmp_path):
    store(times(2), tmp_path, "m")
    store(times(3), tmp_path, "other")

    async def story() -> None:
        async with serving(tmp_path, control="poll", poll_seconds=0.1, model_bytes=TINY) as (server, channel):
            assert await factor(channel, "m") == 2
            assert await factor(channel, "other") == 3  # m makes room
            assert evictions(server) == 1
            (tmp_path / "m/2").mkdir()
            (tmp_path / "m/2/model.onnx").write_bytes(b"no model")
            while "m/2" not in server.repository.problems():
                await asyncio.sleep(0.02)
            assert await factor(channel, "m") == 2 and server.repository.ready
            store(times(7), tmp_path, "m", 3)
            while server.repository.entry("m").release.version != "3":
                await asyncio.sleep(0.02)
            assert await factor(channel, "m") == 7
            with pytest.raises(grpc.RpcError) as caught:
                await factor(channel, "m", version="1")
            assert code(caught.value) == "NOT_FOUND"

    asyncio.run(story())


def test_where_running_calls_use_all_memory_the_next_model_is_refused_with_a_time_to_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(residency, "WAIT", 0.3)
    store(work(), tmp_path, "work")
    store(times(3), tmp_path, "m")

    async def story() -> None:
        async with serving(tmp_path, model_bytes=TINY) as (server, channel):
            feeds = {"x": np.ones((1, 1, 256), np.float32), "steps": np.array(100_000, np.int64)}
            long = infer(channel)(infer_request("work", feeds), timeout=60)
            while not server.repository.entry("work").served:
                await asyncio.sleep(0.01)
            with pytest.raises(grpc.RpcError) as caught:
                await factor(channel, "m")
            assert code(caught.value) == "RESOURCE_EXHAUSTED" and "no room for model 'm'" in caught.value.details()
            assert "google.rpc.RetryInfo" in str(caught.value.trailing_metadata())
            assert (await index(channel))["m", "1"] == (READY, COLD)
            long.cancel()
            monkeypatch.setattr(residency, "WAIT", 20.0)
            assert await factor(channel, "m") == 3

    asyncio.run(story())


@pytest.mark.skipif(sys.platform != "linux", reason="memory of processes from /proc")
def test_evicting_an_isolated_model_ends_its_process(tmp_path):
    for n in range(3):
        store(times(n + 2), tmp_path, f"m{n}")

    async def story() -> None:
        async with serving(tmp_path, model_bytes=350 * 2**20, isolate=True) as (server, channel):
            pids = []
            for n in (0, 1, 2, 0):
                assert await factor(channel, f"m{n}", timeout=60) == n + 2
                pids.append(server.repository.entry(f"m{n}").served.pid)
            assert evictions(server) >= 2 and len(set(pids)) == 4
            assert not Path(f"/proc/{pids[0]}").exists()

    asyncio.run(story())
