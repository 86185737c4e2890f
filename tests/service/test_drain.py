"""The end of a server: calls being answered are answered, a kill leaves nothing that a start could trip over."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from running import free_port, running_server

from .nets import SIDE, large, store, times, work
from .process import eventually
from .rpc import code, healthy, infer, infer_request

ROW = np.ones((1, 1, SIDE), np.float32)


def drained(folder: Path, calls: int, milliseconds: float) -> dict[str, float]:
    """SIGTERM while so many calls of this length are open."""
    store(work(), folder, "work")
    with running_server(folder, "--threads", "1", "--drain-timeout", "60") as running:
        with grpc.insecure_channel(running.address) as channel:
            call = infer(channel)

            def request(steps: int):
                return infer_request("work", {"x": ROW, "steps": np.array(steps, np.int64)})

            call(request(10))
            begun = time.perf_counter()
            call(request(500))
            steps = int(milliseconds * 0.5 / (time.perf_counter() - begun))
            pending = [call.future(request(steps), timeout=60) for _ in range(calls)]
            assert eventually(lambda: pending[0].done(), 30)
            time.sleep(0.1)  # the others are in line by now
            signalled = time.perf_counter()
            running.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: "draining" in running.log, 10)
            time.sleep(0.2)
            with grpc.insecure_channel(running.address) as late, pytest.raises(grpc.RpcError) as caught:
                infer(late)(request(1), timeout=5)
            assert code(caught.value) == "UNAVAILABLE"
            codes = [each.code().name for each in pending]
            assert codes == ["OK"] * calls
            last = time.perf_counter()
            assert running.process.wait(20) == 0
            ended = time.perf_counter()
        assert "Traceback" not in running.log, running.log[-3000:]
    return {"drained s": last - signalled, "ended s after": ended - last}


def test_calls_in_flight_are_answered_after_sigterm(tmp_path):
    drained(tmp_path, 10, 60)


@pytest.mark.soak
def test_fifty_calls_in_flight_are_answered_after_sigterm(tmp_path):
    found = drained(tmp_path, 50, 200)
    print(f"\n{found}")
    assert found["ended s after"] < 5


def test_a_second_signal_ends_it_at_once(tmp_path):
    store(work(), tmp_path, "work")
    with (
        running_server(tmp_path, "--threads", "1", "--drain-timeout", "60") as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        endless = infer_request("work", {"x": ROW, "steps": np.array(10**7, np.int64)})
        pending = infer(channel).future(endless, timeout=60)
        time.sleep(0.5)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert running.process.poll() is None
        running.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: running.process.poll() is not None, 10)
        assert pending.code() is not grpc.StatusCode.OK


@pytest.mark.soak
def test_a_killed_server_is_back_within_five_seconds(tmp_path):
    store(large(100), tmp_path, "large")
    for _ in range(2):
        begun = time.perf_counter()
        with running_server(tmp_path) as running:
            seconds = time.perf_counter() - begun
            with grpc.insecure_channel(running.address) as channel:
                assert healthy(channel)
                pending = infer(channel).future(infer_request("large", {"x": np.ones((8, 512), np.float32)}))
                running.process.kill()
                running.process.wait(10)
                assert pending.code().name in ("UNAVAILABLE", "OK")
            print(f"\nready after {seconds:.2f} s; {running.log.splitlines()[1]}")
    assert seconds < 5


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path):
    """/dev/full: every write ends with ENOSPC."""
    store(times(2), tmp_path, "m")
    port = free_port()
    command = [sys.executable, "-m", "onnxplain", "serve", str(tmp_path), "--port", str(port), "--http-port", "0"]
    command += ["--metrics-port", "0"]
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(command, stdout=full, stderr=full, stdin=subprocess.DEVNULL)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call, request = infer(channel), infer_request("m", {"x": np.ones((1, 4), np.float32)})
            assert eventually(lambda: answers(call, request), 30)
            for _ in range(20):
                call(request, timeout=5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, 120)  # 120: Python could not flush its standard streams
    finally:
        process.kill()
        process.wait()


def answers(call, request) -> bool:
    try:
        call(request, timeout=5)
    except grpc.RpcError:
        return False
    return True


FULL = """
import resource, signal, sys
from pathlib import Path
from onnxplain.errors import InputError
from onnxplain.sources.cache import ContentCache

def fill(folder):
    (folder / "model.onnx").write_bytes(bytes(100_000))
    return {}

cache = ContentCache(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    cache.put("a", fill)
except InputError as error:
    print(error)
assert cache.get("a") is None
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert (cache.put("a", fill).folder / "model.onnx").stat().st_size == 100_000
assert cache.get("a") is not None
"""


def test_a_cache_without_room_says_so_and_works_when_there_is_room_again(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the model cache cannot be written") and done.stdout.count("\n") == 1
