"""Half an hour of everything at once: memory, files and threads stay as they were."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import threading
import time

import grpc
import numpy as np
import pytest
from running import Running, free_port, running_server

from onnxplain.v1 import explainer_pb2 as v1

from .nets import SIDE, repository, store, times
from .process import files, resident, threads
from .rpc import code, explain, explain_request, healthy, infer, infer_request

SECONDS = float(os.environ.get("ONNXPLAIN_SOAK_SECONDS", "1800"))
FINE = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED"}
METHODS = ("gradient", "lrp", "guided_backprop", "gradient_x_input", "integrated_gradients", "smooth_grad", "clrp1")
RATE = 40  # calls a second, over all
ONE = np.ones((1, 1, SIDE), np.float32)


def mixed(running: Running, http_at: int, number: int, stop: threading.Event, counts: dict[str, int]) -> None:
    """One client: answers, reasons by many methods, recipes of its own, errors, deadlines, cancellations, HTTP.

    A new connection every few hundred calls.
    """
    rng = random.Random(number)
    while not stop.is_set():
        with grpc.insecure_channel(running.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            ask, reasons = infer(channel), explain(channel)
            for _ in range(300):
                if stop.is_set():
                    return
                kind = rng.randrange(13)
                rows = rng.randrange(1, 9)
                picture = {"input": np.full((rows, 1, 28, 28), rng.random(), np.float32)}
                try:
                    if kind < 3:
                        ask(infer_request("digits_cnn", picture), timeout=10)
                    elif kind < 5:
                        ask(infer_request("digits_cnn.explain", picture), timeout=10)
                    elif kind < 7:
                        reasons(explain_request("digits_cnn", picture, "top2"), timeout=10)
                    elif kind == 7:
                        ask(infer_request("times", {"x": np.ones((1, rng.randrange(3, 5)), np.float32)}), timeout=10)
                    elif kind == 8:
                        ask(infer_request("work", {"x": ONE, "steps": np.array(2000, np.int64)}), timeout=0.02)
                    elif kind == 9:
                        recipe = v1.Recipe(name=rng.choice(METHODS))
                        reasons(explain_request("digits_cnn", picture, recipe=recipe), timeout=20)
                    elif kind == 10 and rng.random() < 0.1:  # a graph of its own, rarely asked for again
                        recipe = v1.Recipe(name="lrp")
                        recipe.overrides.update({"rules": [f"type:Conv=epsilon(epsilon={rng.random():.6f})"]})
                        iris = {"X": np.ones((1, 4), np.float32)}
                        reasons(explain_request("iris_mlp", iris, recipe=recipe), timeout=20)
                    elif kind < 12:
                        over_http(http_at, rng, rows)
                    else:
                        pending = reasons.future(explain_request("iris_mlp", {"X": np.ones((1, 4), np.float32)}))
                        time.sleep(rng.random() * 0.003)
                        pending.cancel()
                    end = "OK"
                except grpc.RpcError as error:
                    end = code(error)
                except (AssertionError, OSError) as error:
                    end = repr(error)
                counts[end] = counts.get(end, 0) + 1
                stop.wait(4 / RATE)


def over_http(port: int, rng: random.Random, rows: int) -> None:
    """An answer or reasons by REST; a status that is none of those of FINE is an error."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        tensor = {"name": "X", "datatype": "FP32", "shape": [rows, 4], "data": [rng.random()] * (4 * rows)}
        path = rng.choice(["infer", "explain"])
        connection.request("POST", f"/v2/models/iris_mlp/{path}", json.dumps({"inputs": [tensor]}))
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status in (200, 429), (answer.status, content[:300])


def run(folder, seconds: float, every: float) -> tuple[list[tuple[float, int, int, int]], dict[str, int], str]:
    """(seconds, bytes, files, threads) now and then, codes, log."""
    repository(folder)
    counts: dict[str, int] = {}
    stop = threading.Event()
    samples = []
    http_at = free_port()
    arguments = ("--model-control-mode", "poll", "--poll-seconds", "0.5", "--threads", "1", "--http-port", str(http_at))
    with running_server(folder, *arguments) as running, grpc.insecure_channel(running.address) as channel:
        clients = [threading.Thread(target=mixed, args=(running, http_at, n, stop, counts)) for n in range(4)]
        for client in clients:
            client.start()
        begun = swapped = time.monotonic()
        version, pid = 1, running.process.pid
        try:
            while (now := time.monotonic() - begun) < seconds:
                time.sleep(every)
                assert healthy(channel)
                samples.append((now, resident(pid), files(pid), threads(pid)))
                if time.monotonic() - swapped > 10:
                    version, swapped = version + 1, time.monotonic()
                    store(times(1), folder, "times", version)
        finally:
            stop.set()
            for client in clients:
                client.join()
        log = running.log
    return samples, counts, log


def test_a_few_seconds_of_everything(tmp_path):
    samples, counts, log = run(tmp_path, 4, 0.5)
    assert set(counts) <= FINE and counts["OK"] > 20
    assert "Traceback" not in log and "unexpected" not in log, log[-3000:]
    assert len(samples) > 4


@pytest.mark.soak
def test_half_an_hour_of_everything(tmp_path):
    samples, counts, log = run(tmp_path, SECONDS, max(1.0, SECONDS / 120))
    at, memory, opened, running = map(np.array, zip(*samples[len(samples) // 3 :], strict=True))  # after the warm-up
    slope = np.polyfit(at, memory, 1)[0] * 600 / 2**20
    print(f"\n{SECONDS:.0f} s: {counts}")
    print(f"memory {memory[0] / 2**20:.0f} to {memory[-1] / 2**20:.0f} MiB, {slope:+.2f} MiB in 10 minutes")
    print(f"files {opened.min()} to {opened.max()}; threads {running.min()} to {running.max()}")
    assert set(counts) <= FINE
    assert "Traceback" not in log and "unexpected" not in log, log[-3000:]
    assert opened.max() - opened.min() <= 8  # connections come and go
    assert running.max() - running.min() <= 8
    assert slope < (1 if SECONDS >= 1800 else 10)  # a short run has a warm-up in it
