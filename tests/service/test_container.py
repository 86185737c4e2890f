"""A container of 2 GiB under everything that asks for memory: refused where it does not fit, never killed."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from nets import net  # tests/nets.py
from running import MODELS, Running, running_server

from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.v1 import tensor_pb2

from .memory_group import memory_group
from .nets import large, repository, store
from .process import peak
from .rpc import UNLIMITED, code, explain, explain_request, healthy, infer, infer_request

SECONDS = float(os.environ.get("ONNXPLAIN_CONTAINER_SECONDS", "600"))
CONTAINER = 2 * 2**30
REFUSED = {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED"}
FINE = REFUSED | {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"}
STREAM = "/onnxplain.v1.ExplainerService/ExplainStream"
PICTURE = {"input": np.zeros((1, 3, 224, 224), np.float32)}


def inflating() -> onnx.ModelProto:
    """x (N), size (2) -> (N): a tensor of size[0] by size[1] floats lives inside the run."""
    return net(
        """g (float[N] x, int64[2] size) => (float[N] y) {
            one = ReduceMean <keepdims = 0> (x)
            big = Expand (one, size)
            more = Add (big, one)
            mean = ReduceMean <keepdims = 0> (more)
            y = Mul (x, mean)
        }"""
    )


def ask(channel: grpc.Channel, rng: random.Random) -> object:
    """One call of a kind that takes memory."""
    pick = rng.randrange(8)
    if pick == 0:
        return infer(channel)(infer_request("mobilenet_v2", PICTURE), timeout=30)
    if pick == 1:
        recipe = v1.Recipe(name=rng.choice(["gradient", "lrp", "guided_backprop", "clrp1", "smooth_grad"]))
        return explain(channel)(explain_request("mobilenet_v2", PICTURE, recipe=recipe), timeout=30)
    if pick == 2:  # a graph of its own for each
        recipe = v1.Recipe(name="lrp")
        recipe.overrides["rules"] = [f"type:Conv=epsilon(epsilon={rng.random()})"]
        return explain(channel)(explain_request("mobilenet_v2", PICTURE, recipe=recipe), timeout=10)
    if pick == 3:  # 4 GB inside of a run
        feeds = {"x": np.ones(4, np.float32), "size": np.array([2**15, 2**15])}
        return infer(channel)(infer_request("inflating", feeds), timeout=30)
    if pick == 4:  # 60 MB there and back
        return infer(channel)(infer_request("any_length", {"x": np.ones((1, 15_000_000), np.float32)}), timeout=30)
    if pick == 5:
        return infer(channel)(
            infer_request(f"large{rng.randrange(4)}", {"x": np.ones((1, 512), np.float32)}), timeout=30
        )
    if pick == 6:  # a stream that promises much, sends half and waits
        return half_sent(channel)
    pending = explain(channel).future(explain_request("mobilenet_v2", PICTURE, "top5"), timeout=30)
    time.sleep(rng.random() * 0.2)
    pending.cancel()
    return None


def half_sent(channel: grpc.Channel) -> None:
    """A request with 200 MB in chunks, of which half comes."""
    request = v1.ExplainRequest(model=v1.ModelRef(name="any_length"), request_id="half")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 50_000_000]).chunked.byte_size = 200_000_000
    piece = bytes(2**20)

    def messages():
        yield v1.ExplainStreamRequest(request=request)
        for n in range(95):
            yield v1.ExplainStreamRequest(chunk=tensor_pb2.Chunk(key="x", offset=n * 2**20, data=piece))
        time.sleep(2)

    call = channel.stream_stream(
        STREAM,
        request_serializer=v1.ExplainStreamRequest.SerializeToString,
        response_deserializer=v1.ExplainStreamResponse.FromString,
    )
    for _ in call(messages(), timeout=20):
        pass


def load(running: Running, seconds: float, alive: Callable[[], bool]) -> Counter[str]:
    """Six clients for so long; how their calls ended."""
    counts: Counter[str] = Counter()
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < until and alive():
            with grpc.insecure_channel(running.address, options=UNLIMITED) as channel:
                try:
                    ask(channel, rng)
                    counts["OK"] += 1
                except grpc.RpcError as error:
                    counts[code(error)] += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def contained(folder: Path, seconds: float) -> None:
    repository(folder)
    store(inflating(), folder, "inflating")
    for n in range(4):
        store(large(60), folder, f"large{n}")
    shutil.copytree(MODELS / "mobilenet_v2", folder / "mobilenet_v2", ignore=shutil.ignore_patterns("samples"))
    with memory_group(CONTAINER) as group, running_server(folder, launcher=group.launcher) as running:
        counts = load(running, seconds, lambda: running.process.poll() is None)
        print(f"\n{dict(counts)}; resident at most {peak(running.process.pid) / 2**20:.0f} MiB")
        assert running.process.poll() is None and not group.killed
        assert set(counts) <= FINE and counts["OK"] > 10
        with grpc.insecure_channel(running.address, options=UNLIMITED) as channel:
            assert healthy(channel)
            infer(channel)(infer_request("digits_cnn", {"input": np.zeros((1, 1, 28, 28), np.float32)}), timeout=30)
        assert "Traceback" not in running.log and "unexpected" not in running.log, running.log[-3000:]


@pytest.mark.soak
def test_a_container_of_2_gib_is_not_killed_in_ten_minutes_of_everything(tmp_path):
    contained(tmp_path, SECONDS)
