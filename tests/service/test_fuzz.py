"""Messages that no client would send, to every method: an error of ours, never a crash, never INTERNAL."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from running import running_server

from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.inference import INFERENCE, RPCS
from onnxplain.wire.inference import messages as oip

from .nets import repository
from .process import resident
from .rpc import HEALTH, explain_request, healthy, infer_request

EXPLAINER = "/onnxplain.v1.ExplainerService/"
SECONDS = 10.0  # for one call: a recipe that was never asked for is compiled
# What a call may end with. UNAVAILABLE is a broken connection here: no model comes or goes but by the fuzzer's wish.
FINE = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
    "PERMISSION_DENIED",
    "DEADLINE_EXCEEDED",
    "OUT_OF_RANGE",
}
X = {"X": np.ones((2, 4), np.float32)}
EACH = int(os.environ.get("ONNXPLAIN_FUZZ", "10000"))  # messages to each method, where it is asked for by its marker


def valid() -> dict[str, list[Message]]:
    """Messages that are answered with OK, by the path of their method."""
    infer = [
        infer_request("iris_mlp", X),
        infer_request("iris_mlp.explain", X),
        infer_request("iris_mlp.explain.gradient", X, onnxplain_target="1"),
        infer_request("scalar", {"x": np.int64(3)}),
        infer_request("any_length", {"x": np.ones((1, 3), np.float32)}),
    ]
    explain = [
        explain_request("iris_mlp", X),
        explain_request("iris_mlp", X, "1", "top2", diagnostics=v1.DIAGNOSTICS_SUMMARY),
        explain_request("iris_mlp", X, recipe=v1.Recipe(name="gradient"), outputs=["probabilities"]),
        explain_request("iris_mlp", X, output_format=v1.OutputFormat(datatype="FP16", sum_axes=[1])),
    ]
    explain[1].targets.add(contrast=v1.Contrast(positive=0, negatives=[1, 2]))
    explain[1].targets.add(indices=v1.Indices(index=[0, 1]))
    explain[2].recipe.overrides.update({"head": "keep"})
    model = v1.ModelRef(name="iris_mlp", version="1")
    found: dict[str, list[Message]] = {
        EXPLAINER + "Explain": explain,
        EXPLAINER + "ExplainStream": [v1.ExplainStreamRequest(request=request) for request in explain],
        EXPLAINER + "GetExplainability": [v1.GetExplainabilityRequest(model=model)],
        EXPLAINER + "ListRecipes": [v1.ListRecipesRequest(page_size=3)],
        EXPLAINER + "CompileGraph": [v1.CompileGraphRequest(model=model, with_triton_config=True)],
        HEALTH: [health_pb2.HealthCheckRequest(service="model/iris_mlp")],
    }
    found[EXPLAINER + "ExplainStream"].append(
        v1.ExplainStreamRequest(chunk={"key": "a", "offset": 1, "data": b"abc"})  # type: ignore[arg-type]
    )
    for name, method in RPCS.items():
        named = {f.name for f in method.request.DESCRIPTOR.fields}
        fields = {f: v for f, v in {"name": "iris_mlp", "model_name": "iris_mlp", "version": "1"}.items() if f in named}
        found[f"/{INFERENCE}/{name}"] = infer if "Infer" in name else [method.request(**fields)]
    for load in ("RepositoryModelLoad", "RepositoryModelUnload"):  # of a model that no other call asks for
        found[f"/{INFERENCE}/{load}"] = [getattr(oip, f"{load}Request")(model_name="doubles")]
    return found


VALID = valid()
WORDS = [
    "iris_mlp",
    "iris_mlp.explain",
    "X",
    "top3",
    "top99999999",
    "predicted",
    "BYTES",
    "FP32",
    "../x",
    "\0",
    "",
    "é",
]
NUMBERS = [0, 1, -1, 2, 5, 2**31 - 1, -(2**31)]


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values of one field that is no message."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=64)
        return st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.integers(0, 5)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return st.floats(width=32)
    bits = 32 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    signed = kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.one_of(st.sampled_from([n for n in NUMBERS if low <= n <= high]), st.integers(low, high))


def disturb(draw: Any, message: Message, depth: int = 0) -> None:
    """Change one field of a message, or of one inside it."""
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = draw(st.sampled_from(fields))
    if isinstance(message, struct_pb2.Struct):
        values = st.recursive(st.none() | st.floats(width=32) | st.text(max_size=5), lambda v: st.lists(v, max_size=2))
        message.update(draw(st.dictionaries(st.sampled_from(["head", "rules", "form", "x"]), values, max_size=3)))
        return
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        name = draw(st.sampled_from(["onnxplain_target", "onnxplain_x", "binary_data", "a" * 300]))
        entry = getattr(message, field.name)[name]
        disturb(draw, entry, depth + 1)
        return
    if field.is_repeated:
        items = getattr(message, field.name)
        act = draw(st.sampled_from(["add", "clear", "inside", "twice"]))
        if act == "clear" or (act != "add" and not items):
            message.ClearField(field.name)
        elif inner is not None:
            item = items.add()
            if act == "twice":
                item.CopyFrom(items[0])
            elif act == "inside":
                items.pop()
                item = items[draw(st.integers(0, len(items) - 1))] if items else items.add()
            disturb(draw, item, depth + 1)
        else:
            items.extend(draw(st.lists(scalars(field), min_size=1, max_size=20)))
    elif inner is not None:
        if depth < 6:
            target = getattr(message, field.name)
            target.SetInParent()
            disturb(draw, target, depth + 1)
    else:
        setattr(message, field.name, draw(scalars(field)))


@st.composite
def messages(draw: Any, paths: Sequence[str] = tuple(sorted(VALID))) -> tuple[str, list[bytes]]:
    """A method, and one to three messages for it: valid ones with fields changed, or with bytes changed."""
    path = draw(st.sampled_from(paths))
    count = draw(st.integers(1, 3)) if "Stream" in path else 1
    sent = []
    for _ in range(count):
        message = type(VALID[path][0])()
        message.CopyFrom(draw(st.sampled_from(VALID[path])))
        if draw(st.booleans()):
            for _ in range(draw(st.integers(1, 3))):
                disturb(draw, message)
            sent.append(message.SerializeToString())
        else:
            sent.append(flipped(message.SerializeToString(), random.Random(draw(st.integers(0, 2**32)))))
    return path, sent


def flipped(raw: bytes, rng: random.Random) -> bytes:
    """Bytes with a few of them changed, lost, doubled or moved."""
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not data:
            return bytes(rng.randbytes(rng.randrange(32)))
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 2:
                del data[at : at + rng.randrange(1, 8)]
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 64)]
            case 4:
                data[at:at] = rng.randbytes(rng.randrange(1, 8))
    return bytes(data)


def ended(channel: grpc.Channel, path: str, sent: list[bytes]) -> tuple[str, str]:
    """The code and text that a call ends with; the same for an error inside a stream of answers."""
    call = channel.stream_stream(path, request_serializer=None, response_deserializer=None)
    try:
        for reply in call(iter(sent), timeout=SECONDS):
            if path.endswith("ExplainStream"):
                fault = v1.ExplainStreamResponse.FromString(reply).error
                if fault.code:
                    return grpc_name(fault.code), fault.text
            elif path.endswith("ModelStreamInfer"):
                text = oip.ModelStreamInferResponse.FromString(reply).error_message
                if "internal error" in text:
                    return "INTERNAL", text
    except grpc.RpcError as error:
        return error.code().name, error.details()  # type: ignore[attr-defined]
    return "OK", ""


def grpc_name(number: int) -> str:
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


def rules(max_examples: int) -> settings:
    """Of a run without shrinking: a message that fails is printed as it is."""
    return settings(
        max_examples=max_examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def fuzz(folder: Any, examples: int, each: bool = False) -> dict[str, Any]:
    """Send so many calls to a server of their own, of all methods together or of each; what it did."""
    codes: dict[str, int] = {}
    arguments = ("--model-control-mode", "explicit", "--load-model", "*", "--allow-export")
    with running_server(folder, *arguments) as running, grpc.insecure_channel(running.address) as channel:

        def call(case: tuple[str, list[bytes]]) -> None:
            code, text = ended(channel, *case)
            codes[code] = codes.get(code, 0) + 1
            assert code in FINE, f"{code}: {text}; {running.log[-3000:]}"

        for path, sent in VALID.items():  # what the fuzzer starts from is right
            for message in sent:
                ended(channel, path, [message.SerializeToString()])
        before = 0
        try:
            sets = [(path,) for path in sorted(VALID)] if each else [tuple(sorted(VALID))]
            for part in range(2):  # after the first half nearly everything is compiled that will be
                for paths in sets:
                    seed(part)(rules(max_examples=examples // 2)(given(messages(paths))(call)))()
                before = before or resident(running.process.pid)
        finally:
            print(f"\n{codes}")
        assert running.process.poll() is None
        assert healthy(channel)
        assert "Traceback" not in running.log and "unexpected" not in running.log, running.log[-4000:]
        return {"codes": codes, "grown": resident(running.process.pid) - before}


def test_messages_that_the_fuzzer_starts_from_are_answered(server):
    with grpc.insecure_channel(server.address) as channel:
        for path, sent in VALID.items():
            for message in sent:
                code, text = ended(channel, path, [message.SerializeToString()])
                good = code == "OK" or code in ("UNIMPLEMENTED", "FAILED_PRECONDITION", "PERMISSION_DENIED")
                assert good or "chunk" in text, f"{path}: {code} {text}"


def test_changed_messages_get_an_error_of_ours(tmp_path):
    found = fuzz(repository(tmp_path), 400)
    assert found["codes"].get("OK", 0) > 20 and found["codes"].get("INVALID_ARGUMENT", 0) > 20


@pytest.mark.soak
def test_ten_thousand_changed_messages_to_each_method_leave_a_server_as_it_was(tmp_path):
    found = fuzz(repository(tmp_path), EACH, each=True)
    print(f"\n{found}")
    assert sum(found["codes"].values()) >= EACH * len(VALID)
    assert found["grown"] < 50 * 2**20
