"""The same question has the same answer, however often and in whatever company it is asked."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from running import Running

from onnxplain.wire.inference import INFERENCE, RPCS
from onnxplain.wire.inference import messages as oip

from .rpc import explain, explain_request, infer, infer_arrays, infer_request, unary

TOLERANCE = 1e-5  # of the largest value: products of another number of rows are summed in another order


def rows(model: str, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if model == "iris_mlp":
        return {"X": rng.uniform(0, 7, (count, 4)).astype(np.float32)}
    if model == "any_length":
        return {"x": rng.standard_normal((count, 4)).astype(np.float32)}
    return {"input": rng.uniform(0, 1, (count, 1, 28, 28)).astype(np.float32)}


@pytest.mark.parametrize("served", ["digits_cnn", "digits_cnn.explain", "digits_cnn.explain.gradient"])
def test_a_hundred_times_the_same_bytes(server, served):
    with grpc.insecure_channel(server.address) as channel:
        call, request = infer(channel), infer_request(served, rows("digits_cnn", 1))
        replies = {tuple(call(request, timeout=30).raw_output_contents) for _ in range(100)}
    assert len(replies) == 1


def test_both_protocols_give_the_same_bytes(server):
    x = rows("digits_cnn", 1)
    with grpc.insecure_channel(server.address) as channel:
        ours = explain(channel)(explain_request("digits_cnn", x), timeout=30)
        open_inference = infer(channel)(infer_request("digits_cnn.explain", x), timeout=30)
    assert ours.attributions[0].relevance.raw == open_inference.raw_output_contents[1]


async def together(running: Running, requests: list) -> list:
    async with grpc.aio.insecure_channel(running.address) as channel:
        call = infer(channel)
        return await asyncio.gather(*(call(request, timeout=60) for request in requests))


def runs(running: Running, served: str) -> tuple[int, int]:
    """(runs, rows) of a served name so far."""
    with grpc.insecure_channel(running.address) as channel:
        call = unary(channel, f"/{INFERENCE}/ModelStatistics", RPCS["ModelStatistics"].response)
        (found,) = call(oip.ModelStatisticsRequest(name=served)).model_stats
    return found.execution_count, found.inference_count


@pytest.mark.parametrize("served", ["digits_cnn", "digits_cnn.explain", "any_length", "any_length.explain"])
def test_rows_in_one_run_answer_as_rows_alone(server, served):
    model = served.split(".")[0]
    ((name, x),) = rows(model, 32).items()
    requests = [infer_request(served, {name: x[n : n + 1]}) for n in range(32)]
    with grpc.insecure_channel(server.address) as channel:
        call = infer(channel)
        alone = [infer_arrays(call(request, timeout=30)) for request in requests]
    before = runs(server, served)
    for _ in range(20):  # whether two meet is up to the machine: until some have
        found = [infer_arrays(reply) for reply in asyncio.run(together(server, requests))]
        for key in alone[0]:
            one, many = np.stack([r[key] for r in alone]), np.stack([r[key] for r in found])
            assert one.dtype == many.dtype
            if one.dtype.kind == "f":
                np.testing.assert_allclose(many, one, rtol=0, atol=TOLERANCE * float(np.abs(one).max()))
            else:
                np.testing.assert_array_equal(many, one)
        after = runs(server, served)
        if after[0] - before[0] < after[1] - before[1]:
            break
    assert after[0] - before[0] < after[1] - before[1], "no two requests ever shared a run"


def test_requests_of_different_shapes_do_not_meet(server):
    requests = [infer_request("any_length", {"x": np.full((1, n % 5 + 1), n, np.float32)}) for n in range(40)]
    for n, reply in enumerate(asyncio.run(together(server, requests))):
        y = infer_arrays(reply)["y"]
        np.testing.assert_allclose(y, 2 * np.tanh(np.full((1, n % 5 + 1), n, np.float32)), rtol=1e-6)


def test_one_bad_request_in_a_batch_fails_alone(server):
    async def mixed() -> list:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = infer(channel)
            good = [call(infer_request("iris_mlp", rows("iris_mlp", 1)), timeout=30) for _ in range(20)]
            bad = [call(infer_request("iris_mlp", {"X": np.ones((1, 5), np.float32)}), timeout=30) for _ in range(5)]
            return await asyncio.gather(*good, *bad, return_exceptions=True)

    found = asyncio.run(mixed())
    assert not any(isinstance(reply, Exception) for reply in found[:20])
    assert {error.code().name for error in found[20:]} == {"INVALID_ARGUMENT"}
