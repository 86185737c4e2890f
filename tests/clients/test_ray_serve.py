"""The service on two nodes of Ray: replicas killed under load, scaled up and down, every answer the engine's own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from nets import MODELS
from running import running_server

from onnxplain import Client, Explainer
from onnxplain.cli import main
from onnxplain.errors import InputError, NotFound, OnnxplainError, Unavailable

from .conftest import ROOT, environment
from .processes import below

pytestmark = [pytest.mark.clients, pytest.mark.timeout(400)]
DIGITS = np.load(MODELS / "digits_cnn" / "samples" / "ten_digits.npz")["input"]
CALLERS = 8
PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}  # 5: a busy machine's proxy is killed before it is there
SCALING = {"rows": 2, "min_replicas": 1, "max_replicas": 2, "num_cpus": 0.5}
DELAYS = {"upscale_seconds": 2, "downscale_seconds": 4}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(process, ports of gRPC and HTTP) of a cluster that serves what `export --ray-serve` says, scaling quicker."""
    python = environment("ray") / "bin" / "python"
    folder = tmp_path_factory.mktemp("ray")
    main(["export", str(MODELS / "digits_cnn"), "--ray-serve", str(folder)])
    config = yaml.safe_load((folder / "serve.yaml").read_text())
    config["grpc_options"]["port"], config["http_options"]["port"] = free_port(), free_port()
    config["proxy_location"] = "HeadOnly"  # two on one machine would want the same ports
    config["applications"][0]["args"] |= {**SCALING, **DELAYS, "server": {"max_batch_rows": 1, "allow_export": True}}
    (folder / "quick.yaml").write_text(yaml.safe_dump(config))
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | PATIENT
    running = subprocess.Popen(
        [python, ROOT / "tests" / "clients" / "ray_cluster.py", folder / "quick.yaml"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=(folder / "log").open("w"), env={**env, "PYTHONPATH": str(ROOT)}, text=True,
    )  # fmt: skip
    assert running.stdout is not None and running.stdin is not None
    try:
        line = running.stdout.readline()
        assert line, (folder / "log").read_text()[-3000:]
        ready = json.loads(line)
        print(ready)
        assert ready["nodes"] == 2
        yield running, ready["port"], ready["http"]
    finally:
        running.stdin.close()
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            running.kill()


def replicas(running: subprocess.Popen[str]) -> list[int]:
    return [pid for pid, command in below(running.pid).items() if "ServeReplica:onnxplain:models" in command]


def memory(pids: list[int]) -> int:
    """Megabytes that are theirs alone."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("Pss:")) // 1024


def wait_for(count: int, running: subprocess.Popen[str], seconds: float) -> float:
    """Seconds until there are so many replicas."""
    began = time.monotonic()
    while len(replicas(running)) != count:
        assert time.monotonic() - began < seconds, f"{len(replicas(running))} replicas after {seconds} s, not {count}"
        time.sleep(0.2)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def expected():
    explainer = Explainer(MODELS / "digits_cnn" / "1" / "model.onnx", "lrp", bounds=([0.0], [1.0]), threads=1)
    return [explainer.explain(DIGITS[n : n + 1]).relevances["input"].tobytes() for n in range(len(DIGITS))]


def test_every_kind_of_call_answers_as_the_server_does(cluster, expected):
    _, port, _ = cluster
    with Client(f"127.0.0.1:{port}") as client:
        assert client.explain("digits_cnn", DIGITS[:1]).relevances["input"].tobytes() == expected[0]
        looped = client.explain(
            "digits_cnn", DIGITS[:1], method="integrated_gradients", steps=8,
            progress=lambda *told: None,  # by ExplainStream
        )  # fmt: skip
        assert looped.relevances["input"].shape == (1, 1, 28, 28)
        assert client.compile("digits_cnn") is not None  # a stream of pieces
        assert client.ready("digits_cnn") and not client.ready("nope")
        assert {"digits_cnn", "iris_mlp"} <= {model.name for model in client.models()}
        with pytest.raises(NotFound, match="nope"):
            client.explain("nope", DIGITS[:1])
        with pytest.raises(InputError, match="expected"):
            client.explain("iris_mlp", DIGITS[:1])


def test_a_call_is_measured_beside_one_of_the_server(cluster):
    """Told, not judged: where one machine is enough, Ray only costs."""
    _, port, _ = cluster
    times: dict[str, list[float]] = {"ray": [], "serve": []}
    with (
        running_server(MODELS, "--threads", "1") as server,
        Client(f"127.0.0.1:{port}") as ray,
        Client(server.address) as serve,
    ):
        for name, client in 150 * (("ray", ray), ("serve", serve)):
            began = time.monotonic()
            client.explain("digits_cnn", DIGITS[:1])
            times[name].append(1e3 * (time.monotonic() - began))
    print({name: [round(float(np.percentile(found, p)), 2) for p in (50, 99)] for name, found in times.items()})


def asked(port: int, path: str, body: dict[str, object] | None = None) -> tuple[int, dict[str, object]]:
    """Status and JSON that HTTP answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_rest_answers_as_the_server_does(cluster, expected):
    _, _, port = cluster
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": DIGITS[:1].ravel().tolist()}
    status, reply = asked(port, "/v2/models/digits_cnn.explain/infer", {"inputs": [tensor]})
    assert status == 200, reply
    (relevance,) = [output for output in reply["outputs"] if output["name"] == "input.relevance"]
    assert np.asarray(relevance["data"], np.float32).tobytes() == expected[0]
    assert asked(port, "/v2/models/bc_logreg")[0] == 200  # loaded because it is asked for
    assert asked(port, "/v2/models/nope")[0] == 404
    assert asked(port, "/v2/models/digits_cnn/infer", {"inputs": []})[0] == 400


def test_replicas_killed_under_load_change_no_answer_and_are_replaced(cluster, expected):
    running, port, _ = cluster
    wrong, failures, good = [], Counter[str](), Counter[int]()
    stop = threading.Event()

    def call(number: int) -> None:
        with Client(f"127.0.0.1:{port}") as client:
            while not stop.is_set():
                n = (number + sum(good.values())) % len(DIGITS)
                try:
                    found = client.explain("digits_cnn", DIGITS[n : n + 1]).relevances["input"].tobytes()
                except Unavailable:
                    failures["UNAVAILABLE"] += 1
                    time.sleep(0.1)
                    continue
                except OnnxplainError as error:
                    failures[f"{type(error).__name__} {error}"] += 1
                    continue
                good[number] += 1
                if found != expected[n]:
                    wrong.append(n)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(CALLERS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        up = wait_for(2, running, 90)
        for _ in range(2):
            before = sum(good.values())
            victim = replicas(running)[0]
            os.kill(victim, signal.SIGKILL)
            until = time.monotonic() + 60
            while (victim in replicas(running) or len(replicas(running)) < 2) and time.monotonic() < until:
                time.sleep(0.2)
            while sum(good.values()) < before + 100 and time.monotonic() < until:
                time.sleep(0.1)
            assert sum(good.values()) >= before + 100, failures
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    rate = sum(good.values()) / (time.monotonic() - began)
    print(f"{rate:.0f} calls a second, {dict(failures)}, up in {up:.1f} s, {memory(list(below(running.pid)))} MB")
    assert not wrong and set(failures) <= {"UNAVAILABLE"}, failures
    print(f"down in {wait_for(1, running, 120):.1f} s")
    with Client(f"127.0.0.1:{port}") as client:
        assert client.explain("digits_cnn", DIGITS[:1]).relevances["input"].tobytes() == expected[0]
