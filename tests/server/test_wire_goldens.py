"""Requests as tritonclient 2.73 and @grpc/grpc-js 1.14 sent them once (tests/golden/wire), answered for ever."""

from __future__ import annotations

import functools
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from running import MODELS, running_server

from onnxplain import Explainer
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire import inference
from onnxplain.wire.tensors import to_array, v1_array

GOLDEN = Path(__file__).parents[1] / "golden" / "wire"
EXPLAINER = v1.DESCRIPTOR.services_by_name["ExplainerService"]
IRIS = MODELS / "iris_mlp"
X = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], np.float32)  # in every request that has numbers
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # another CPU adds in another order


@pytest.fixture(scope="module")
def channel(tmp_path_factory):
    """A server of one model: the requests were recorded beside others, which they do not name."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(IRIS, folder / "iris_mlp")
    with running_server(folder) as server, grpc.insecure_channel(server.address) as found:
        yield found


def messages(file: str) -> list[bytes]:
    """What was sent in one call."""
    data, found = (GOLDEN / file).read_bytes(), []
    while data:
        flag, size = struct.unpack_from(">BI", data)
        assert flag == 0
        found.append(data[5 : 5 + size])
        data = data[5 + size :]
    return found


def replies(channel: grpc.Channel, file: str) -> list[Any]:
    """The replies to the very bytes, parsed."""
    name = file.removesuffix(".bin").split("-")[2]
    if name in inference.RPCS:
        path, reply = f"/{inference.INFERENCE}/{name}", inference.RPCS[name].response
    else:
        method = EXPLAINER.methods_by_name[name]
        path, reply = f"/{EXPLAINER.full_name}/{name}", getattr(v1, method.output_type.name)
    call = channel.stream_stream(path, None, reply.FromString)  # on the wire, unary is a stream of one
    return list(call(iter(messages(file)), timeout=30))


@functools.cache
def model() -> dict[str, np.ndarray]:
    """Outputs of the model by plain onnxruntime."""
    session = onnxruntime.InferenceSession(str(IRIS / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"X": X}), strict=True))


@functools.cache
def offline(method: str) -> Explainer:
    labels = (IRIS / "labels.txt").read_text().split()
    return Explainer(IRIS / "1" / "model.onnx", method, labels=labels, kind="classification")


def relevance(target: str | int, method: str = "gradient_x_input") -> np.ndarray:
    return offline(method).explain(X, target).relevance


def infer(**expected: np.ndarray) -> Callable[[Any], None]:
    """The reply holds exactly these outputs."""

    def check(reply: Any) -> None:
        found = {
            t.name: to_array(t.datatype, t.shape, raw, t.name)
            for t, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
        }
        assert found.keys() == expected.keys() and reply.model_version == "1"
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_allclose(found[name], array, **CLOSE)

    return check


def compiled(target: int) -> Callable[[Any], None]:
    """`iris_mlp.explain` with all its outputs."""

    def check(reply: Any) -> None:
        wanted = model() | {"X.relevance": relevance(target)}
        explained = offline("gradient_x_input").explained[0]
        wanted |= {explained: offline("gradient_x_input").subject.forward({"X": X}, [explained])[explained]}
        infer(**{tensor.name: wanted[tensor.name] for tensor in reply.outputs})(reply)
        assert {tensor.name for tensor in reply.outputs} >= {"label", "probabilities", "X.relevance"}
        assert reply.parameters["onnxplain_recipe_digest"].string_param == offline("gradient_x_input").recipe.digest

    return check


def seeded(reply: Any) -> None:
    """Row n is asked about class n."""
    rows = [relevance(n)[n] for n in (0, 1)]
    infer(**{"X.relevance": np.stack(rows)})(reply)


def explained(targets: list[str], arrays: list[np.ndarray], request_id: str = "") -> Callable[[Any], None]:
    def check(reply: Any) -> None:
        assert [target.name for target in reply.targets] == targets and reply.request_id == request_id
        np.testing.assert_allclose(v1_array(reply.attributions[0].relevance, ""), np.concatenate(arrays), **CLOSE)

    return check


def ports(reply: Any) -> None:
    assert [(t.name, t.datatype, list(t.shape)) for t in reply.inputs] == [("X", "FP32", [-1, 4])]
    assert [t.name for t in reply.outputs] == ["label", "probabilities"] and reply.platform == "onnxruntime_onnx"


def graph_ports(reply: Any) -> None:
    assert [t.name for t in reply.inputs] == ["X", "add_result2.seed"] and list(reply.versions) == ["1"]
    assert "X.relevance" in [t.name for t in reply.outputs]


def settings(reply: Any) -> None:
    assert (reply.config.name, reply.config.backend) == ("iris_mlp", "onnxruntime")
    assert [entry.name for entry in reply.config.input] == ["X"]


def index(reply: Any) -> None:
    assert {(m.name, m.version, m.state) for m in reply.models} >= {
        ("iris_mlp", "1", "READY"),
        ("iris_mlp.explain", "1", "READY"),
    }


def truth(field: str) -> Callable[[Any], None]:
    return lambda reply: _is_true(getattr(reply, field))


def _is_true(value: bool) -> None:
    assert value is True


def server_itself(reply: Any) -> None:
    assert reply.name == "onnxplain" and "binary_tensor_data" in reply.extensions


def statistics(reply: Any) -> None:
    assert [(s.name, s.version) for s in reply.model_stats] == [("iris_mlp", "1")]


def explainability(reply: Any) -> None:
    assert (reply.model.version, reply.supported, list(reply.labels)) == (
        "1",
        True,
        ["setosa", "versicolor", "virginica"],
    )


def recipes(reply: Any) -> None:
    assert len(reply.recipes) == 5 and reply.next_page_token


MEANINGS: dict[str, Callable[[Any], None]] = {
    "triton-00-ServerLive": truth("live"),
    "triton-01-ServerReady": truth("ready"),
    "triton-02-ModelReady": truth("ready"),
    "triton-03-ModelReady": truth("ready"),
    "triton-04-ServerMetadata": server_itself,
    "triton-05-ModelMetadata": ports,
    "triton-06-ModelMetadata": graph_ports,
    "triton-07-ModelConfig": settings,
    "triton-08-RepositoryIndex": index,
    "triton-09-ModelStatistics": statistics,
    "triton-10-ModelInfer": lambda reply: infer(**model())(reply),
    "triton-11-ModelInfer": lambda reply: infer(probabilities=model()["probabilities"])(reply),
    "triton-12-ModelInfer": compiled(2),
    "triton-13-ModelInfer": seeded,
    "node-00-ServerReady": truth("ready"),
    "node-01-ModelMetadata": ports,
    "node-02-ModelInfer": lambda reply: infer(**model())(reply),
    "node-03-ModelInfer": lambda reply: infer(**model())(reply),
    "node-04-ModelInfer": compiled(2),
    "node-05-GetExplainability": explainability,
    "node-06-ListRecipes": recipes,
    "node-07-Explain": lambda reply: explained(["virginica"], [relevance(2)])(reply),
    "node-08-Explain": lambda reply: explained(
        ["top 1", "versicolor", "virginica", "setosa vs versicolor"],
        [relevance(t, "gradient") for t in ("top2", "virginica", "0 vs 1")],
        "one",
    )(reply),
}
REFUSED = {
    "triton-14-ModelInfer": ("INVALID_ARGUMENT", "X: found shape [2, 3], expected [-1, 4]"),
    "triton-15-ModelInfer": ("NOT_FOUND", "Did you mean iris_mlp"),
    "node-09-Explain": ("INVALID_ARGUMENT", "0 to 2"),
}
STREAMS = {"triton-16-ModelStreamInfer", "node-10-ExplainStream"}


def test_every_recorded_call_has_a_meaning():
    assert {path.stem for path in GOLDEN.glob("*.bin")} == {*MEANINGS, *REFUSED, *STREAMS}


@pytest.mark.parametrize("name", MEANINGS)
def test_a_recorded_request_means_what_it_meant(name, channel):
    (reply,) = replies(channel, f"{name}.bin")
    MEANINGS[name](reply)


@pytest.mark.parametrize("name", REFUSED)
def test_a_recorded_mistake_is_refused_in_the_same_words(name, channel):
    code, words = REFUSED[name]
    with pytest.raises(grpc.RpcError) as found:
        replies(channel, f"{name}.bin")
    assert found.value.code().name == code and words in found.value.details()


def test_a_recorded_stream_of_the_inference_protocol_is_answered_in_order(channel):
    found = replies(channel, "triton-16-ModelStreamInfer.bin")
    assert [reply.infer_response.id for reply in found] == ["first", "second"]
    for reply in found:
        assert not reply.error_message
        infer(**model())(reply.infer_response)


def test_a_recorded_stream_of_pieces_is_one_explanation(channel):
    found = replies(channel, "node-10-ExplainStream.bin")
    answers = [reply.response for reply in found if reply.WhichOneof("message") == "response"]
    assert {reply.request_id for reply in found} == {"pieces"} and len(answers) == 1
    explained(["virginica"], [relevance(2)], "pieces")(answers[0])
