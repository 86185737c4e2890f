"""Laws of what clients are told of errors."""

from __future__ import annotations

import asyncio
import json
import os

import grpc
import pytest
from google.rpc import status_pb2
from intercepted import (
    ERRORS,
    EXPLAIN,
    ROOT,
    counted,
    details,
    intercepted,
    log,
    make,
    refused,
    serving,
)

from onnxplain import errors
from onnxplain.errors import Busy, InputError
from onnxplain.server import grpc_status
from onnxplain.server.guard import Guard
from onnxplain.server.rpc.interceptor import Interceptor
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.v1 import explainer_pb2


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_its_code_and_its_details_and_no_path(kind):
    error = make(kind, f"cannot use {ROOT}/clf/1/model.onnx or '/home/me/my data/x' or\n/usr/lib/y").at(
        "inputs[0].shape"
    )
    status = grpc_status.status_of(error, [ROOT])
    assert status.code == grpc.StatusCode[kind.status].value[0]
    assert status.message.isprintable()
    for secret in (ROOT, "/home", "my data/", "/usr"):
        assert secret not in str(status)
    found = details(status)
    match kind.status:
        case "INVALID_ARGUMENT":
            assert found["BadRequest"].field_violations[0].field == "inputs[0].shape"
        case "NOT_FOUND":
            assert found["ResourceInfo"].resource_type == "model"
        case "FAILED_PRECONDITION":
            assert len(found["PreconditionFailure"].violations) == 1
        case "UNAVAILABLE":
            assert found["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == grpc_status.RETRY_SECONDS
        case _:
            assert "ErrorInfo" not in found


def test_busy_says_when_to_come_back_and_nothing_where_that_never_helps():
    assert details(grpc_status.status_of(Busy("full", retry=0.25)))["RetryInfo"].retry_delay.ToMilliseconds() == 250
    assert not grpc_status.status_of(Busy("too large for any time", retry=0.0)).details


def test_a_model_that_is_blocked_has_one_violation_per_node_as_many_as_fit():
    error = errors.UnsupportedOp("no rule for 2 nodes")
    error.violations = {"/layer1/Conv": "no rule", "/layer2/Det": "no derivative"}
    found = details(grpc_status.status_of(error))["PreconditionFailure"].violations
    assert [(v.subject, v.description) for v in found] == list(error.violations.items())
    error.violations = {f"node{i}": "no rule " * 20 for i in range(1000)}
    status = grpc_status.status_of(error)
    assert 1 < len(details(status)["PreconditionFailure"].violations) < 1000
    assert status.ByteSize() <= grpc_status.DETAILS_BYTES


@pytest.mark.parametrize("character", ["a", "é", "漢", "🦊", "%", "\x00", "\udc80", "\u2028", "\u202e", "\n"])
def test_any_text_reaches_the_client_as_one_bounded_line(character):
    async def main():
        async def fail(request, context):
            raise InputError("x" + character * 5000).at(character * 5000)

        handlers = {"Explain": grpc.unary_unary_rpc_method_handler(fail)}
        handler = grpc.method_handlers_generic_handler("onnxplain.v1.ExplainerService", handlers)
        async with (
            serving(Interceptor(Guard(Metrics())), [handler]) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            error = await refused(channel.unary_unary(EXPLAIN)(b""))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert len(error.details()) <= grpc_status.TEXT and error.details().isprintable()
            raw = dict(error.trailing_metadata())[grpc_status.DETAILS]
            assert status_pb2.Status.FromString(raw).message == error.details()

    asyncio.run(main())


@pytest.mark.parametrize(
    "text, left",
    [
        ("node /layer1/layer1.0/conv1/Conv has no rule", None),
        ("models:/clf/3 and clf@champion and 1/2", None),
        ("read /srv/models/clf/1/model.onnx.", "read clf/1/model.onnx."),
        ("/srv/models is empty", "is empty"),
        ("/srv/models2/x stays under its own name", None),
        ("file:///srv/models/clf/1/model.onnx", "clf/1/model.onnx"),
        ("open('/tmp/a b/c.onnx')", "open('c.onnx')"),
        ("no /etc/passwd, no /proc/self/environ; (/usr/lib/x.so:1)", "no passwd, no environ; (x.so:1)"),
        ("config=/home/me/.onnxplain/x", "config=x"),
        (r"C:\Users\me\x.onnx is gone", "x.onnx is gone"),
    ],
)
def test_paths_of_this_machine_are_removed_and_names_of_nodes_are_not(text, left):
    kept = grpc_status.scrub(text, [ROOT])
    if left is None:  # nothing of this machine in it, wherever the tests run
        assert kept == text or text.split("/")[1] in os.listdir("/")
    else:
        assert kept == left


def test_an_unexpected_error_is_an_id_that_is_in_the_log():
    async def main():
        with log() as stream:
            async with intercepted() as (_, channel, metrics):
                error = await refused(channel.unary_unary(EXPLAIN)(b"crash"))
        assert error.code() is grpc.StatusCode.INTERNAL
        status = status_pb2.Status.FromString(dict(error.trailing_metadata())[grpc_status.DETAILS])
        log_id = details(status)["ErrorInfo"].metadata["log_id"]
        assert error.details() == f"internal error; log id {log_id}" == status.message
        entry = next(e for e in map(json.loads, stream.getvalue().splitlines()) if e.get("log_id") == log_id)
        assert "secret at" in entry["trace"] and "RuntimeError" in entry["trace"]
        assert counted(metrics, "INTERNAL") == 1

    asyncio.run(main())


def test_bytes_that_are_no_message_are_the_clients_fault():
    async def main():
        parse = explainer_pb2.ExplainRequest.FromString
        async with intercepted(parse=parse) as (_, channel, metrics):
            error = await refused(channel.unary_unary(EXPLAIN)(b"\xff\xff\xff"))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and counted(metrics, "INVALID_ARGUMENT") == 1

    asyncio.run(main())


def test_the_errors_of_a_task_group_keep_their_code():
    assert grpc_status.code_of(ExceptionGroup("", [InputError("x")])) == "INVALID_ARGUMENT"
    assert grpc_status.code_of(ExceptionGroup("", [InputError("x"), ValueError()])) == "INTERNAL"
