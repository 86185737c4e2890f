"""Laws of `--isolate`: no client sees a difference, and whatever happens to a worker happens to its model only."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from google.rpc import code_pb2
from grpc.aio import AioRpcError, Metadata
from nets import net
from running import MODELS, in_process_server, running_server

from onnxplain.errors import (
    Busy,
    Denied,
    Expired,
    InputError,
    NotFound,
    OutOfMemory,
    Unauthenticated,
    Unavailable,
    UnknownName,
    UnsupportedModel,
    UnsupportedOp,
)
from onnxplain.inputs.settings import ModelSettings
from onnxplain.server import runtime_folder
from onnxplain.server.grpc_status import DETAILS, status_of
from onnxplain.server.isolation import proxy
from onnxplain.server.isolation.errors import worker_error
from onnxplain.server.isolation.log_forwarder import LINES, LogForwarder
from onnxplain.server.isolation.messages import WorkerConfig, failure_report, observation, reported_error
from onnxplain.server.isolation.pool import WorkerPool
from onnxplain.server.isolation.process import WorkerProcess
from onnxplain.server.isolation.proxy import IsolatedModel
from onnxplain.server.options import ServerOptions
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import DirectorySource, ResolvedModel
from onnxplain.sources.cache import ContentCache
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.inference import INFERENCE, RPCS
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import datatype_of, v1_array, v1_tensor

EXPLAINER = "/onnxplain.v1.ExplainerService/"
SIDE = 256
BOUND = 2**30  # bytes of a worker's address space
DIGIT = np.load(MODELS / "digits_cnn" / "samples" / "three.npy").astype(np.float32).reshape(1, 1, 28, 28)
FLOWER = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def work() -> onnx.ModelProto:
    """x (N, SIDE), steps () -> y (N, SIDE) after `steps` products of matrices, between which a run can be stopped."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((SIDE, SIDE)))[0].astype(np.float32)
    return net(
        f"""g (float[N, {SIDE}] x, int64 steps) => (float[N, {SIDE}] y) {{
            more = Constant <value = bool {{1}}> ()
            y, s = Loop (steps, more, x, w) <body = body (int64 i, bool c, float[N, {SIDE}] a, float[{SIDE}, {SIDE}] b)
                    => (bool c2, float[N, {SIDE}] a2, float[{SIDE}, {SIDE}] b2) {{
                b2 = MatMul (b, w)
                a2 = MatMul (a, b2)
                c2 = Identity (c)
            }}>
        }}""",
        w=q,
    )


def bomb() -> onnx.ModelProto:
    """size (1) -> the mean of as many ones: eight bytes that ask for any amount of memory."""
    return net(
        """g (int64[1] size) => (float y) {
            ones = ConstantOfShape <value = float[1] {1.0}> (size)
            y = ReduceMean <keepdims = 0> (ones)
        }"""
    )


def store(model: onnx.ModelProto, folder: Path, name: str) -> None:
    place = folder / name / "1"
    place.mkdir(parents=True)
    onnx.save(model, place / "model.onnx")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("digits_cnn", "iris_mlp"):
        shutil.copytree(MODELS / name, folder / name, ignore=shutil.ignore_patterns("samples"))
    store(work(), folder, "work")
    store(bomb(), folder, "bomb")
    return folder


class Both:
    """The same models without (`plain`) and with isolation (`isolated`), in one event loop of a thread of its own."""

    def __init__(self, plain: Any, isolated: Any, loop: asyncio.AbstractEventLoop):
        self.plain, self.isolated, self.loop = plain, isolated, loop
        self.channels = {s: grpc.insecure_channel(f"127.0.0.1:{s.port}") for s in (plain, isolated)}

    def model(self, name: str) -> IsolatedModel:
        return self.isolated.repository.entry(name).served

    def ask(self, method: str, request: Any, server: Any = None, **more: Any) -> Any:
        channel = self.channels[server or self.isolated]
        kind = RPCS[method]
        call = channel.unary_unary(f"/{INFERENCE}/{method}", kind.request.SerializeToString, kind.response.FromString)
        return call(request, timeout=more.pop("timeout", 60), **more)

    def explainer(self, method: str, request: Any, reply: Any, server: Any = None) -> Any:
        channel = self.channels[server or self.isolated]
        call = channel.unary_unary(EXPLAINER + method, lambda m: m.SerializeToString(), reply.FromString)
        return call(request, timeout=60)

    def back(self, name: str, pid: int | None, seconds: float = 20.0) -> float:
        """Seconds until a model has a worker other than `pid` and answers."""
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            model = self.model(name)
            if model.pid not in (None, pid) and self.ask("ModelReady", oip.ModelReadyRequest(name=name)).ready:
                return time.monotonic() - begun
            time.sleep(0.01)
        raise AssertionError(f"{name} did not come back")


@pytest.fixture(scope="module")
def both(repository):
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    wait = lambda work, seconds=90: asyncio.run_coroutine_threadsafe(work, loop).result(seconds)  # noqa: E731
    common = {"port": 0, "metrics_port": 0, "allow_export": True, "isolate_memory": BOUND}
    servers = [
        in_process_server(ServerOptions(isolate=isolate, **common), [DirectorySource(repository)])
        for isolate in (False, True)
    ]
    entered = [wait(server.__aenter__()) for server in servers]
    found = Both(*entered, loop)
    yield found
    for channel in found.channels.values():
        channel.close()
    for server in servers:
        wait(server.__aexit__(None, None, None))
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def infer(model: str, version: str = "", **arrays: np.ndarray) -> Any:
    request = oip.ModelInferRequest(model_name=model, model_version=version, id="7")
    for name, array in arrays.items():
        request.inputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def explain(model: str = "digits_cnn", array: np.ndarray = DIGIT, *targets: str, **more: Any) -> v1.ExplainRequest:
    name = {"digits_cnn": inputs("digits_cnn"), "iris_mlp": inputs("iris_mlp")}[model]
    return v1.ExplainRequest(
        model=v1.ModelRef(name=model),
        inputs=[v1_tensor(name, array)],
        targets=[v1.Target(expression=target) for target in targets],
        **more,
    )


def inputs(model: str) -> str:
    return str(onnx.load(MODELS / model / "1" / "model.onnx").graph.input[0].name)


# Nobody sees a difference


OIP_CALLS = {
    "infer": ("ModelInfer", lambda: infer("digits_cnn", **{inputs("digits_cnn"): DIGIT})),
    "infer by version": ("ModelInfer", lambda: infer("digits_cnn", "1", **{inputs("digits_cnn"): DIGIT})),
    "explain as infer": ("ModelInfer", lambda: infer("digits_cnn.explain", **{inputs("digits_cnn"): DIGIT})),
    "another recipe": ("ModelInfer", lambda: infer("iris_mlp.explain.gradient", **{inputs("iris_mlp"): FLOWER})),
    "metadata": ("ModelMetadata", lambda: oip.ModelMetadataRequest(name="digits_cnn.explain")),
    "config": ("ModelConfig", lambda: oip.ModelConfigRequest(name="digits_cnn")),
    "ready": ("ModelReady", lambda: oip.ModelReadyRequest(name="digits_cnn.explain")),
    "not ready": ("ModelReady", lambda: oip.ModelReadyRequest(name="digits_cnn.explain.nothing")),
    "index": ("RepositoryIndex", lambda: oip.RepositoryIndexRequest()),
}


@pytest.mark.parametrize("call", OIP_CALLS)
def test_inference_replies_are_equal_byte_for_byte(both, call):
    method, request = OIP_CALLS[call]
    replies = [both.ask(method, request(), server) for server in (both.plain, both.isolated)]
    assert replies[0].SerializeToString(deterministic=True) == replies[1].SerializeToString(deterministic=True)


@pytest.mark.parametrize("targets", [(), ("top3",), ("seven",)])
def test_explanations_are_equal_byte_for_byte(both, targets):
    names = Path(MODELS, "digits_cnn", "labels.txt").read_text().split()
    asked = [names[7] if target == "seven" else target for target in targets]
    replies = []
    for server in (both.plain, both.isolated):
        reply = both.explainer("Explain", explain("digits_cnn", DIGIT, *asked), v1.ExplainResponse, server)
        reply.ClearField("timing")
        replies.append(reply.SerializeToString(deterministic=True))
    assert replies[0] == replies[1]


def test_what_can_be_explained_is_equal(both):
    request = v1.GetExplainabilityRequest(model=v1.ModelRef(name="digits_cnn"))
    plain, isolated = (
        both.explainer("GetExplainability", request, v1.GetExplainabilityResponse, s)
        for s in (both.plain, both.isolated)
    )
    assert plain == isolated


def test_compiled_graphs_are_equal_byte_for_byte(both):
    graphs = []
    for server in (both.plain, both.isolated):
        call = both.channels[server].unary_stream(
            EXPLAINER + "CompileGraph", lambda m: m.SerializeToString(), v1.CompileGraphResponse.FromString
        )
        pieces = list(call(v1.CompileGraphRequest(model=v1.ModelRef(name="digits_cnn")), timeout=60))
        graphs.append([piece.SerializeToString(deterministic=True) for piece in pieces])
    assert graphs[0] == graphs[1]
    assert len(graphs[0]) >= 2


def test_streams_are_answered_as_single_calls_are(both):
    call = both.channels[both.isolated].stream_stream(
        EXPLAINER + "ExplainStream", lambda m: m.SerializeToString(), v1.ExplainStreamResponse.FromString
    )
    requests = [explain(request_id=str(n)) for n in range(3)]
    replies = list(call(iter([v1.ExplainStreamRequest(request=r) for r in requests]), timeout=60))
    found = {reply.request_id: reply.response for reply in replies if reply.WhichOneof("message") == "response"}
    alone = both.explainer("Explain", explain(), v1.ExplainResponse)
    assert set(found) == {"0", "1", "2"}
    for response in found.values():
        assert np.allclose(relevance(response), relevance(alone), rtol=0, atol=1e-5 * abs(relevance(alone)).max())


def relevance(reply: v1.ExplainResponse) -> np.ndarray:
    return v1_array(reply.attributions[0].relevance, "relevance")


def test_statistics_are_those_of_the_worker(both):
    request = infer("iris_mlp", **{inputs("iris_mlp"): FLOWER})

    def count():
        return both.ask("ModelStatistics", oip.ModelStatisticsRequest(name="iris_mlp")).model_stats[0].inference_count

    before = count()
    both.ask("ModelInfer", request)
    assert eventually(lambda: count() == before + 1)  # a run is counted behind its answer
    everything = {s.name for s in both.ask("ModelStatistics", oip.ModelStatisticsRequest()).model_stats}
    assert {"digits_cnn", "digits_cnn.explain", "iris_mlp", "work", "bomb"} <= everything


def test_runs_are_counted_by_the_parent(both):
    both.ask("ModelInfer", infer("iris_mlp", **{inputs("iris_mlp"): FLOWER}))
    registry = both.isolated.metrics.registry
    count = lambda: registry.get_sample_value("onnxplain_batch_rows_count", {"model": "iris_mlp", "kind": "infer"})  # noqa: E731
    assert eventually(lambda: (count() or 0) >= 1)


BAD = {
    "shape": infer("iris_mlp", **{inputs("iris_mlp"): FLOWER[:, :2].copy()}),
    "input": infer("iris_mlp", nothing=FLOWER),
    "type": infer("iris_mlp", **{inputs("iris_mlp"): FLOWER.astype(np.float64)}),
    "recipe": infer("iris_mlp.explain.nothing", **{inputs("iris_mlp"): FLOWER}),
    "version": infer("iris_mlp", "3", **{inputs("iris_mlp"): FLOWER}),
    "size": infer("iris_mlp", **{inputs("iris_mlp"): np.repeat(FLOWER, 100, 0)}),
    "not explainable": infer("bomb.explain", size=np.array([3])),
}


@pytest.mark.parametrize("what", BAD)
def test_errors_are_equal_in_code_text_and_details(both, what):
    found = []
    for server in (both.plain, both.isolated):
        with pytest.raises(grpc.RpcError) as error:
            both.ask("ModelInfer", BAD[what], server)
        details = dict(error.value.trailing_metadata())[DETAILS]
        found.append((error.value.code(), error.value.details(), details))
    assert found[0] == found[1]


def test_errors_name_the_same_field(both):
    for server in (both.plain, both.isolated):
        with pytest.raises(grpc.RpcError, match="9999") as error:
            both.explainer("Explain", explain("iris_mlp", FLOWER, "9999"), v1.ExplainResponse, server)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


class Fault(UnsupportedModel):
    """One that knows several nodes."""

    def __init__(self, text: str, violations: dict[str, str] | None = None):
        super().__init__(text)
        self.violations = violations or {}


@pytest.mark.parametrize(
    "error",
    [
        InputError("a").at("inputs[0].shape"),
        UnknownName("target", "dgo", ["dog"]).at("targets[0]"),
        NotFound("b").at("model.name"),
        UnsupportedModel("c"),
        UnsupportedOp("n1: no derivative").at("n1"),
        Busy("d", 0.25),
        Busy("too large", 0.0),
        OutOfMemory("e"),
        Expired("f"),
        Denied("g"),
        Unauthenticated("h"),
        Unavailable("i"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_the_way_through_a_worker(error):
    status = status_of(error)
    code = grpc.StatusCode[code_pb2.Code.Name(status.code)]
    arrived = worker_error(
        AioRpcError(code, Metadata(), Metadata((DETAILS, status.SerializeToString())), status.message)
    )
    assert status_of(arrived) == status


def test_several_nodes_survive_too():
    error = UnsupportedOp("two nodes are in the way")
    error.violations = {"n1": "no rule for A", "n2": "no rule for B"}
    status = status_of(error)
    arrived = worker_error(
        AioRpcError(
            grpc.StatusCode.FAILED_PRECONDITION, Metadata(), Metadata((DETAILS, status.SerializeToString())), "two"
        )
    )
    assert isinstance(arrived, UnsupportedOp)
    assert status_of(arrived) == status


def test_a_broken_connection_is_no_answer_of_the_worker():
    assert worker_error(AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "Socket closed")) is None
    nonsense = Metadata((DETAILS, b"\xff\xff"))
    assert worker_error(AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), nonsense, "")) is None


# A worker that dies


@linux
def test_a_worker_killed_under_load_costs_unavailable_only_and_comes_back(both):
    request, name = infer("digits_cnn", **{inputs("digits_cnn"): DIGIT}), "digits_cnn"
    scores = lambda: np.frombuffer(both.ask("ModelInfer", request).raw_output_contents[0], np.float32)  # noqa: E731
    right = scores()
    restarts = lambda: both.isolated.metrics.registry.get_sample_value("onnxplain_worker_restarts_total")  # noqa: E731
    before, codes, stop = restarts(), [], threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                codes.append("OK" if np.allclose(scores(), right, rtol=0, atol=1e-5 * abs(right).max()) else "wrong")
            except grpc.RpcError as error:
                codes.append(error.code().name)
                assert "process" in error.details()
                time.sleep(0.01)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    pid = both.model(name).pid
    os.kill(pid, signal.SIGKILL)
    seconds = both.back(name, pid)
    time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(codes) == {"OK", "UNAVAILABLE"}
    assert codes[-1] == "OK"
    assert seconds < 15  # 0.6 on two idle cores; tests of others may keep them busy
    assert eventually(lambda: restarts() == before + 1)


@linux
def test_a_call_in_flight_learns_how_its_process_ended(both):
    pid = both.model("work").pid
    future = (
        both.channels[both.isolated]
        .unary_unary(
            f"/{INFERENCE}/ModelInfer", lambda m: m.SerializeToString(), RPCS["ModelInfer"].response.FromString
        )
        .future(long_work(), timeout=30)
    )
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    error = future.exception()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "killed by signal 9" in error.details()
    # The others did not notice.
    assert both.ask("ModelInfer", infer("iris_mlp", **{inputs("iris_mlp"): FLOWER})).raw_output_contents
    both.back("work", pid)


@linux
def test_a_memory_bomb_hurts_its_own_model_only(both):
    iris = infer("iris_mlp", **{inputs("iris_mlp"): FLOWER})
    pids = {name: both.model(name).pid for name in ("iris_mlp", "digits_cnn", "work")}
    with pytest.raises(grpc.RpcError) as error:
        both.ask("ModelInfer", infer("bomb", size=np.array([2**34])))  # 64 GiB
    assert error.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
    assert both.ask("ModelInfer", iris).raw_output_contents
    assert pids == {name: both.model(name).pid for name in pids}
    both.back("bomb", None)
    assert both.ask("ModelInfer", infer("bomb", size=np.array([5]))).raw_output_contents


# Deadlines and cancellation


def long_work() -> Any:
    """Half a minute of products, on the machine that this was written on."""
    return infer("work", x=np.zeros((1, SIDE), np.float32), steps=np.array(60_000))


def short_work() -> Any:
    return infer("work", x=np.zeros((1, SIDE), np.float32), steps=np.array(1))


def test_a_deadline_ends_the_work_of_the_worker(both):
    pid = both.model("work").pid
    with pytest.raises(grpc.RpcError) as error:
        both.ask("ModelInfer", long_work(), timeout=0.3)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    begun = time.monotonic()
    both.ask("ModelInfer", short_work())  # the only slot is free again
    assert time.monotonic() - begun < 2
    assert both.model("work").pid == pid


def test_a_cancelled_call_ends_the_work_of_the_worker(both):
    call = (
        both.channels[both.isolated]
        .unary_unary(
            f"/{INFERENCE}/ModelInfer", lambda m: m.SerializeToString(), RPCS["ModelInfer"].response.FromString
        )
        .future(long_work(), timeout=60)
    )
    time.sleep(0.3)
    call.cancel()
    begun = time.monotonic()
    both.ask("ModelInfer", short_work())
    assert time.monotonic() - begun < 2


# What a worker may do


def environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(entry.decode().split("=", 1) for entry in entries if entry)


@linux
def test_a_worker_is_confined(both):
    pid = both.model("iris_mlp").pid
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split() for line in lines[1:]}
    assert limits["Max core file size"][:2] == ["0", "0"]
    assert int(limits["Max file size"][1]) <= 2**20
    assert int(limits["Max open files"][1]) <= 1024
    assert BOUND < int(limits["Max address space"][1]) < BOUND + 2**31  # above what the interpreter had
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert os.getsid(pid) == pid


@linux
def test_a_worker_inherits_no_sockets_and_no_secrets(repository):
    secret = {"ONNXPLAIN_WEBHOOK_SECRET": "s3cret", "MLFLOW_TRACKING_TOKEN": "t0ken"}
    with running_server(repository / "iris_mlp" / "1" / "model.onnx", "--isolate", env=secret) as running:
        for pid in workers(running.process.pid):
            found = environment(pid)
            assert not {"ONNXPLAIN_WEBHOOK_SECRET", "MLFLOW_TRACKING_TOKEN"} & found.keys()
            listening = {inode(line) for line in Path("/proc/net/tcp").read_text().splitlines()[1:]}
            ours = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
            assert not {f"socket:[{number}]" for number in listening} & ours


@pytest.fixture
def short_folder():
    """For sockets, whose names may not be as long as those of pytest's folders are."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        yield Path(folder)


@linux
def test_no_worker_outlives_a_parent_that_was_killed(repository, short_folder):
    model, temporary = repository / "iris_mlp" / "1" / "model.onnx", {"TMPDIR": str(short_folder)}
    with running_server(model, "--isolate", env=temporary) as running:
        pids = workers(running.process.pid)
        assert pids
        running.process.kill()
        running.process.wait()
        assert eventually(lambda: not any(alive(pid) for pid in pids))


@linux
def test_sigterm_ends_parent_and_workers(repository, short_folder):
    model, temporary = repository / "iris_mlp" / "1" / "model.onnx", {"TMPDIR": str(short_folder)}
    with running_server(model, "--isolate", env=temporary) as r:
        pids = workers(r.process.pid)
        folders = list(short_folder.glob("onnxplain-*"))
        assert folders
        assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in folders)
        r.process.terminate()
        assert r.process.wait(20) == 0
    assert not any(alive(pid) for pid in pids)
    assert not list(short_folder.glob("onnxplain-*"))


def workers(pid: int) -> list[int]:
    """Processes that serve or will serve a model for `pid`, and are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            number = int(entry.name)
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid and alive(number):
                found.append(number)
    return found


def inode(line: str) -> str:
    return line.split()[9]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(true: Any, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.02)
    return bool(true())


# Loading


@contextlib.asynccontextmanager
async def pool(seconds: float = 60.0, **more: Any):
    options = ServerOptions(isolate=True, port=0, metrics_port=0, max_load_seconds=seconds, **more)
    found = WorkerPool(options, Metrics())
    try:
        yield found
    finally:
        await found.close()


def iris() -> ResolvedModel:
    return ResolvedModel(MODELS / "iris_mlp" / "1" / "model.onnx", "iris_mlp", "1", ModelSettings())


@linux
def test_a_model_that_kills_or_hangs_its_worker_is_refused_in_one_line():
    others = set(workers(os.getpid()))

    async def main() -> None:
        async with pool(seconds=1e-3) as impatient:
            with pytest.raises(UnsupportedModel, match="not loaded within") as error:
                await IsolatedModel.start(iris(), impatient)
            assert "\n" not in str(error.value)
        async with pool() as patient:
            loading = asyncio.create_task(IsolatedModel.start(iris(), patient))
            while not (pids := set(workers(os.getpid())) - others):
                await asyncio.sleep(0.01)
            for pid in pids:  # the worker, and perhaps the next spare
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with pytest.raises(UnsupportedModel, match="killed by signal 9"):
                await loading

    asyncio.run(main())
    assert set(workers(os.getpid())) <= others


def test_a_broken_file_is_refused_with_the_reason_of_the_worker(tmp_path):
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"PK\x03\x04 not a model")

    async def main() -> None:
        async with pool() as found:
            with pytest.raises(UnsupportedModel, match="zip archive"):
                await IsolatedModel.start(ResolvedModel(broken, "broken", "1", ModelSettings()), found)

    asyncio.run(main())


@linux
@pytest.mark.parametrize("cycles", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_loading_and_unloading_leaves_nothing_behind(cycles, tmp_path, monkeypatch):
    runtime_folder.runtime_folder()  # of this process, which has it as long as it lives
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731
    others = set(workers(os.getpid()))

    async def main() -> list[int]:
        counts = []
        async with pool() as found:
            for _ in range(cycles):
                model = await IsolatedModel.start(iris(), found)
                assert await model.ready("iris_mlp")
                await model.close()
                await asyncio.sleep(0.05)  # the spare is there, or is not, in every cycle alike
                counts.append(opened())
        return counts

    counts = asyncio.run(main())
    assert counts[-1] <= counts[0] + 2, counts
    assert not list(tmp_path.iterdir())
    assert set(workers(os.getpid())) <= others


def test_a_model_without_a_process_says_that_it_is_unavailable():
    async def main() -> None:
        model = IsolatedModel(iris(), SimpleNamespace(metrics=Metrics()))
        with pytest.raises(Unavailable, match="no process now"):
            await model.infer(infer("iris_mlp"))
        assert not await model.ready("iris_mlp")
        assert await model.explanations() == []
        assert await model.statistics() == []
        await model.close()

    asyncio.run(main())


def test_workers_that_die_young_are_followed_more_and_more_slowly(monkeypatch):
    waits, sleep = [], asyncio.sleep

    class Doomed:
        """A worker that is dead when it is born."""

        code = -11

        def __init__(self) -> None:
            self.ended = asyncio.ensure_future(sleep(0, -11))

        async def free(self) -> None:
            pass

    class Fails:
        metrics = Metrics()
        tries = itertools.count()

        async def start_worker(self, model: ResolvedModel, restart: bool = False) -> Doomed:
            assert restart
            if next(self.tries) % 2:
                raise UnsupportedModel("not this time")
            return Doomed()

    async def counted(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 12:
            raise asyncio.CancelledError
        await sleep(0)

    async def main() -> None:
        model = IsolatedModel(iris(), Fails())
        model._worker = Doomed()
        with contextlib.suppress(asyncio.CancelledError):
            await model._keep_alive()

    monkeypatch.setattr(proxy, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": counted}))
    asyncio.run(main())
    assert waits[:4] == [0.0, 0.1, 0.2, 0.4]
    assert waits[-1] == 10.0


# What is said


def test_config_survive_the_pipe(tmp_path):
    settings = tmp_path / "model.toml"
    settings.write_text('[output]\nkind = "regression"\n')
    given = ResolvedModel(
        tmp_path / "model.onnx", "m", "3", ModelSettings(files=(settings,), defaults={"method": "gradient"})
    )
    limits = {"slots": 2, "queue_rows": 7, "compile_queue": 3, "max_compile_seconds": 9.0}
    options = ServerOptions(port=0, allow_export=True, isolate=True, host="127.0.0.1", **limits)
    config = WorkerConfig.of(given, options, tmp_path / "socket")
    line = config.encode()
    assert line.count(b"\n") == 1
    found = WorkerConfig.decode(line)
    assert (found.model.path, found.model.name, found.model.version) == (given.path, "m", "3")
    assert found.model.settings.output.kind == "regression"
    assert found.model.settings.defaults == {"method": "gradient"}
    assert found.options == config.options
    assert {name: getattr(found.options, name) for name in limits} == limits
    assert not found.options.isolate
    assert not found.options.reflection
    assert found.options.token_file is None


@pytest.mark.parametrize("error", [UnsupportedOp("x").at("n"), InputError("y"), UnknownName("key", "a", ["b"])])
def test_a_reason_survives_the_pipe(error):
    found = reported_error(json.loads(json.dumps(failure_report(error)))["failed"])
    assert (str(found), found.field, found.status) == (str(error), error.field, error.status)


def test_what_nobody_expected_is_named_without_its_text():
    assert failure_report(RuntimeError("/home/somebody"))["failed"]["text"] == "unexpected RuntimeError while loading"


@pytest.mark.parametrize(
    "report", [None, {}, [], ["run"], ["run", 1, 2, "3"], ["run", 1, 2, float("nan")], ["serve", 1, 2], [["run"], 1]]
)
def test_what_a_worker_makes_up_is_not_counted(report):
    assert observation(report) is None


LOGGED = {
    "ModelInfer": lambda: infer("digits_cnn", **{inputs("digits_cnn"): DIGIT}),
    "of an explanation": lambda: infer("digits_cnn.explain", **{inputs("digits_cnn"): DIGIT}),
    "refused": lambda: infer("digits_cnn", wrong=DIGIT),
    "Explain": lambda: explain("digits_cnn", DIGIT, "3", recipe=v1.Recipe(name="gradient")),
    "bad target": lambda: explain("digits_cnn", DIGIT, "300"),
}


@pytest.mark.parametrize("kind", LOGGED)
def test_the_access_log_shows_the_same_of_a_call_to_a_worker(both, kind, caplog):
    logger = logging.getLogger("onnxplain")
    before, logger.propagate = logger.propagate, True
    lines = []
    try:
        with caplog.at_level(logging.INFO, "onnxplain.server.access"):
            for server in (both.plain, both.isolated):
                caplog.clear()
                with contextlib.suppress(grpc.RpcError):
                    if kind in ("Explain", "bad target"):
                        both.explainer("Explain", LOGGED[kind](), v1.ExplainResponse, server)
                    else:
                        both.ask("ModelInfer", LOGGED[kind](), server)
                until = time.monotonic() + 5  # a line is written when the answer is on its way
                while not caplog.records and time.monotonic() < until:
                    time.sleep(0.01)
                lines.append(next(record.fields for record in caplog.records if record.name.endswith("access")))
    finally:
        logger.propagate = before
    times = {"request_id", "peer", "ms", "queue_ms", "error"}
    plain, isolated = ({key: line[key] for key in line.keys() - times} for line in lines)
    assert plain == isolated and lines[0].keys() == lines[1].keys()
    assert {"model", "version", "rows"} <= plain.keys()


def test_a_worker_cannot_fill_the_log(caplog):
    logger = logging.getLogger("onnxplain.server.worker")
    logger.propagate, parent = True, logging.getLogger("onnxplain")
    before, parent.propagate = parent.propagate, True
    try:
        with caplog.at_level(logging.INFO, "onnxplain.server.worker"):
            log_forwarder = LogForwarder("m")
            for _ in range(3 * LINES):
                log_forwarder.forward(b"noise\n")
            log_forwarder._began -= 60
            log_forwarder.forward(b'{"level": "ERROR", "event": "bad", "trace": "line 1\\nline 2", "model": "other"}\n')
    finally:
        parent.propagate = before
    records = list(dict.fromkeys(caplog.records))  # pytest also listens at loggers that did not propagate when it began
    assert len(records) == LINES + 2
    last = records[-1]
    assert last.levelname == "ERROR"
    assert last.fields["model"] == "m"
    assert "line 2" in str(last.exc_info[1])


def test_a_long_folder_for_temporary_files_is_refused(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    monkeypatch.setattr(runtime_folder, "_owned", runtime_folder._owned.__wrapped__)  # none was made yet
    with pytest.raises(InputError, match="TMPDIR"):
        asyncio.run(started())
    assert not list(deep.iterdir())


async def started() -> WorkerProcess:
    return WorkerProcess()


def test_what_a_killed_server_left_is_removed_by_the_next(short_folder, tmp_path):
    """Folders of its worker processes, and downloads in the cache."""
    temporary, cache = short_folder, tmp_path / "cache"
    model = MODELS / "iris_mlp" / "1" / "model.onnx"
    environment = {"TMPDIR": str(temporary)}
    with running_server(model, "--isolate", env=environment) as killed:
        assert list(temporary.glob("onnxplain-*"))
        killed.process.kill()
        killed.process.wait(10)
    left = set(temporary.glob("onnxplain-*"))
    assert left
    with running_server(model, "--isolate", env=environment) as living:
        assert not left & set(temporary.glob("onnxplain-*"))
        assert "removed what a killed server left" in living.log
        with running_server(model, env=environment):  # which leaves the living one's alone
            assert list(temporary.glob("onnxplain-*/*"))
    assert not list(temporary.glob("onnxplain-*"))
    filling = "import sys, os; from pathlib import Path; from onnxplain.sources.cache import ContentCache\n"
    filling += "ContentCache(Path(sys.argv[1])).put('k', lambda folder: os._exit(9))"
    assert subprocess.run([sys.executable, "-c", filling, cache], timeout=60).returncode == 9
    assert list(cache.glob(".staged-*"))
    ContentCache(cache)
    assert not list(cache.glob(".staged-*"))
