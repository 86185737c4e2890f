"""When a server is ready: the whole truth table, and what the repository makes of it."""

from __future__ import annotations

import asyncio
import shutil
from http.client import HTTPConnection

import grpc
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import in_process_server
from service.nets import times
from service.process import eventually
from test_model_repository import Shop, repository, settled

from onnxplain.errors import Unavailable, UnsupportedModel
from onnxplain.server.models.readiness import POLICIES, ModelStanding, is_ready
from onnxplain.server.options import ServerOptions
from onnxplain.sources import DirectorySource
from onnxplain.wire.inference import INFERENCE, RPCS

GOOD = ModelStanding(good=True, answers=True, complete=True)
BAD_UPLOAD = ModelStanding(good=True, answers=True, complete=False)  # the last good version goes on
LOST = ModelStanding(good=True, answers=False, complete=False)
NEVER = ModelStanding(good=False, answers=False, complete=False)
TABLE = [  # models, a source is silent, the server was ready before -> ready when serving, when strict
    ([], False, False, True, True),
    ([], True, False, False, False),
    ([], True, True, True, False),
    ([GOOD], False, False, True, True),
    ([GOOD], True, False, True, False),
    ([GOOD, NEVER], False, False, True, False),
    ([GOOD, NEVER], True, True, True, False),
    ([GOOD, BAD_UPLOAD], False, False, True, False),
    ([BAD_UPLOAD], True, True, True, False),
    ([NEVER], False, False, False, False),
    ([NEVER], True, False, False, False),
    ([NEVER], False, True, True, False),
    ([LOST], False, True, False, False),
    ([GOOD, LOST], False, True, False, False),
    ([GOOD, LOST], False, False, False, False),
]


@pytest.mark.parametrize("models, silent, before, serving, strict", TABLE)
def test_readiness_by_policy(models, silent, before, serving, strict):
    assert is_ready("serving", True, silent, before, models) is serving
    assert is_ready("strict", True, silent, before, models) is strict


@pytest.mark.parametrize("models, silent, before, serving, strict", TABLE)
def test_nothing_is_ready_before_the_first_look_is_over_and_strict_is_never_laxer(
    models, silent, before, serving, strict
):
    assert not any(is_ready(policy, False, silent, before, models) for policy in POLICIES)
    assert serving or not strict


def test_a_first_look_is_over_when_what_it_began_is_loaded_or_could_not_be():
    async def story():
        shop = Shop(("m", "1", "a"), ("n", "1", "b"))
        gates = {"m": asyncio.Event(), "n": asyncio.Event()}

        async def load(source, release):
            await gates[release.name].wait()
            if release.name == "n":
                raise UnsupportedModel("broken")
            return await shop.load(source, release)

        found = repository(shop)
        found.lifecycle._load = load
        assert not found.ready
        await found.look()
        assert not found.ready
        gates["m"].set()
        await settled()
        assert found.names() == ["m"] and not found.ready
        gates["n"].set()
        await settled()
        assert found.ready and found.states() == {"m": True, "m/1": True, "n": False, "n/1": False}

    asyncio.run(story())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_dead_source_and_a_bad_upload_take_nothing_away_unless_the_policy_is_strict(policy):
    async def story():
        shop = Shop(("m", "1", "a"))
        found = repository(shop, readiness=policy)
        await found.refresh()
        assert found.ready
        shop.bad = {"b", "c"}
        shop.offers = [("m", "2", "b"), ("new", "1", "c")]
        await found.refresh()
        assert found.ready is (policy == "serving")
        assert found.states() == {"m": True, "m/1": True, "m/2": False, "new": False, "new/1": False}
        shop.offers = [("m", "1", "a")]
        await found.refresh()
        assert found.ready
        shop.error = Unavailable("registry down")
        await found.refresh()
        assert found.ready is (policy == "serving")

    asyncio.run(story())


def test_a_server_that_loads_on_demand_is_ready_before_anybody_asks():
    async def story():
        shop = Shop(("m", "1", "a"))
        shop.bad = {"a"}
        found = repository(shop, "explicit")
        await found.refresh()
        assert found.ready
        with pytest.raises(UnsupportedModel):
            await found.load("m")
        assert found.ready  # a bad model that somebody names takes nothing away

    asyncio.run(story())


def test_a_server_that_goes_down_is_ready_by_no_protocol_while_it_still_answers(tmp_path):
    (tmp_path / "times" / "1").mkdir(parents=True)
    onnx.save(times(2), tmp_path / "times" / "1" / "model.onnx")

    def http(port: int, path: str) -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", path)
        return connection.getresponse().status

    async def scene() -> None:
        options = ServerOptions(port=0, metrics_port=0, http_port=0, drain_delay=60.0)
        async with (
            in_process_server(options, [DirectorySource(tmp_path)]) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):

            async def asked() -> list[bool]:
                found = []
                for name, fields in (("ServerReady", {}), ("ModelReady", {"name": "times"})):
                    method = RPCS[name]
                    ask = channel.unary_unary(
                        f"/{INFERENCE}/{name}", method.request.SerializeToString, method.response.FromString
                    )
                    found.append((await ask(method.request(**fields), timeout=20)).ready)
                for path in ("/v2/health/ready", "/v2/models/times/ready", "/v1/models/times"):
                    found.append(await asyncio.to_thread(http, server.http.port, path) == 200)
                health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
                return [*found, health.status == health_pb2.HealthCheckResponse.SERVING]

            assert await asked() == [True] * 6
            going = asyncio.create_task(server.stop())
            await asyncio.sleep(0)
            assert await asked() == [False] * 6
            server._hurry.set()
            await going

    asyncio.run(scene())


def test_the_version_that_is_shown_is_the_newest_that_is_served_also_when_newer_ones_go(tmp_path):
    for version in "12":
        (tmp_path / "times" / version).mkdir(parents=True)
        onnx.save(times(2), tmp_path / "times" / version / "model.onnx")
    (tmp_path / "times" / "model.toml").write_text('[serving]\nversions = "all"\n')

    async def scene() -> None:
        options = ServerOptions(port=0, metrics_port=0, control="poll", poll_seconds=0.05)
        async with in_process_server(options, [DirectorySource(tmp_path)]) as server:

            def shown() -> float | None:
                return server.metrics.registry.get_sample_value("onnxplain_model_version", {"model": "times"})

            assert await asyncio.to_thread(eventually, lambda: shown() == 2, 20)
            shutil.rmtree(tmp_path / "times" / "2")
            assert await asyncio.to_thread(eventually, lambda: shown() == 1, 20)

    asyncio.run(scene())
