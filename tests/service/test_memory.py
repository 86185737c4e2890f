"""Laws of memory: what a server may hold, it holds, whatever it is asked; and it goes on."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from nets import net  # tests/nets.py
from running import running_server

from .nets import store, times
from .process import peak, threads
from .rpc import UNLIMITED, healthy, infer, infer_arrays, infer_request

GIB = 2**30


def sized():
    """x (1), n () -> y: the sum of n copies of x, which are made in a run."""
    return net(
        "g (float[1] x, int64[1] n) => (float y) { e = Expand (x, n) f = Relu (e) y = ReduceSum <keepdims = 0> (f) }"
    )


def test_a_run_that_grows_beyond_the_budget_is_refused_and_the_next_one_answers(tmp_path):
    store(sized(), tmp_path, "sized")
    one = np.ones(1, np.float32)
    with running_server(tmp_path, "--memory-budget", str(GIB)) as running:
        with grpc.insecure_channel(running.address, options=UNLIMITED) as channel:

            def copies(n: int) -> float | str:
                try:
                    reply = infer(channel)(infer_request("sized", {"x": one, "n": np.array([n])}), timeout=60)
                except grpc.RpcError as error:
                    return str(error.code().name)
                return float(infer_arrays(reply)["y"])

            asked = [10, GIB, 10, 2**25, GIB, 2**28, 2**25]
            refused = "RESOURCE_EXHAUSTED"
            assert [copies(n) for n in asked] == [10, refused, 10, 2**25, refused, refused, 2**25]
            assert healthy(channel)
        assert peak(running.process.pid) < GIB


def test_threads_of_a_server_stay_the_same_with_twenty_models(tmp_path):
    counts = []
    for models in (1, 20):
        folder = tmp_path / str(models)
        for number in range(models):
            store(times(number), folder, f"m{number}")
        with running_server(folder) as running:
            with grpc.insecure_channel(running.address) as channel:
                for number in range(models):
                    infer(channel)(infer_request(f"m{number}", {"x": np.ones((1, 4), np.float32)}), timeout=60)
            counts.append(threads(running.process.pid))
    assert counts[1] <= counts[0] + 4  # gRPC's own come and go


def test_a_budget_below_an_empty_server_is_refused():
    said = "--memory-budget 1000: it is of the whole process"
    with pytest.raises(RuntimeError, match=said), running_server("models", "--memory-budget", "1000"):
        pass
