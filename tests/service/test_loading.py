"""Models that load for long, or for nobody: nothing waits for them, nothing of them stays."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from running import in_process_server

from onnxplain.server import app
from onnxplain.server.models.entry import LOADING, READY, UNAVAILABLE
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.server.options import ServerOptions
from onnxplain.sources import DirectorySource
from onnxplain.wire.inference import INFERENCE, RPCS
from onnxplain.wire.inference import messages as oip

from .nets import slow, store, times
from .rpc import code, infer, infer_arrays, infer_request, unary

X = np.ones((1, 4), np.float32)


class Counted(LoadedModel):
    """Loads when `go` is set; notes what was made, and what was closed."""

    go = threading.Event()
    held: frozenset[str] = frozenset()  # names of models that wait for `go`
    begun: list[str]
    made: weakref.WeakSet[LoadedModel]

    def __init__(self, source: Any, context: Any):
        self.begun.append(source.name)
        if source.name in self.held:
            assert self.go.wait(30)
        super().__init__(source, context)
        self.made.add(self)


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(Counted, "begun", [], raising=False)
    monkeypatch.setattr(Counted, "made", weakref.WeakSet(), raising=False)
    monkeypatch.setattr(Counted, "held", frozenset({"m"}))
    monkeypatch.setattr(Counted, "go", threading.Event())
    monkeypatch.setattr(app, "LoadedModel", Counted)
    yield Counted
    Counted.go.set()


@asynccontextmanager
async def serving(folder: Path, **more: Any) -> AsyncIterator[tuple[app.Server, grpc.aio.Channel]]:
    options = ServerOptions(port=0, metrics_port=0, threads=1, **{"control": "explicit", **more})
    async with (
        in_process_server(options, [DirectorySource(folder, options.control)], wait=False) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield server, channel


async def load(channel: grpc.aio.Channel, name: str, timeout: float = 30.0) -> str:
    """The code that RepositoryModelLoad ends with."""
    call = unary(channel, f"/{INFERENCE}/RepositoryModelLoad")
    try:
        await call(oip.RepositoryModelLoadRequest(model_name=name), timeout=timeout)
    except grpc.RpcError as error:
        return code(error)
    return "OK"


async def index(channel: grpc.aio.Channel) -> dict[str, tuple[str, str]]:
    call = unary(channel, f"/{INFERENCE}/RepositoryIndex", RPCS["RepositoryIndex"].response)
    reply = await call(oip.RepositoryIndexRequest(), timeout=10)
    return {m.name: (m.state, m.reason) for m in reply.models if m.version}


async def until(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.01)


def sessions(server: app.Server) -> int:
    gc.collect()
    return len(server.context.session_cache._open)


def test_a_load_goes_on_when_its_callers_leave_and_who_asks_again_joins_it(tmp_path, counted):
    store(times(2), tmp_path, "m")

    async def story() -> None:
        async with serving(tmp_path) as (server, channel):
            left = await asyncio.gather(*(load(channel, "m", timeout=0.2) for _ in range(9)))
            assert left == ["DEADLINE_EXCEEDED"] * 9
            assert (await index(channel))["m"][0] == LOADING
            joined = asyncio.create_task(load(channel, "m"))
            await asyncio.sleep(0.1)
            counted.go.set()
            assert await joined == "OK"
            assert (await index(channel))["m"][0] == READY
            assert counted.begun == ["m"] and len(counted.made) == 1
            assert sessions(server) <= 4  # of one model

    asyncio.run(story())


@pytest.mark.parametrize("how", ["unloaded", "replaced"])
def test_what_was_loaded_for_nobody_is_closed(how, tmp_path, counted):
    store(times(2), tmp_path, "m")

    async def story() -> None:
        async with serving(tmp_path, control="poll" if how == "replaced" else "explicit", poll_seconds=0.1) as pair:
            server, channel = pair
            if how == "unloaded":
                waiting = asyncio.create_task(load(channel, "m"))
            await until(lambda: counted.begun == ["m"])
            if how == "unloaded":
                unload = unary(channel, f"/{INFERENCE}/RepositoryModelUnload")
                await unload(oip.RepositoryModelUnloadRequest(model_name="m"), timeout=10)
                assert await waiting == "UNAVAILABLE"
            else:
                counted.held = frozenset()
                store(times(3), tmp_path, "m", 2)
                await until(lambda: "m" in server.repository.names())
            before = sessions(server)
            counted.go.set()
            await until(lambda: not server._loading._going)
            gc.collect()
            assert len(counted.made) == (0 if how == "unloaded" else 1)
            assert sessions(server) == before and not server.repository.lifecycle.loads()

    asyncio.run(story())


def test_a_model_that_somebody_names_passes_those_that_nobody_waits_for(tmp_path, counted):
    names = [f"m{n}" for n in range(6)]
    for name in (*names, "small"):
        store(times(2), tmp_path, name)
    counted.held = frozenset(names)

    async def story() -> None:
        async with serving(tmp_path, load=tuple(names), load_slots=2) as (_, channel):
            await until(lambda: len(counted.begun) == 2)
            assert await load(channel, "small") == "OK"  # while two huge ones load and four wait
            assert counted.begun == ["m0", "m1", "small"]
            call = infer(channel)
            with pytest.raises(grpc.RpcError) as caught:
                await call(infer_request("m5", {"x": X}), timeout=10)
            assert code(caught.value) == "UNAVAILABLE"
            await until(lambda: "m5" in counted.begun)  # it was asked for
            assert len(counted.begun) == 4
            counted.go.set()
            await until(lambda: len(counted.begun) == 7)

    asyncio.run(story())


def test_a_load_that_takes_too_long_is_given_up_and_others_are_answered_meanwhile(tmp_path):
    store(slow(6000), tmp_path, "slow")
    store(times(2), tmp_path, "m")

    async def story() -> None:
        async with serving(tmp_path, load_slots=1, max_load_seconds=3.0) as (server, channel):
            begun = time.monotonic()
            waiting = asyncio.create_task(load(channel, "slow"))
            await asyncio.sleep(0.2)
            assert await load(channel, "m") == "OK"
            reply = await infer(channel)(infer_request("m", {"x": X}), timeout=5)
            assert infer_arrays(reply)["y"][0, 0] == 2 and not waiting.done()
            assert await waiting == "FAILED_PRECONDITION"
            assert time.monotonic() - begun < 8  # it took 9 s
            state, reason = (await index(channel))["slow"]
            assert state == UNAVAILABLE and "within 3 s (--max-load-seconds)" in reason
            await until(lambda: not server._loading._going)  # the engine noticed
            assert sessions(server) <= 4  # those of m

    asyncio.run(story())


def test_a_load_that_cannot_be_interrupted_holds_no_turn_and_is_not_begun_twice(tmp_path, counted):
    store(times(2), tmp_path, "m")
    store(times(3), tmp_path, "small")

    async def story() -> None:
        async with serving(tmp_path, load_slots=1, max_load_seconds=3.0) as (server, channel):
            assert await load(channel, "m") == "FAILED_PRECONDITION"
            assert await load(channel, "m") == "FAILED_PRECONDITION"
            assert "has not ended yet" in (await index(channel))["m"][1]
            assert await load(channel, "small") == "OK"
            assert counted.begun == ["m", "small"]
            counted.go.set()
            await until(lambda: not server._loading._going)
            gc.collect()
            assert len(counted.made) == 1
            assert await load(channel, "m") == "OK"

    asyncio.run(story())


def test_a_server_ends_while_a_model_loads(tmp_path, counted):
    store(times(2), tmp_path, "m")

    async def story() -> None:
        begun = time.monotonic()
        async with serving(tmp_path, load=("m",)):
            await until(lambda: counted.begun == ["m"])
        assert time.monotonic() - begun < 10

    asyncio.run(story())


def test_metadata_names_every_version_that_is_served(tmp_path):
    for version in (1, 2, 3):
        store(times(version), tmp_path, "m", version)
    (tmp_path / "m/3/model.onnx").write_bytes(b"no model")
    (tmp_path / "m/model.toml").write_text('[serving]\nversions = "all"\n')

    async def story() -> None:
        async with serving(tmp_path, control="none") as (server, channel):
            await until(lambda: server.repository.ready)
            call = unary(channel, f"/{INFERENCE}/ModelMetadata", RPCS["ModelMetadata"].response)
            for name, version in (("m", ""), ("m", "1"), ("m.explain", "2")):
                reply = await call(oip.ModelMetadataRequest(name=name, version=version), timeout=20)
                assert list(reply.versions) == ["1", "2"]

    asyncio.run(story())
