"""Whoever reads the log or collects traces and sleeps over it stops nothing."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time

import grpc
import numpy as np
from running import free_port

from onnxplain.server.going_down import REST
from onnxplain.server.telemetry.log_writer import LINES, LogWriter
from onnxplain.server.telemetry.logs import TextLines
from onnxplain.server.telemetry.metrics import Metrics

from .nets import store, times
from .process import eventually
from .rpc import infer, infer_arrays, infer_request

CALLS = 5000


def answers(call, request) -> bool:
    try:
        call(request, timeout=5)
    except grpc.RpcError:
        return False
    return True


def serving(folder, stderr, **environment: str) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    command = [sys.executable, "-m", "onnxplain", "serve", str(folder), "--port", str(port), "--metrics-port", "0"]
    process = subprocess.Popen(
        [*command, "--log-level", "debug"], stdout=stderr, stderr=stderr, env={**os.environ, **environment}
    )
    return process, port


def test_a_log_that_nobody_reads_stops_no_call_and_no_end(tmp_path):
    store(times(3), tmp_path, "m")
    process, port = serving(tmp_path, subprocess.PIPE)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call, request = infer(channel), infer_request("m", {"x": np.ones((1, 4), np.float32)})
            assert eventually(lambda: answers(call, request), 60)
            for start in range(0, CALLS, 50):
                pending = [call.future(request, timeout=30) for _ in range(min(50, CALLS - start))]
                assert all(infer_arrays(each.result())["y"][0, 0] == 3 for each in pending)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - begun < REST + 3
    finally:
        process.kill()
        process.wait()


def test_lines_without_room_are_counted_and_said():
    reader, writer = os.pipe()
    log, logger = LogWriter(writer, TextLines()), logging.Logger("stuck")
    logger.addHandler(log)
    metrics = Metrics()
    metrics.count_dropped_lines(lambda: log.dropped)
    try:
        for number in range(3 * LINES):
            logger.warning("line %d %s", number, "x" * 100)
        lost = log.dropped
        assert LINES < lost < 3 * LINES
        assert metrics.registry.get_sample_value("onnxplain_log_lines_dropped_total") == lost
        read, told = b"", []
        while sum(told) < lost:  # in one line or several: the writer may have told of some before the last was lost
            read += os.read(reader, 1 << 16)
            told = [int(lines) for lines in re.findall(rb" log lines dropped lines=(\d+)\n", read)]
        assert sum(told) == lost
    finally:
        os.close(reader)  # what still waits is lost: nobody can read it


def test_a_collector_that_hangs_stops_no_call_and_no_end(tmp_path):
    store(times(3), tmp_path, "m")
    with socket.create_server(("127.0.0.1", 0)) as silent, open(tmp_path / "log", "wb") as log:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process, port = serving(tmp_path, log, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                call, request = infer(channel), infer_request("m", {"x": np.ones((1, 4), np.float32)})
                assert eventually(lambda: answers(call, request), 60)
                for _ in range(300):
                    call(request, timeout=5)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert time.monotonic() - begun < REST + 3
        finally:
            process.kill()
            process.wait()
