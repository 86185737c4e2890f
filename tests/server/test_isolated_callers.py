"""Laws of who asks, told from the parent to a worker."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace

import grpc
import numpy as np
import pytest
from running import MODELS, in_process_server

from onnxplain.errors import Busy
from onnxplain.server.isolation.callers import ForwardedCallers, caller_metadata
from onnxplain.server.options import ServerOptions
from onnxplain.server.row_rate import RowRate
from onnxplain.server.tokens import ANYONE, Caller
from onnxplain.sources import DirectorySource
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.v1 import explainer_pb2_grpc
from onnxplain.wire.tensors import v1_tensor

FLOWER = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
ANN = Caller("änn", frozenset({"infer", "explain"}), 2.5, RowRate("änn", 10.0, 20.0), 3)


@pytest.mark.parametrize("caller", [ANYONE, ANN, replace(ANN, rate=None)])
def test_a_worker_knows_of_a_caller_what_the_parent_knows(caller):
    told = ForwardedCallers().caller(value for _, value in caller_metadata(caller))
    assert told == caller and told.rate == caller.rate


def test_a_workers_bucket_is_not_filled_by_the_next_call():
    callers, words = ForwardedCallers(), [value for _, value in caller_metadata(ANN)]
    callers.caller(words).rate.take(20)
    with pytest.raises(Busy):
        callers.caller(words).rate.take(20)


TOKENS = """
[tokens.ann]
token = "ann-has-a-token-of-her-own"
scopes = ["infer", "explain"]
rows_per_second = 0.01
burst = 2

[tokens.bob]
token = "bob-has-another-one-of-his"
scopes = ["explain", "compile"]
"""


def test_scopes_priorities_and_rates_hold_in_a_worker(tmp_path):
    shutil.copytree(MODELS / "iris_mlp", tmp_path / "models" / "iris_mlp", ignore=shutil.ignore_patterns("samples"))
    file = tmp_path / "tokens.toml"
    file.write_text(TOKENS)
    file.chmod(0o600)
    new = v1.Recipe(name="lrp")
    new.overrides["rules"] = ["type:Gemm=epsilon(epsilon=0.5)"]

    def asking(**more):
        return v1.ExplainRequest(model=v1.ModelRef(name="iris_mlp"), inputs=[v1_tensor("X", FLOWER)], **more)

    async def code(call) -> str:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name} {error.details()}"
        return "OK"

    async def main():
        options = ServerOptions(port=0, metrics_port=0, isolate=True, token_file=file)
        serving = in_process_server(options, [DirectorySource(tmp_path / "models", "none")])
        async with serving as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            explain = explainer_pb2_grpc.ExplainerServiceStub(channel).Explain
            ann = {"metadata": [("authorization", "Bearer ann-has-a-token-of-her-own")], "timeout": 30}
            bob = {"metadata": [("authorization", "Bearer bob-has-another-one-of-his")], "timeout": 30}
            first = await code(explain(asking(recipe=new), **ann))
            assert first.startswith("PERMISSION_DENIED") and "'compile'" in first
            assert await code(explain(asking(recipe=new), **bob)) == "OK"
            assert await code(explain(asking(recipe=new), **ann)) == "OK"
            used_up = await code(explain(asking(), **ann))
            assert used_up.startswith("RESOURCE_EXHAUSTED") and "'ann'" in used_up
            urgent = await code(explain(asking(priority=1), **bob))
            assert urgent.startswith("PERMISSION_DENIED") and "'bob'" in urgent

    asyncio.run(main())
