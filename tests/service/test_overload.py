"""More calls than can be answered: some are answered as if nothing were, the others are told so at once."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import grpc
import numpy as np
import pytest
from running import Running, running_server

from onnxplain.cli.bench_load import Job, Outcome, generate

from .nets import deep, store
from .rpc import HEALTH, healthy, infer, infer_request

WIDTH = 256
QUEUE_ROWS = 64  # the server's default


def content(served: str, rows: int = 1) -> bytes:
    """Some rows for the model `deep` or its explanation."""
    x = np.random.default_rng(0).standard_normal((rows, 1, WIDTH)).astype(np.float32)
    feeds = {"x": x}
    if served != "deep":
        feeds["y.seed"] = np.eye(rows, 10, dtype=np.float32)
    raw: bytes = infer_request(served, feeds).SerializeToString()
    return raw


def refused_at_once(running: Running, served: str) -> None:
    with grpc.insecure_channel(running.address) as channel:
        call = infer(channel)
        raw = content(served, 4)
        pending = [call.future(raw, timeout=60) for _ in range(100)]
        codes = [each.code().name for each in pending]
        assert set(codes) <= {"OK", "RESOURCE_EXHAUSTED"}
        assert codes.count("OK") >= 16 // 4
        refusals = [each for each in pending if each.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert refusals
        assert "try again" in refusals[0].details()
        assert any(key == "grpc-status-details-bin" for key, _ in refusals[0].trailing_metadata())  # with RetryInfo
        call(content(served), timeout=10)
        assert healthy(channel)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    store(deep(), folder, "deep")
    return folder


@pytest.mark.parametrize("served", ["deep", "deep.explain"])
def test_what_is_too_much_is_refused_and_the_rest_answered(folder, served):
    with running_server(folder, "--queue-rows", "16") as running:
        refused_at_once(running, served)


def test_one_request_larger_than_the_queue_is_told_to_be_smaller(folder):
    x = np.zeros((QUEUE_ROWS + 1, 1, WIDTH), np.float32)
    with running_server(folder) as running, grpc.insecure_channel(running.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            infer(channel)(infer_request("deep", {"x": x}), timeout=10)
        assert caught.value.code().name == "RESOURCE_EXHAUSTED"
        assert "Send fewer" in caught.value.details()


def ask(address: str, served: str, clients: int, rate: float, seconds: float) -> Job:
    return Job(address, content(served), clients, rate, seconds)


@pytest.mark.soak
def test_ten_times_the_load_for_a_minute(tmp_path, served="deep.explain"):
    """One thread computes, so that of two processors one is left to gRPC and the generator, which tells its share."""
    store(deep(depth=96), tmp_path, "deep")  # 45 ms a row: ten times as many calls leave the callers time to breathe
    with (
        running_server(tmp_path, "--threads", "1", "--slots", "1") as running,
        ProcessPoolExecutor(2, get_context("spawn")) as pool,
    ):
        list(pool.map(generate, [Job(running.address, b"", 1, 0, 1, HEALTH)] * 2))  # both are there before it counts
        alone = pool.submit(generate, ask(running.address, served, 1, 0, 5)).result()
        full = pool.submit(generate, ask(running.address, served, QUEUE_ROWS // 2, 0, 10)).result()
        capacity, unloaded = full.rate(), float(np.quantile(alone.of("OK"), 0.99))
        over = pool.submit(generate, ask(running.address, served, 0, 10 * capacity, 60))
        watch = pool.submit(generate, Job(running.address, b"", 0, 10, 60, HEALTH))
        found, health = over.result(), watch.result()
        again = pool.submit(generate, ask(running.address, served, 1, 0, 2)).result()
    report({"alone": alone, "32 clients": full, "x10": found, "health": health, "after": again})
    accepted = found.of("OK")
    rate = accepted.size / found.seconds
    bound = 3 * unloaded + QUEUE_ROWS / rate
    print(f"p99 {np.quantile(accepted, 0.99):.3f} s, bound {bound:.3f} s")
    assert set(found.codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert np.quantile(accepted, 0.99) <= bound
    assert rate >= 0.8 * capacity
    assert np.quantile(found.of("RESOURCE_EXHAUSTED"), 0.99) <= 0.05
    assert set(health.codes) == {"OK"} and health.took.max() < 0.1
    assert np.median(again.of("OK")) < 2 * np.median(alone.of("OK")) + 0.01
    late = again.begun[again.took > 3 * unloaded]
    assert not late.size or late.max() - again.begun.min() < 2


def report(outcomes: dict[str, Outcome]) -> None:
    for name, o in outcomes.items():
        good, bad = o.of("OK"), o.of("RESOURCE_EXHAUSTED")
        text = f"{name:>10}: {good.size / o.seconds:7.1f}/s ok, p50 {1e3 * np.median(good):6.1f} ms"
        text += f" p99 {1e3 * np.quantile(good, 0.99):6.1f} max {1e3 * good.max():6.1f}"
        if bad.size:
            text += f"; refused {bad.size}, p50 {1e3 * np.median(bad):.1f} p99 {1e3 * np.quantile(bad, 0.99):.1f}"
            text += f" max {1e3 * bad.max():.1f}"
        print(f"{text}; generator {100 * o.cpu / o.seconds:.0f} % of a processor")
