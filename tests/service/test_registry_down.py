"""A server that starts while its registry is down begins with what it last served well."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from running import in_process_server

from onnxplain.server.models.entry import READY
from onnxplain.server.options import ServerOptions
from onnxplain.sources import Release, RememberingSource, from_address

from .nets import store, times
from .rpc import HEALTH, infer, infer_arrays, infer_request, unary

X = np.ones((1, 4), np.float32)


def registry(folder: Path) -> RememberingSource:
    """A registry that is a folder, which can be taken away."""
    return from_address(f"file://{folder / 'registry'}", folder / "cache")


def options(**more) -> ServerOptions:
    return ServerOptions(port=0, metrics_port=0, threads=1, control="poll", poll_seconds=0.1, **more)


async def factor(port: int, name: str) -> float:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        return float(infer_arrays(await infer(channel)(infer_request(name, {"x": X}), timeout=20))["y"][0, 0])


async def health(port: int, service: str) -> str:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = unary(channel, HEALTH, health_pb2.HealthCheckResponse)
        answer = await check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def until(true, seconds: float = 20.0) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < end, "it never happened"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_server_starts_with_what_was_last_served_well(lazy, tmp_path):
    place = tmp_path / "registry"
    store(times(2), place, "m")
    store(times(3), place, "n")

    async def story() -> None:
        async with in_process_server(options(), [registry(tmp_path)]) as server:
            assert await factor(server.port, "m") == 2
            (place / "m/2").mkdir()
            (place / "m/2/model.onnx").write_bytes(b"no model")
            (place / "m/2/.complete").touch()
            await until(lambda: "m/2" in server.repository.problems())
        place.rename(tmp_path / "away")
        source = registry(tmp_path)
        async with in_process_server(options(lazy=lazy), [source]) as server:
            assert [await factor(server.port, name) for name in ("m", "n")] == [2, 3]  # not the bad upload
            assert await health(server.port, f"source/{source.name}") == "NOT_SERVING"
            for name, version, state, reason in server.repository.index():
                assert (version, state) == ("1", READY) and "from the cache" in reason, name
            (tmp_path / "away").rename(place)
            store(times(5), place, "n", 2)
            server.repository.health._backoff.clear()
            await until(lambda: server.repository.entry("n").release.version == "2")
            assert [await factor(server.port, name) for name in ("m", "n")] == [2, 5]
            assert not any("cache" in reason for _, _, _, reason in server.repository.index())
            assert await health(server.port, f"source/{source.name}") == "SERVING"

    asyncio.run(story())


def test_a_new_replica_with_nothing_good_is_not_ready_while_its_registry_is_down(tmp_path):
    async def story() -> None:
        async with in_process_server(options(), [registry(tmp_path)], wait=False) as server:
            await until(lambda: server.repository.health.silent)
            await asyncio.sleep(0.1)
            assert not server.repository.ready and await health(server.port, "") == "NOT_SERVING"
            store(times(4), tmp_path / "registry", "m")
            server.repository.health._backoff.clear()
            await until(lambda: server.repository.ready)
            assert await factor(server.port, "m") == 4

    asyncio.run(story())


def test_what_the_registry_takes_back_is_forgotten(tmp_path):
    place = tmp_path / "registry"
    for name in ("m", "n"):
        store(times(2), place, name)

    async def story() -> None:
        source = registry(tmp_path)
        async with in_process_server(options(), [source]) as server:
            assert {release.name for release in source.remembered()} <= {"m", "n"}
            (place / "n").rename(tmp_path / "taken")
            await until(lambda: server.repository.names() == ["m"])
        assert [release.name for release in registry(tmp_path).remembered()] == ["m"]

    asyncio.run(story())


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-5],
        lambda text: "[]",
        lambda text: text.replace('"m"', '"../m"'),
        lambda text: text.replace('"1"', '"../1"'),
        lambda text: text.replace('"m"', "7"),
        lambda text: text.replace("registry", "other"),
        lambda text: json.dumps({**json.loads(text), "releases": None}),
    ],
)
def test_a_damaged_record_is_said_and_left_aside(damage, tmp_path, caplog):
    source = registry(tmp_path)
    source.remember([Release("m", "1", "f", ("champion",))])
    assert registry(tmp_path).remembered() == [Release("m", "1", "f", ("champion",))]
    source.file.write_text(damage(source.file.read_text()))
    assert registry(tmp_path).remembered() == []
    assert "cannot be read" in caplog.text


def test_liveness_is_apart_from_readiness_and_each_bad_thing_has_a_health_of_its_own(tmp_path):
    place = tmp_path / "registry"
    store(times(2), place, "m")
    store(times(2), place, "bad").write_bytes(b"no model")

    async def story() -> None:
        async with in_process_server(options(readiness="strict"), [registry(tmp_path)], wait=False) as server:
            await until(lambda: server.repository.problems() and server.repository.names() == ["m"])
            await asyncio.sleep(0.1)
            found = {name: await health(server.port, name) for name in ("", "liveness", "model/m", "model/bad")}
            assert found == {
                "": "NOT_SERVING", "liveness": "SERVING", "model/m": "SERVING", "model/bad": "NOT_SERVING",
            }  # fmt: skip

    asyncio.run(story())
