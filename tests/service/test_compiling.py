"""Compiling under attack: small requests for many new graphs cost bounded work, and nobody else his answers."""

from __future__ import annotations

import signal
import time

import grpc
import numpy as np
import pytest
from running import running_server

from onnxplain.recipes import named, recipe_names
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.inference import INFERENCE, RPCS
from onnxplain.wire.inference import messages as oip

from .nets import deep, repository, store
from .process import cpu_seconds, resident
from .rpc import EXPLAIN, code, explain_request, healthy, infer, infer_request, unary

METADATA = f"/{INFERENCE}/ModelMetadata"
LIGHT = {"X": np.ones((1, 4), np.float32)}
ROW = np.ones((1, 1, 256), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small models, and one of 48 layers that takes seconds to compile."""
    folder = repository(tmp_path_factory.mktemp("models"))
    store(deep(width=256, depth=48), folder, "deep")
    return folder


def unique(n: int) -> v1.ExplainRequest:
    """A request for a graph that nobody asked for yet."""
    request = explain_request("deep", {"x": ROW}, "0")
    request.recipe.overrides["rules"] = [f"type:MatMul=epsilon(epsilon={1e-3 * (n + 1)})"]
    return request


def codes(pending) -> list[str]:
    return [each.code().name for each in pending]


def test_names_of_many_graphs_asked_for_at_once_cost_bounded_work(folder):
    names = [name for name in recipe_names() if not named(name).looped]
    with running_server(folder, "--compile-queue", "4") as running, grpc.insecure_channel(running.address) as channel:
        light = infer(channel)
        light(infer_request("iris_mlp", LIGHT), timeout=10)
        before, cpu = resident(running.process.pid), cpu_seconds(running.process.pid)
        ask = unary(channel, METADATA, RPCS["ModelMetadata"].response)
        pending = [ask.future(oip.ModelMetadataRequest(name=f"deep.explain.{name}"), timeout=60) for name in names]
        assert healthy(channel)
        light(infer_request("iris_mlp", LIGHT), timeout=10)
        found = codes(pending)
        grown = resident(running.process.pid) - before
        print(
            f"\n{len(names)} names: {found.count('OK')} compiled, {cpu_seconds(running.process.pid) - cpu:.1f} CPU s, "
        )
        print(f"{grown / 2**20:.0f} MiB more")
        assert set(found) == {"OK", "RESOURCE_EXHAUSTED"} and found.count("OK") <= 4 + 4  # those before, and in between
        refused = next(each for each in pending if each.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert "--compile-queue" in refused.details()
        assert any(key == "grpc-status-details-bin" for key, _ in refused.trailing_metadata())  # with RetryInfo
        assert grown < 600 * 2**20


def test_many_new_recipes_hold_up_neither_other_calls_nor_the_end(folder):
    with running_server(folder, "--compile-queue", "200", "--drain-timeout", "1") as running:
        with grpc.insecure_channel(running.address) as channel:
            light, before = infer(channel), resident(running.process.pid)
            ask = unary(channel, EXPLAIN, v1.ExplainResponse)
            own = explain_request("digits_cnn", {"input": np.ones((1, 1, 28, 28), np.float32)}, "3")
            pending = [ask.future(unique(n), timeout=60) for n in range(60)]
            for _ in range(5):
                light(infer_request("iris_mlp", LIGHT), timeout=5)
            ask(own, timeout=10)  # more of them than there are threads would not hold it up either
            assert resident(running.process.pid) - before < 600 * 2**20
            signalled = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            assert set(codes(pending)) <= {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}
            assert running.process.wait(15) == 0
            print(f"\ndrained in {time.monotonic() - signalled:.1f} s")
        assert "Traceback" not in running.log, running.log[-3000:]


def test_a_recipe_whose_callers_went_away_is_compiled_no_further(folder):
    with running_server(folder) as running, grpc.insecure_channel(running.address) as channel:
        ask = unary(channel, EXPLAIN, v1.ExplainResponse)
        for n in range(20):
            with pytest.raises(grpc.RpcError) as caught:
                ask(unique(n), timeout=0.1)
            assert code(caught.value) in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
        time.sleep(1)
        cpu = cpu_seconds(running.process.pid)
        time.sleep(1)
        assert cpu_seconds(running.process.pid) - cpu < 0.5
