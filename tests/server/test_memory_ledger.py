"""Laws of what a server holds for its clients: booked while it is held, refused where it does not fit, given back."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import grpc
import numpy as np
import onnx
import pytest
from nets import net
from running import MODELS, in_process_server
from service.http2 import Connection
from service.nets import times
from service.process import eventually
from service.rpc import infer_request

from onnxplain.errors import Busy, OutOfMemory
from onnxplain.server.call import CALL, Call
from onnxplain.server.memory_ledger import MemoryLedger
from onnxplain.server.memory_pressure import MemoryPressure
from onnxplain.server.options import BASE, LEAST, ServerOptions
from onnxplain.server.row_rate import RowRate
from onnxplain.server.scheduling.admission import AdmissionControl
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.server.tokens import ANYONE
from onnxplain.sources import DirectorySource
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.v1 import explainer_pb2_grpc
from onnxplain.wire.chunks import Incoming
from onnxplain.wire.inference import INFERENCE, RPCS

MIB = 2**20


def test_what_is_held_never_exceeds_the_budget_and_all_of_it_comes_back():
    ledger = MemoryLedger(1000)
    seen, refused = [], []

    def hold(n: int) -> None:
        for size in range(1, 200):
            try:
                with ledger.held("requests", "it", size * (n + 1) % 400):
                    seen.append(ledger.nbytes)
            except Busy as error:
                refused.append(error)

    threads = [threading.Thread(target=hold, args=(n,)) for n in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert max(seen) <= 1000 and ledger.nbytes == 0


def test_waiting_helps_but_not_where_it_never_fits():
    ledger = MemoryLedger(100)
    with ledger.held("requests", "the request", 80):
        with pytest.raises(Busy, match="80 of the 100") as full:
            ledger.booking("replies", "the reply", 30)
        assert full.value.retry > 0
        with pytest.raises(Busy, match="takes 101 bytes") as never:
            ledger.booking("replies", "the reply", 101)
        assert never.value.retry == 0
    assert ledger.nbytes == 0


def test_a_booking_that_may_not_grow_holds_what_it_held():
    told = {}
    ledger = MemoryLedger(100, told.__setitem__)
    booking = ledger.booking("chunks", "a tensor", 60)
    with pytest.raises(Busy):
        booking.grow(50)
    assert ledger.nbytes == 60 and told == {"chunks": 60}
    booking.release()
    booking.release()
    with pytest.raises(Busy, match="not awaited"):
        booking.grow(1)
    assert ledger.nbytes == 0 and told == {"chunks": 0}


def test_requests_of_all_models_share_one_budget():
    ledger, metrics = MemoryLedger(100), Metrics()
    one, other = (AdmissionControl(10, 1000, name, metrics, ledger) for name in "ab")
    with one.admit(1, 70):
        with pytest.raises(Busy, match="the request takes 40"), other.admit(1, 40):
            pass
        with other.admit(1, 30):
            assert ledger.nbytes == 100
    assert ledger.nbytes == 0 and one.rows == other.rows == 0


def test_chunks_are_booked_as_they_arrive():
    ledger = MemoryLedger(100)
    booking = ledger.booking("chunks", "a tensor")
    request = v1.ExplainRequest()
    request.inputs.add(name="x", datatype="FP32", shape=[30]).chunked.byte_size = 120
    incoming = Incoming(request, 1000, booking.grow)
    assert ledger.nbytes == 0  # what is announced takes nothing
    incoming.add(v1.ExplainStreamRequest(chunk={"key": "x", "data": b"a" * 60}).chunk)
    assert ledger.nbytes == 60
    with pytest.raises(Busy):
        incoming.add(v1.ExplainStreamRequest(chunk={"key": "x", "offset": 60, "data": b"a" * 60}).chunk)
    booking.release()
    assert ledger.nbytes == 0


def test_the_parts_of_a_budget_are_within_it():
    for budget in (LEAST, 2**30, 2**34):
        options = ServerOptions(memory_budget=budget)
        assert BASE + options.run_bytes + options.session_bytes + options.client_bytes <= budget
        assert options.session_bytes < options.run_bytes  # packed weights count in both


class Owner:
    def __init__(self, nbytes: int):
        self.nbytes = nbytes


def test_sessions_that_run_are_not_joined_by_one_that_does_not_fit():
    cache = SessionCache(100)
    runs, wants, alone = Owner(60), Owner(50), Owner(1000)
    cache.get(runs, lambda: "runs")
    with cache.pinned(runs):
        with pytest.raises(Busy, match="a session takes 50 bytes") as busy:
            cache.get(wants, lambda: "wants")
        assert busy.value.retry > 0 and cache.nbytes == 60
    assert cache.get(wants, lambda: "wants") == "wants" and cache.nbytes == 50
    assert cache.get(alone, lambda: "alone") == "alone" and cache.nbytes == 1000


def test_a_session_that_cannot_be_made_holds_nothing():
    cache, owner = SessionCache(100), Owner(90)
    with pytest.raises(ZeroDivisionError):
        cache.get(owner, lambda: 1 / 0)
    assert cache.nbytes == 0
    assert cache.get(Owner(90), lambda: "another") == "another"


def test_small_sessions_are_made_side_by_side_and_large_ones_in_turn():
    for nbytes, together in ((10, 2), (40, 1)):
        cache, now, most, lock, met = SessionCache(100), [0], [0], threading.Lock(), threading.Barrier(2)

        def make(now=now, most=most, lock=lock, met=met) -> str:
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            with suppress(threading.BrokenBarrierError):
                met.wait(0.3)
            with lock:
                now[0] -= 1
            return "made"

        threads = [threading.Thread(target=cache.get, args=(Owner(nbytes), make)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most[0] == together and cache.nbytes == 2 * nbytes


def test_where_there_is_no_memory_for_a_session_those_that_do_not_run_are_closed_and_it_is_tried_once_more():
    cache, running, idle, new = SessionCache(100), Owner(10), Owner(10), Owner(10)
    cache.get(idle, lambda: "idle")
    tries = []

    def make() -> str:
        tries.append(cache.nbytes)
        if len(tries) < 2:
            raise OutOfMemory("none left")
        return "made"

    with cache.pinned(running):
        cache.get(running, lambda: "running")
        assert cache.get(new, make) == "made"
        assert tries == [20, 10] and cache.nbytes_of([idle]) == 0
        with cache.pinned(new), pytest.raises(OutOfMemory):  # nothing to close: the error is whoever asks's
            cache.get(Owner(10), lambda: tries.clear() or make())
    assert len(tries) == 1


def test_small_sessions_do_not_pass_a_large_one_that_waits_to_be_made():
    cache, order, hold = SessionCache(1000), [], threading.Event()

    def asked(nbytes: int, name: str) -> threading.Thread:
        def make() -> str:
            order.append(name)
            assert hold.wait(10)
            return name

        thread = threading.Thread(target=cache.get, args=(Owner(nbytes), make))
        thread.start()
        return thread

    threads = [asked(10, "small")]
    assert eventually(lambda: order == ["small"], 10)
    threads.append(asked(300, "large"))
    assert eventually(lambda: len(cache._in_line) == 1, 10)
    threads += [asked(10, f"later {n}") for n in range(5)]
    assert eventually(lambda: len(cache._in_line) == 6, 10)
    hold.set()
    for thread in threads:
        thread.join(10)
    assert order[:2] == ["small", "large"] and len(order) == 7


def test_a_session_dropped_while_it_is_made_serves_who_asked_and_is_not_kept():
    cache, owner = SessionCache(100), Owner(40)

    def make() -> str:
        cache.drop(owner)  # such as a model that is evicted when its last caller has left
        return "made"

    assert cache.get(owner, make) == "made" and cache.nbytes == 0
    assert cache.get(owner, lambda: "again") == "again" and cache.nbytes == 40


def test_a_session_dropped_while_two_wait_for_it_is_no_error_for_either():
    cache, owner, begun, go = SessionCache(100), Owner(10), threading.Semaphore(0), threading.Event()

    def make() -> str:
        begun.release()
        assert go.wait(20)
        return "made"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, owner, make)
        assert begun.acquire(timeout=20)
        cache.drop(owner)
        second = pool.submit(cache.get, owner, make)
        begun.acquire(timeout=0.3)
        go.set()
        assert [first.result(20), second.result(20)] == ["made", "made"]


def test_an_owner_whose_session_was_closed_is_forgotten_with_its_last_user():
    cache, owner = SessionCache(100), Owner(90)
    cache.get(owner, lambda: "made")
    gone = weakref.ref(owner)
    cache.get(Owner(90), lambda: "another")  # makes way
    del owner
    gc.collect()
    assert gone() is None


def test_a_request_refused_for_memory_takes_nothing_from_its_callers_rate():
    rate = RowRate("ann", 0.001, 8)
    token = CALL.set(Call(caller=replace(ANYONE, rate=rate)))
    try:
        admission = AdmissionControl(100, 10**6, "m", Metrics(), MemoryLedger(10))
        with pytest.raises(Busy, match="memory-budget"), admission.admit(8, 1000):
            pass
        with admission.admit(8, 5):
            assert admission.rows == 8
        assert admission.rows == 0
        with pytest.raises(Busy, match="ann"), admission.admit(8, 5):
            pass
    finally:
        CALL.reset(token)


def wide() -> onnx.ModelProto:
    """x (1), n () -> y (n): a large reply to a small request."""
    return net("g (float[1] x, int64[1] n) => (float[M] y) { y = Expand (x, n) }")


def test_a_reply_that_nobody_reads_is_held_against_the_budget_until_the_call_is_over(tmp_path):
    (tmp_path / "wide" / "1").mkdir(parents=True)
    onnx.save(wide(), tmp_path / "wide" / "1" / "model.onnx")
    ask = infer_request("wide", {"x": np.ones(1, np.float32), "n": np.array([2 * MIB])}).SerializeToString()

    async def scene() -> None:
        options = ServerOptions(port=0, metrics_port=0)
        async with in_process_server(options, [DirectorySource(tmp_path)]) as server:
            server.memory.budget = 20 * MIB
            path = "/inference.GRPCInferenceService/ModelInfer"

            def unread() -> Connection:
                connection = Connection(server.port, window=1000)
                connection.begin(path, len(ask)).send(ask, last=True)
                return connection

            held = [await asyncio.to_thread(unread) for _ in range(2)]
            assert await asyncio.to_thread(eventually, lambda: server.memory.nbytes > 16 * MIB, 20)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary(path)(ask, timeout=20)
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "the reply takes" in refused.value.details()
            for connection in held:
                connection.close()
            assert await asyncio.to_thread(eventually, lambda: server.memory.nbytes == 0, 20)

    asyncio.run(scene())


def test_a_graph_that_is_given_away_is_held_against_the_budget_until_all_of_it_is_sent(tmp_path):
    async def scene() -> None:
        options, held = ServerOptions(port=0, metrics_port=0, allow_export=True), []
        async with (
            in_process_server(options, [DirectorySource(MODELS)]) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            server.memory._changed = lambda kind, nbytes: held.append((kind, nbytes))
            graphs = explainer_pb2_grpc.ExplainerServiceStub(channel).CompileGraph
            request = v1.CompileGraphRequest(model=v1.ModelRef(name="digits_cnn"))
            pieces = [piece async for piece in graphs(request)]
            size = pieces[0].graph.byte_size
            assert 0 < size == sum(len(piece.chunk.data) for piece in pieces)
            assert max(held) == ("replies", size)
            assert await asyncio.to_thread(eventually, lambda: held[-1] == ("replies", 0), 20)
            server.memory.budget = size - 1
            with pytest.raises(grpc.aio.AioRpcError, match="the graph takes") as refused:
                await graphs(request).read()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await asyncio.to_thread(eventually, lambda: server.memory.nbytes == 0, 20)

    asyncio.run(scene())


def test_replies_of_a_stream_of_inferences_are_within_the_budget_and_the_stream_goes_on(tmp_path):
    (tmp_path / "wide" / "1").mkdir(parents=True)
    onnx.save(wide(), tmp_path / "wide" / "1" / "model.onnx")
    large = infer_request("wide", {"x": np.ones(1, np.float32), "n": np.array([2 * MIB])})
    small = infer_request("wide", {"x": np.ones(1, np.float32), "n": np.array([2])})

    async def scene() -> None:
        async with in_process_server(ServerOptions(port=0, metrics_port=0), [DirectorySource(tmp_path)]) as server:
            server.memory.budget = MIB
            method = RPCS["ModelStreamInfer"]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                stream = channel.stream_stream(
                    f"/{INFERENCE}/ModelStreamInfer", method.request.SerializeToString, method.response.FromString
                )
                refused, answered = [reply async for reply in stream(iter([large, small]), timeout=60)]
            assert "the reply takes" in refused.error_message
            assert not answered.error_message and server.memory.nbytes == 0

    asyncio.run(scene())


def test_a_model_can_be_unloaded_however_full_the_process_is(tmp_path):
    (tmp_path / "times" / "1").mkdir(parents=True)
    onnx.save(times(2), tmp_path / "times" / "1" / "model.onnx")

    async def scene() -> None:
        options = ServerOptions(port=0, metrics_port=0, control="explicit", load=("times",))
        async with in_process_server(options, [DirectorySource(tmp_path)]) as server:
            server.memory._pressure = MemoryPressure(1, lambda: None, lambda: 10**9)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:

                def call(name: str, **fields):
                    method = RPCS[name]
                    ask = channel.unary_unary(
                        f"/{INFERENCE}/{name}", method.request.SerializeToString, method.response.FromString
                    )
                    return ask(method.request(**fields), timeout=20)

                with pytest.raises(grpc.aio.AioRpcError, match="memory-budget"):
                    await call("RepositoryIndex")
                await call("RepositoryModelUnload", model_name="times")

    asyncio.run(scene())


def test_chunks_of_a_stream_are_held_until_their_request_is_answered_or_gone(tmp_path):
    (tmp_path / "times" / "1").mkdir(parents=True)
    onnx.save(times(2), tmp_path / "times" / "1" / "model.onnx")
    rows = 4096
    array = np.ones((rows, 4), np.float32)

    def messages(rows_sent: int, name: str):
        request = v1.ExplainRequest(model=v1.ModelRef(name="times"), request_id=name)
        tensor = request.inputs.add(name="x", datatype="FP32", shape=array.shape)
        tensor.chunked.byte_size = array.nbytes
        yield v1.ExplainStreamRequest(request=request)
        yield v1.ExplainStreamRequest(chunk={"key": "x", "data": array[:rows_sent].tobytes()})

    async def scene() -> None:
        options = ServerOptions(port=0, metrics_port=0, queue_rows=2 * rows)
        async with in_process_server(options, [DirectorySource(tmp_path)]) as server:
            path = "/onnxplain.v1.ExplainerService/ExplainStream"
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                stream = channel.stream_stream(
                    path, v1.ExplainStreamRequest.SerializeToString, v1.ExplainStreamResponse.FromString
                )
                half = stream(timeout=60)
                for message in messages(rows // 2, "half"):
                    await half.write(message)
                held = lambda: server.memory.nbytes == array.nbytes // 2  # noqa: E731
                assert await asyncio.to_thread(eventually, held, 20)
                half.cancel()
                assert await asyncio.to_thread(eventually, lambda: server.memory.nbytes == 0, 20)
                whole = [reply async for reply in stream(iter(messages(rows, "whole")), timeout=60)]
                assert any(reply.HasField("response") for reply in whole), whole
                assert await asyncio.to_thread(eventually, lambda: server.memory.nbytes == 0, 20)
                server.memory.budget = array.nbytes // 4
                (refused,) = [reply async for reply in stream(iter(messages(rows, "too much")), timeout=60)]
                assert refused.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], refused
                assert await asyncio.to_thread(eventually, lambda: server.memory.nbytes == 0, 20)

    asyncio.run(scene())
