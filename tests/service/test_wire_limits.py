"""Connections that behave badly: too large, compressed to burst, too slow, never reading. The others notice nothing."""

from __future__ import annotations

import socket
import time
import zlib

import grpc
import numpy as np
import pytest
from running import Running, running_server

from .http2 import PREFACE, Connection
from .nets import any_length, store
from .process import eventually, files, forget_peak, peak, resident
from .rpc import EXPLAIN, INFER, UNLIMITED, infer, infer_request, outcome

MB = 2**20
SMALL = infer_request("any_length", {"x": np.ones((1, 4), np.float32)})


def answered(running: Running, calls: int = 50) -> list[float]:
    """Seconds of so many calls of a client who behaves."""
    seconds = []
    with grpc.insecure_channel(running.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = infer(channel)
        for _ in range(calls):
            begun = time.perf_counter()
            call(SMALL, timeout=5)
            seconds.append(time.perf_counter() - begun)
    return seconds


@pytest.mark.parametrize("path", [INFER, EXPLAIN])
def test_one_byte_above_64_mib_is_refused_before_it_is_read(server, path):
    before = forget_peak(server.process.pid)
    with grpc.insecure_channel(server.address, options=UNLIMITED) as channel:
        call = channel.unary_unary(path)
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(64 * MB + 1), timeout=30)
        assert caught.value.code().name == "RESOURCE_EXHAUSTED"
        assert outcome(infer(channel), SMALL) == "OK"
    assert peak(server.process.pid) - before < 100 * MB


def test_a_message_just_below_the_limit_is_read(server):
    x = np.zeros((1, (60 * MB) // 4), np.float32)
    with grpc.insecure_channel(server.address, options=UNLIMITED) as channel:
        reply = infer(channel)(infer_request("any_length", {"x": x}), timeout=60)
    assert len(reply.raw_output_contents[0]) == x.nbytes


def bomb(megabytes: int, method: str) -> bytes:
    """So many MiB of zeros: one compressed MiB, again and again, without the checksum that would come last."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31 if method == "gzip" else 15)
    first = pack.compress(bytes(MB)) + pack.flush(zlib.Z_FULL_FLUSH)
    again = pack.compress(bytes(MB)) + pack.flush(zlib.Z_FULL_FLUSH)
    return first + again * (megabytes - 1)


@pytest.mark.parametrize("method", ["gzip", "deflate"])
def test_a_compressed_message_that_bursts_is_refused(server, method):
    """1 MiB on the wire, 1 GiB when it is inflated: more than a thousand to one is not to be had."""
    content = bomb(1024, method)
    assert len(content) < 2 * MB
    assert len(zlib.decompressobj(47).decompress(content, 2 * MB)) == 2 * MB
    before = forget_peak(server.process.pid)
    with Connection(server.port) as connection:
        status = connection.call(INFER, content, encoding=method, timeout=30)
    assert status in ("8", "13", "12", "3"), status  # RESOURCE_EXHAUSTED by the limit, or never inflated at all
    grown = peak(server.process.pid) - before
    print(f"\n{method}: status {status}, memory +{grown / MB:.0f} MiB")
    assert grown < 100 * MB
    assert answered(server, 5)


def test_compressed_requests_within_the_limit_are_read(server):
    with grpc.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel:
        assert outcome(infer(channel), SMALL) == "OK"


@pytest.mark.parametrize("junk", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(1000), PREFACE + bytes(64)])
def test_bytes_that_are_no_http2_end_the_connection_alone(server, junk):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(junk)
    assert answered(server, 3)


def slow_clients(running: Running, count: int, seconds: float) -> dict[str, float]:
    """`count` connections that send a byte a second and as many that never read, beside one that behaves."""
    alone = np.median(answered(running, 100))
    dribblers = [Connection(running.port).begin(INFER, 1000) for _ in range(count)]
    deaf = []
    for _ in range(count):
        connection = Connection(running.port, window=0)
        connection.begin(INFER, len(BIG)).send(BIG, last=True)
        deaf.append(connection)
    worst, times, until = 0.0, [], time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            tick = time.monotonic()
            for connection in dribblers:
                connection.dribble(b"\0")
            found = answered(running, 20)
            times += found
            worst = max(worst, *found)
            time.sleep(max(0.0, tick + 1 - time.monotonic()))
        return {"alone ms": 1e3 * float(alone), "beside ms": 1e3 * float(np.median(times)), "worst ms": 1e3 * worst}
    finally:
        for connection in (*dribblers, *deaf):
            connection.close()


BIG = infer_request("any_length", {"x": np.zeros((1, MB // 4), np.float32)}).SerializeToString()


def test_slow_and_deaf_clients_do_not_hold_up_others(server):
    before = files(server.process.pid)
    found = slow_clients(server, 30, 2)
    assert found["worst ms"] < 2000
    assert eventually(lambda: files(server.process.pid) <= before + 2, 10)


@pytest.mark.soak
def test_a_hundred_slow_and_a_hundred_deaf_clients(tmp_path):
    store(any_length(), tmp_path, "any_length")
    with running_server(tmp_path) as running:
        before, memory = files(running.process.pid), resident(running.process.pid)
        found = slow_clients(running, 100, 30)
        print(f"\n{found}, memory +{(resident(running.process.pid) - memory) / MB:.0f} MiB")
        assert found["beside ms"] < 2 * found["alone ms"] + 1
        assert found["worst ms"] < 500
        assert eventually(lambda: files(running.process.pid) <= before + 2, 10)


@pytest.mark.soak
def test_connections_that_are_never_answered_for_are_closed(tmp_path):
    """Keepalive: a ping after 60 s, 20 s for its answer, which these clients never give."""
    store(any_length(), tmp_path, "any_length")
    with running_server(tmp_path) as running:
        before = files(running.process.pid)
        silent = [Connection(running.port).begin(INFER, 1000) for _ in range(20)]
        assert eventually(lambda: files(running.process.pid) >= before + 18, 5)
        begun = time.monotonic()
        assert eventually(lambda: files(running.process.pid) <= before + 2, 100)
        print(f"\nclosed after {time.monotonic() - begun:.0f} s")
        for connection in silent:
            connection.close()
