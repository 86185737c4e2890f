"""The service on Ray Serve, as far as it goes without Ray: what the proxy adds, what a replica answers, how many."""

from __future__ import annotations

import asyncio
import importlib
import sys
from types import ModuleType, SimpleNamespace

import grpc
import numpy as np
import pytest
import yaml
from google.rpc import error_details_pb2, status_pb2
from nets import MODELS

from onnxplain import Explainer
from onnxplain.cli import main
from onnxplain.engines import ray_proxy
from onnxplain.engines.ray_methods import METHODS, model_of
from onnxplain.engines.ray_policy import ROWS, RowsPolicy
from onnxplain.engines.ray_proxy import DETAILS, LOST, MODEL, SECONDS_LEFT
from onnxplain.engines.ray_serve import Servicer
from onnxplain.engines.ray_settings import ReplicaSettings
from onnxplain.errors import UsageError
from onnxplain.exports.ray_serve import APPLICATION, SERVICERS
from onnxplain.machine import memory_bytes
from onnxplain.server.memory_pressure import MemoryPressure
from onnxplain.server.models.served import EXPLAIN
from onnxplain.server.options import LEAST, MEMORY_SHARE, ServerOptions
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.inference import messages as oip

DIGITS = np.load(MODELS / "digits_cnn" / "samples" / "ten_digits.npz")["input"]


# -- what the proxy reads of a request ---------------------------------------------------------------------------------


def named(method, name: str):
    """A request of a method that names a model, with other fields around it; None where it names none."""
    request = method.request()
    fields = {field.name: field for field in request.DESCRIPTOR.fields}
    if "model" in fields:
        request.model.name, request.model.version = name, "7"
    elif "model_name" in fields:
        request.model_name = name
    elif "name" in fields:
        request.name = name
    else:
        return None
    for field in ("request_id", "id", "model_version", "version"):
        if field in fields:
            setattr(request, field, "x" * 300)
    return request


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
@pytest.mark.parametrize("name", ["m", "digits_cnn", "ünïcode", f"m{EXPLAIN}", f"m{EXPLAIN}.lrp", "x" * 200])
def test_the_model_of_every_request_is_read_without_parsing_it(method, name):
    request = named(method, name)
    if request is not None and not method.takes_stream and not method.name.startswith("Repository"):
        assert model_of(request.SerializeToString()) == name.partition(EXPLAIN)[0]


@pytest.mark.parametrize(
    "raw", [b"", b"\n", b"\n\xff", b"\xff" * 20, b"\x0a\x05ab", b"\x0b", b"\n\x02\xff\xfe", b"\n\x03\n\x09"]
)
def test_bytes_that_are_no_request_name_no_model_that_breaks_anything(raw):
    assert isinstance(model_of(raw), str)


def test_the_model_is_found_before_a_large_tensor_and_behind_it():
    request = oip.ModelInferRequest(model_name="m", raw_input_contents=[bytes(1 << 20)])
    body = request.SerializeToString()
    head = oip.ModelInferRequest(model_name="m").SerializeToString()
    assert model_of(body) == model_of(body[len(head) :] + head) == "m"


# -- what the proxy adds, and what it hides ----------------------------------------------------------------------------


KINDS = ("unary_unary", "unary_stream", "stream_stream")


class Context:
    """gRPC's context in the proxy."""

    def __init__(self, metadata=(), left=None):
        self.metadata, self.left = tuple(metadata), left
        self.code, self.details, self.trailing = None, "", ()

    def invocation_metadata(self):
        return self.metadata

    def time_remaining(self):
        return self.left

    def trailing_metadata(self):
        return self.trailing

    def set_code(self, code):
        self.code = code

    def set_details(self, details):
        self.details = details

    def set_trailing_metadata(self, trailing):
        self.trailing = tuple(trailing)


def in_proxy(path: str, behaviour, request, context):
    """What a caller gets where Ray's handler is `behaviour`; as Ray registers it."""
    added = []
    server = SimpleNamespace(add_generic_rpc_handlers=lambda handlers: added.extend(handlers))
    for name in SERVICERS:
        getattr(ray_proxy, name.rpartition(".")[2])(None, server)
    service = next(s for s in added if s.service(SimpleNamespace(method=path)) is not None)
    given = service._method_handlers[path]
    service._method_handlers = {
        path: given._replace(**{kind: behaviour for kind in KINDS if getattr(given, kind) is not None})
    }
    handler = service.service(SimpleNamespace(method=path))
    assert handler.request_deserializer is None  # bytes: our messages cannot be pickled
    if not handler.response_streaming:
        return asyncio.run(handler.unary_unary(request, context))

    async def collect():
        return [reply async for reply in (handler.stream_stream or handler.unary_stream)(request, context)]

    return asyncio.run(collect())


EXPLAIN_PATH = METHODS["Explain"].path
REQUEST = v1.ExplainRequest(model=v1.ModelRef(name="m")).SerializeToString()


@pytest.mark.parametrize("given, model", [((), "m"), (((MODEL, "other"),), "other")])
def test_callers_need_not_say_the_model_and_may(given, model):
    seen = {}

    async def ray(request, context):
        seen.update(context.invocation_metadata())
        return b"reply"

    assert in_proxy(EXPLAIN_PATH, ray, REQUEST, Context((*given, (SECONDS_LEFT, "99")), left=2.5)) == b"reply"
    assert seen == {MODEL: model, SECONDS_LEFT: "2.500"}


def losing(times: int):
    """Ray's handler where the replica dies so many times."""
    asked = []

    async def ray(request, context):
        asked.append(request)
        if len(asked) <= times:
            context.set_code(grpc.StatusCode.INTERNAL)
            context.set_details("The actor died unexpectedly before finishing this task.")
            return b""
        context.set_trailing_metadata([("x-request-id", "1")])
        return b"reply"

    ray.asked = asked
    return ray


def test_a_request_whose_replica_dies_is_asked_once_more():
    ray, context = losing(1), Context()
    assert in_proxy(EXPLAIN_PATH, ray, REQUEST, context) == b"reply"
    assert ray.asked == [REQUEST] * 2 and context.code is None and dict(context.trailing) == {"x-request-id": "1"}


def test_a_request_whose_replicas_die_is_unavailable_with_a_time_to_come_back():
    ray, context = losing(9), Context()
    in_proxy(EXPLAIN_PATH, ray, REQUEST, context)
    assert len(ray.asked) == 2 and (context.code, context.details) == (grpc.StatusCode.UNAVAILABLE, LOST)
    status = status_pb2.Status.FromString(dict(context.trailing)[DETAILS])
    retry = error_details_pb2.RetryInfo()
    assert status.code == grpc.StatusCode.UNAVAILABLE.value[0] and status.details[0].Unpack(retry)


@pytest.mark.parametrize(
    "code, details",
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "found this, expected that."),
        (grpc.StatusCode.INTERNAL, "internal error; log id 0123"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "full"),
    ],
)
def test_what_a_replica_says_is_told_as_it_is(code, details):
    asked = []

    async def ray(request, context):
        asked.append(request)
        context.set_code(code)
        context.set_details(details)
        return b""

    context = Context()
    in_proxy(EXPLAIN_PATH, ray, REQUEST, context)
    assert (context.code, context.details, len(asked)) == (code, details, 1)


@pytest.mark.parametrize("path", [METHODS["ExplainStream"].path, METHODS["CompileGraph"].path])
def test_a_stream_whose_replica_dies_is_unavailable_behind_what_came(path):
    async def ray(request, context):
        yield b"first"
        context.set_code(grpc.StatusCode.INTERNAL)
        context.set_details("The actor died unexpectedly.")

    context = Context()
    assert in_proxy(path, ray, b"", context) == [b"first"]
    assert context.code == grpc.StatusCode.UNAVAILABLE


# -- a replica ---------------------------------------------------------------------------------------------------------


class RayContext:
    """Ray's context in a replica."""

    def __init__(self, *metadata):
        self._metadata, self._code, self._details, self._trailing = metadata, None, "", []

    def invocation_metadata(self):
        return list(self._metadata)

    def peer(self):
        return "ipv4:127.0.0.1:1"

    def code(self):
        return self._code

    def details(self):
        return self._details

    def set_code(self, code):
        self._code = code

    def set_details(self, details):
        self._details = details

    def trailing_metadata(self):
        return self._trailing

    def set_trailing_metadata(self, trailing):
        self._trailing = list(trailing)


TOLD = []  # what Ray is told of, in order


def multiplexed(max_num_models_per_replica):
    """Ray's decorator."""

    def decorate(load):
        async def hold(name):
            TOLD.append(name)
            return await load(name)

        return hold

    return decorate


NAMED = {"ModelMetadata": {"name": "digits_cnn"}}
BOUNDED = []  # options by which a replica bounded its process


@pytest.fixture
def on_a_replica(monkeypatch):
    """Run a coroutine function with a replica in this process."""
    serve = ModuleType("ray.serve")
    serve.multiplexed = multiplexed
    ray = ModuleType("ray")
    ray.serve = serve
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    monkeypatch.setattr(
        ServerOptions, "begin_environment", lambda options: BOUNDED.append(options)
    )  # of this process it would be for good

    def run(work, **settings):
        async def whole():
            replica = Servicer.__new__(Servicer)
            await replica.__init__({"models": [str(MODELS)], **settings})
            try:
                return await work(replica)
            finally:
                await replica.close()

        return asyncio.run(whole())

    return run


def test_a_replica_has_a_method_for_every_rpc():
    for name in METHODS:
        assert "grpc_context" in getattr(Servicer, name).__code__.co_varnames


def test_a_replica_answers_as_the_engine_does(on_a_replica):
    request = oip.ModelInferRequest(model_name="digits_cnn.explain.gradient", raw_input_contents=[DIGITS[:1].tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=[1, 1, 28, 28])
    context = RayContext((SECONDS_LEFT, "30"))

    async def ask(replica):
        return await replica.ModelInfer(request.SerializeToString(), context)

    reply = on_a_replica(ask)
    assert context.code() is None, context.details()
    expected = Explainer(MODELS / "digits_cnn" / "1" / "model.onnx", "gradient", threads=1).explain(DIGITS[:1])
    found = dict(zip([o.name for o in reply.outputs], reply.raw_output_contents, strict=True))
    assert found["input.relevance"] == expected.relevances["input"].tobytes()


@pytest.mark.parametrize(
    "name, raw, code, says",
    [
        ("Explain", v1.ExplainRequest(model=v1.ModelRef(name="nope")).SerializeToString(), "NOT_FOUND", "nope"),
        ("Explain", b"\xff\xff", "INVALID_ARGUMENT", "no valid protobuf"),
        ("ModelInfer", bytes(2000), "RESOURCE_EXHAUSTED", "2000 bytes"),
        ("RepositoryModelLoad", b"", "UNIMPLEMENTED", "when they are asked for"),
        ("ModelInfer", oip.ModelInferRequest(model_name="iris_mlp").SerializeToString(), "INVALID_ARGUMENT", "input"),
    ],
)
def test_a_replica_says_what_is_wrong_with_code_text_and_details(name, raw, code, says, on_a_replica):
    context = RayContext()

    async def ask(replica):
        return await getattr(replica, name)(raw, context)

    reply = on_a_replica(ask, server={"max_message_bytes": 1500})
    assert reply.SerializeToString() == b"" and context.code() == grpc.StatusCode[code]
    assert says in context.details()
    status = status_pb2.Status.FromString(dict(context.trailing_metadata())[DETAILS])
    assert (status.code, status.message) == (grpc.StatusCode[code].value[0], context.details())


def test_a_stream_is_answered_and_its_error_told(on_a_replica):
    async def messages(*requests):
        for request in requests:
            yield request

    async def ask(replica):
        requests = []
        for name in ("digits_cnn", "nope"):
            request = v1.ExplainRequest(model=v1.ModelRef(name=name), request_id=name)
            request.inputs.add(name="input", datatype="FP32", shape=[1, 1, 28, 28], raw=DIGITS[:1].tobytes())
            requests.append(v1.ExplainStreamRequest(request=request).SerializeToString())
        context = RayContext()
        replies = [r async for r in replica.ExplainStream(messages(*requests), context)]
        bad = RayContext()
        with pytest.raises(RuntimeError):
            [r async for r in replica.ExplainStream(messages(b"\xff\xff"), bad)]
        return replies, context, bad

    replies, context, bad = on_a_replica(ask)
    assert context.code() is None, context.details()
    kinds = {(reply.request_id, reply.WhichOneof("message")) for reply in replies}
    assert kinds - {("digits_cnn", "progress")} == {("digits_cnn", "response"), ("nope", "error")}
    assert bad.code() == grpc.StatusCode.INVALID_ARGUMENT and "no valid protobuf" in bad.details()


def test_ray_is_told_which_models_a_replica_is_asked_for_and_of_no_others(on_a_replica):
    async def ask(replica):
        before = len(replica.repository.served())
        for name in ("iris_mlp", "nope", "../iris_mlp", "bc_logreg.explain.gradient"):
            await replica.ModelMetadata(oip.ModelMetadataRequest(name=name).SerializeToString(), RayContext())
        return before, {served.name for served in replica.repository.served()}

    TOLD.clear()
    assert on_a_replica(ask) == (0, {"iris_mlp", "bc_logreg"})
    assert TOLD == ["iris_mlp", "bc_logreg"]


def test_a_replica_answers_rest(on_a_replica):
    async def ask(replica):
        app, sent = replica.__serve_build_asgi_app__(), []

        async def send(message):
            sent.append(message)

        for kinds in (["lifespan.startup", "lifespan.shutdown"], ["http.request", "http.disconnect"]):
            coming = iter(kinds)

            async def receive(coming=coming):
                kind = next(coming, None)
                if kind in (None, "http.disconnect"):
                    await asyncio.sleep(30)
                return {"type": kind, "body": b"", "more_body": False}

            path = "/v2/models/iris_mlp"
            scope = {"type": kinds[0].split(".")[0], "method": "GET", "path": path, "raw_path": path.encode()}
            more = {"query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http", "root_path": ""}
            await app({**scope, **more, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}, receive, send)
        return sent

    *lifespan, start, body = [message for message in on_a_replica(ask) if message.get("body") != b""]
    assert [message["type"] for message in lifespan] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert start["status"] == 200 and b'"iris_mlp"' in body["body"]


def test_a_replica_reports_rows_that_wait_and_run(on_a_replica):
    async def ask(replica):
        (served,) = replica.repository.served()
        before = replica.record_autoscaling_stats()
        with served.model.admission.admit(5, 1):
            return before, replica.record_autoscaling_stats()

    assert on_a_replica(ask, load=["iris_mlp"]) == ({ROWS: 0.0}, {ROWS: 5.0})


# -- how many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reported, queued, wanted",
    [({}, 0, 1), ({"a": 8.0}, 0, 1), ({"a": 8.5}, 0, 2), ({"a": 8.0, "b": 8.0}, 8, 3), (None, 17, 3)],
)
def test_replicas_are_as_many_as_the_rows_ask_for(reported, queued, wanted):
    metrics = None if reported is None else {ROWS: reported}
    context = SimpleNamespace(aggregated_metrics=metrics, total_queued_requests=queued)
    assert RowsPolicy(rows_per_replica=8.0)(context) == (wanted, {})


@pytest.mark.parametrize(
    "args, says",
    [
        ({}, "models"),
        ({"models": "m"}, "lists"),
        ({"model": ["m"]}, "Did you mean models"),
        ({"models": ["m"], "min_replicas": 0}, "min_replicas"),
        ({"models": ["m"], "min_replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"models": ["m"], "rows": 0}, "rows"),
        ({"models": ["m"], "server": {"slot": 2}}, "Did you mean slots"),
        ({"models": ["m"], "server": {"port": 2}}, "server option"),
        ({"models": ["m"], "server": {"isolate": True}}, "server option"),
    ],
)
def test_an_application_refuses_what_it_does_not_know(args, says):
    with pytest.raises(UsageError, match=says):
        ReplicaSettings.of(args)


def test_the_exported_file_names_what_there_is_and_its_arguments_are_taken(tmp_path):
    main(["export", str(MODELS / "digits_cnn"), "--ray-serve", str(tmp_path)])
    config = yaml.safe_load((tmp_path / "serve.yaml").read_text())
    (app,) = config["applications"]
    settings = ReplicaSettings.of(app["args"])
    assert list(settings.models) == [str(MODELS)] and list(settings.load) == ["digits_cnn"]
    defaults = ReplicaSettings(models=settings.models, load=settings.load)
    assert settings.content() == defaults.content()  # what the file says is what is said nowhere
    for name in (app["import_path"].replace(":", "."), *config["grpc_options"]["grpc_servicer_functions"]):
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute))
    assert app["import_path"] == APPLICATION


def test_a_replica_bounds_its_process_before_it_loads_anything(on_a_replica):
    async def loaded(replica):
        return replica.repository.served()

    BOUNDED.clear()
    on_a_replica(loaded, server={"memory_budget": 2 << 30})
    assert [options.process_bytes for options in BOUNDED] == [2 << 30]


def test_a_replica_that_is_full_refuses_work_and_says_that_it_lives(on_a_replica):
    async def asked(replica):
        replica._server.memory._pressure = MemoryPressure(1, lambda: None, lambda: 2)
        told = []
        for name in ("ModelMetadata", "ServerLive"):
            context = RayContext()
            await replica.answer(name, METHODS[name].request(**NAMED.get(name, {})).SerializeToString(), context)
            told.append(context.code() and context.code().name)
        return told

    assert on_a_replica(asked) == ["RESOURCE_EXHAUSTED", None]


@pytest.mark.parametrize("num_cpus", [0.0, 0.001, 1.0, 1000.0])
def test_the_share_of_a_replica_is_never_nothing_and_never_all_and_more(num_cpus):
    options = ReplicaSettings(models=["m"], num_cpus=num_cpus).options()
    assert LEAST <= options.process_bytes <= max(LEAST, MEMORY_SHARE * memory_bytes())
    assert num_cpus or options.process_bytes == LEAST


def test_settings_come_back_from_their_content():
    settings = ReplicaSettings(models=["m"], num_gpus=0.25, server={"slots": 2})
    assert ReplicaSettings.of(settings.content()).content() == settings.content()
