"""A hundred models where a few fit: all answer, the ones not used for longest make room."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from nets import net  # tests/nets.py
from running import running_server

from .nets import store
from .process import peak, resident
from .rpc import UNLIMITED, healthy, infer, infer_arrays, infer_request

MODELS = int(os.environ.get("ONNXPLAIN_MODELS_COUNT", "100"))
RECIPES = ("gradient", "lrp", "guided_backprop")
BUDGET = 2 * 2**30
WIDTH = 1024  # of a layer: 4 MB of weights; a model has three


def classifier(number: int) -> onnx.ModelProto:
    """x (N, 1024) -> (N, 4) with 12 MB of weights of its own."""
    rng = np.random.default_rng(number)
    weights = {f"w{n}": (rng.standard_normal((WIDTH, WIDTH)) / 32).astype(np.float32) for n in range(3)}
    return net(
        f"""g (float[N, {WIDTH}] x) => (float[N, 4] y) {{
            a = MatMul (x, w0) b = Relu (a) c = MatMul (b, w1) d = Relu (c) e = MatMul (d, w2) f = Relu (e)
            y = MatMul (f, head)
        }}""",
        head=rng.standard_normal((WIDTH, 4)).astype(np.float32),
        **weights,
    )


def expected(number: int, x: np.ndarray) -> np.ndarray:
    """The model in numpy."""
    rng = np.random.default_rng(number)
    for _ in range(3):
        x = np.maximum(x @ (rng.standard_normal((WIDTH, WIDTH)) / 32).astype(np.float32), 0)
    return x @ rng.standard_normal((WIDTH, 4)).astype(np.float32)


def many(folder: Path, models: int, rounds: int, budget: int) -> None:
    for number in range(models):
        store(classifier(number), folder, f"m{number}")
    x = np.random.default_rng(0).standard_normal((1, WIDTH)).astype(np.float32)
    asks = [(number, recipe) for number in range(models) for recipe in ("", *RECIPES)] * rounds
    random.Random(0).shuffle(asks)
    with running_server(folder, "--lazy", "--memory-budget", str(budget)) as running:
        first: dict[tuple[int, str], float] = {}
        retried = [0]
        with grpc.insecure_channel(running.address, options=UNLIMITED) as channel:

            def ask(case: tuple[int, str]) -> None:
                number, recipe = case
                name = f"m{number}.explain.{recipe}" if recipe else f"m{number}"
                request, begun = infer_request(name, {"x": x}), time.perf_counter()
                for _ in range(100):
                    try:
                        reply = infer(channel)(request, timeout=60)
                        break
                    except grpc.RpcError as error:
                        if error.code().name not in ("RESOURCE_EXHAUSTED", "UNAVAILABLE"):
                            raise
                        retried[0] += 1
                        time.sleep(0.2)
                first.setdefault(case, time.perf_counter() - begun)
                if number % 10 == 0:
                    y = infer_arrays(reply)["y"]
                    np.testing.assert_allclose(y, expected(number, x), rtol=1e-3, atol=1e-3)  # float32, 1024 terms

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(ask, asks))
            assert healthy(channel)
        pid = running.process.pid
        cold = np.array(list(first.values()))
        print(f"\n{models} models, {len(asks)} calls, {retried[0]} asked again")
        print(f"cold p50 {np.median(cold):.2f} s, p99 {np.percentile(cold, 99):.2f} s")
        print(f"resident {resident(pid) / 2**20:.0f} MiB, at most {peak(pid) / 2**20:.0f} MiB")
        print(f"evictions {running.log.count('evicted')}")
        assert running.log.count("evicted")
        assert peak(pid) < budget * 1.1


@pytest.mark.soak
def test_a_hundred_models_with_three_recipes_in_2_gb(tmp_path):
    many(tmp_path, MODELS, 1, BUDGET)


def test_models_that_do_not_fit_together_all_answer(tmp_path):
    many(tmp_path, 12, 1, 512 * 2**20)
