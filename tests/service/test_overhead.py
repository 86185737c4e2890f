"""What the service costs beside onnxruntime: a millisecond where that matters, a twentieth where it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import onnx
import pytest
from running import MODELS, running_server

from onnxplain import Explainer
from onnxplain.machine import cpus
from onnxplain.runtime.session import Session

from .echo import PATH, echo_server
from .nets import deep, store
from .rpc import infer, infer_request

ROUNDS, CALLS = 40, 25  # turns, and calls of a turn: slow seconds of the machine fall on both


def turns(*runs: Callable[[], object], rounds: int = ROUNDS, calls: int = CALLS) -> list[list[float]]:
    """Seconds of each call, all taking turns."""
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, times in zip(runs, found, strict=True):
            run()
            time.sleep(0.05)  # onnxruntime's threads spin after a run
            run()
            for _ in range(calls):
                begun = time.perf_counter()
                run()
                times.append(time.perf_counter() - begun)
    return found


CASES = {
    "iris_mlp": {"X": np.ones((1, 4), np.float32)},
    "digits_cnn": {"input": np.random.default_rng(0).random((1, 1, 28, 28), np.float32)},
    "digits_vit": {"input": np.random.default_rng(0).random((1, 1, 28, 28), np.float32)},
    "16 KiB": {"x": np.random.default_rng(0).random((1, 4096), np.float32)},
    "64 KiB": {"x": np.random.default_rng(0).random((1, 16384), np.float32)},
}
DOUBLE = "g (float[N, L] x) => (float[N, L] y) { y = Add (x, x) }"


def bare_run(path: str, feeds: dict[str, np.ndarray], threads: int = 0) -> Callable[[], object]:
    session = Session(onnx.load(path).SerializeToString(), "cpu", threads)
    return lambda: session.run(feeds)


@pytest.fixture(scope="module")
def overheads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Medians in milliseconds of the service, of bare onnxruntime and of a bare echo of the request, by case.

    Both with one thread: else onnxruntime's spinning threads and gRPC's fight for two processors, and that is measured.
    """
    from nets import net

    folder = tmp_path_factory.mktemp("models")
    path = store(net(DOUBLE), folder, "double")
    found = {}
    with (
        running_server(MODELS, folder, "--threads", "1") as running,
        grpc.insecure_channel(running.address) as channel,
        echo_server() as address,
        grpc.insecure_channel(address) as echo_channel,
    ):
        call, echo = infer(channel), echo_channel.unary_unary(PATH)
        for name, feeds in CASES.items():
            kib = name.endswith("KiB")
            file = path if kib else MODELS / name / "1" / "model.onnx"
            request = infer_request("double" if kib else name, feeds)
            raw = request.SerializeToString()
            taken = turns(lambda r=request: call(r), bare_run(str(file), feeds, 1), lambda r=raw: echo(r))
            found[name] = [1e3 * float(np.median(times)) for times in taken]
            if kib:
                continue
            explainer = Explainer(file, threads=1)
            (seed,) = explainer.compiled.seeds
            classes = 3 if name == "iris_mlp" else 10
            seeded = {**feeds, seed: np.eye(1, classes, dtype=np.float32)}
            request = infer_request(f"{name}.explain.{explainer.recipe.title}", seeded)
            session = explainer.session
            raw = request.SerializeToString()
            taken = turns(lambda r=request: call(r), lambda s=session, f=seeded: s.run(f), lambda r=raw: echo(r))
            found[f"{name}.explain"] = [1e3 * float(np.median(times)) for times in taken]
    return found


@pytest.mark.soak
def test_small_requests_cost_a_millisecond_more_than_onnxruntime(overheads):
    print()
    for name, (service, bare, echo) in overheads.items():
        over = service - bare
        print(f"{name:>20}: {service:7.3f} ms, bare {bare:7.3f}, over {over:6.3f}; echo {echo:6.3f} of it")
    assert max(service - bare for service, bare, _ in overheads.values()) <= 1.0


def per_second(run: Callable[[], object], callers: int, calls: int = 40) -> float:
    """Calls that `callers` threads get done in a second, each calling again as soon as it has its answer."""
    with ThreadPoolExecutor(callers) as pool:
        run()
        begun = time.perf_counter()
        for done in [pool.submit(run) for _ in range(calls)]:
            done.result()
        return calls / (time.perf_counter() - begun)


@pytest.mark.soak
def test_nineteen_twentieths_of_bare_throughput_once_a_run_takes_twenty_milliseconds(tmp_path):
    path = store(deep(), tmp_path, "deep")
    x = {"x": np.random.default_rng(0).standard_normal((8, 1, 256)).astype(np.float32)}
    request, slots = infer_request("deep", x), cpus()
    found: dict[int, list[tuple[float, float]]] = {1: [], slots: []}
    with running_server(tmp_path) as running, grpc.insecure_channel(running.address) as channel:
        call, bare = infer(channel), bare_run(str(path), x)
        for callers in [*found] * 6:
            found[callers].append((per_second(lambda: call(request), callers), per_second(bare, callers)))
    shares = {}
    for callers, rates in found.items():
        service, plain = np.median(rates, axis=0)
        shares[callers] = float(np.median([a / b for a, b in rates]))
        print(f"\n{callers} at once: bare {plain:.1f}/s, service {service:.1f}/s: {100 * shares[callers]:.0f} %")
    assert plain < 50  # runs of 20 ms and more
    assert shares[slots] >= 0.95  # as many callers as slots: one alone waits for the wire while a processor idles
