"""Aliases move and registries fail under load: no caller notices but by the version."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

pytest.importorskip("mlflow.server", reason="pip install -r tests/clients/requirements-mlflow.txt")

from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import running_server

from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.v1 import explainer_pb2_grpc
from onnxplain.wire.inference import INFERENCE, RPCS
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import v1_tensor

from .mlflow_server import Server, move_alias, register, stored

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
MODELS = Path(__file__).parents[2] / "models"
CNN, VIT = MODELS / "digits_cnn/1/model.onnx", MODELS / "digits_vit/1/model.onnx"
RATE, CONNECTIONS = 50, 5  # requests a second over all connections
MOVES = int(os.environ.get("ONNXPLAIN_ALIAS_MOVES", "6"))
POLL = 0.5  # seconds
X = np.random.default_rng(0).random((1, 1, 28, 28), np.float32)
REQUEST = v1.ExplainRequest(model=v1.ModelRef(name="clf"), inputs=[v1_tensor("input", X)])


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """clf/1 (a CNN), clf/2 (a transformer), clf/3 (to be damaged); champion is 1."""
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    try:
        assert [register(server.uri, "clf", path) for path in (CNN, VIT, CNN)] == ["1", "2", "3"]
        move_alias(server.uri, "clf", "champion", "1")
        yield server
    finally:
        server.stop()


@pytest.fixture
def served(registry, tmp_path):
    """A server that follows the champion."""
    move_alias(registry.uri, "clf", "champion", "1")
    with running_server(
        "--registry", f"mlflow+{registry.uri}?model=clf@champion", "--poll-seconds", POLL, "--cache", tmp_path / "cache"
    ) as running:
        yield running


class Load:
    """Steady requests over some connections: versions in the order of each connection's answers, and errors."""

    def __init__(self, address: str):
        self.address = address
        self.versions: list[list[str]] = [[] for _ in range(CONNECTIONS)]
        self.errors: list[str] = []
        self._stop = asyncio.Event()

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._connection(n)) for n in range(CONNECTIONS)]
        await asyncio.sleep(0.5)
        return self

    async def __aexit__(self, *_):
        await asyncio.sleep(0.5)
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _connection(self, number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # else all channels share one connection
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            explain = explainer_pb2_grpc.ExplainerServiceStub(channel).Explain
            following = time.monotonic() + number / RATE
            while not self._stop.is_set():
                try:
                    self.versions[number].append((await explain(REQUEST, timeout=20)).model.version)
                except grpc.RpcError as error:
                    self.errors.append(f"{error.code().name}: {error.details()}")
                following += CONNECTIONS / RATE
                await asyncio.sleep(max(0.0, following - time.monotonic()))


async def until(address: str, version: str, seconds: float = 20.0) -> float:
    """Seconds until the server answers with a version."""
    begun = time.monotonic()
    async with grpc.aio.insecure_channel(address) as channel:
        explain = explainer_pb2_grpc.ExplainerServiceStub(channel).Explain
        while (await explain(REQUEST)).model.version != version:
            assert time.monotonic() - begun < seconds, f"version {version} did not come"
            await asyncio.sleep(0.02)
    return time.monotonic() - begun


async def index(address: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(name, version) -> (state, reason)."""
    method = RPCS["RepositoryIndex"]
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{INFERENCE}/RepositoryIndex",
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        reply = await call(oip.RepositoryIndexRequest())
    return {(model.name, model.version): (model.state, model.reason) for model in reply.models}


async def health(address: str, service: str = "") -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def runs(versions: list[str]) -> list[str]:
    """Versions with repetitions left out."""
    return [v for n, v in enumerate(versions) if not n or versions[n - 1] != v]


def test_moving_an_alias_under_load_costs_no_request(registry, served):
    """50 requests a second; every connection sees the versions in the order of the moves, none twice."""

    async def story():
        order, waited = ["1"], []
        async with Load(served.address) as load:
            for move in range(MOVES):
                order.append("2" if move % 2 == 0 else "1")
                await asyncio.to_thread(move_alias, registry.uri, "clf", "champion", order[-1])
                waited.append(await until(served.address, order[-1]))
        assert load.errors == []
        assert all(runs(seen) == order for seen in load.versions), [runs(seen) for seen in load.versions]
        assert sum(map(len, load.versions)) >= 0.6 * RATE * sum(waited)  # the load was a load, on a busy machine too
        return waited, sum(map(len, load.versions))

    waited, count = asyncio.run(story())
    print(f"\n{count} requests, {MOVES} moves seen after {min(waited):.2f} to {max(waited):.2f} s, 0 errors")


def test_a_registry_that_fails_in_any_way_takes_nothing_away(registry, served):
    """Stopped, hanging, a damaged artifact: the last good version answers, the index and health say what is wrong."""

    async def story():
        source = f"source/mlflow+{registry.uri}"
        damaged = stored(registry, "clf", "3") / "model.onnx"
        whole = damaged.read_bytes()
        async with Load(served.address) as load:
            damaged.write_bytes(whole[: len(whole) // 2])
            await asyncio.to_thread(move_alias, registry.uri, "clf", "champion", "3")
            for _ in range(100):
                state, reason = (await index(served.address)).get(("clf", "3"), ("", ""))
                if state == "UNAVAILABLE":
                    break
                await asyncio.sleep(0.1)
            assert state == "UNAVAILABLE" and reason, (state, reason)
            assert await health(served.address) == "SERVING"  # by the last good version
            damaged.write_bytes(whole)
            await asyncio.to_thread(move_alias, registry.uri, "clf", "champion", "2")
            await until(served.address, "2")
            for failure, mend in ((registry.stop, registry.start), (registry.pause, registry.resume)):
                await asyncio.to_thread(failure)
                for _ in range(300):
                    if await health(served.address, source) == "NOT_SERVING":
                        break
                    await asyncio.sleep(0.1)
                assert await health(served.address, source) == "NOT_SERVING"
                assert await health(served.address) == "SERVING"
                await asyncio.to_thread(mend)
        assert load.errors == []
        assert all(runs(seen) == ["1", "2"] for seen in load.versions), [runs(seen) for seen in load.versions]

    asyncio.run(story())
