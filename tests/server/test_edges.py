"""Laws of the edges: whatever is asked gets an answer or an error of ours, and every kind of model is served."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import struct_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import MODELS

from onnxplain import Explainer
from onnxplain.errors import InputError, OnnxplainError, UnsupportedModel
from onnxplain.inputs.settings import ModelSettings
from onnxplain.methods import METHODS
from onnxplain.server.handlers.explain_request import RELEVANCE
from onnxplain.server.handlers.local_model import LocalModel
from onnxplain.server.handlers.request_parameters import NEVER
from onnxplain.server.models.context import ServerContext
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.server.options import ServerOptions
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import DirectoryRepository, ResolvedModel
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import DATATYPES, to_array, v1_array, v1_tensor

HEAD = '<ir_version: 8, opset_import: ["" : 18]> '
X = np.load(MODELS / "digits_cnn/samples/three.npy")
IRIS = np.ones((2, 4), np.float32)


@pytest.fixture(scope="module")
def context():
    scheduler = Scheduler(1)
    yield ServerContext(ServerOptions(), scheduler, SessionCache(10**9), Metrics())
    scheduler.close()


@pytest.fixture(scope="module")
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def digits(context, threads):
    return LocalModel(LoadedModel(DirectoryRepository(MODELS).get("digits_cnn"), context), threads)


@pytest.fixture(scope="module")
def iris(context, threads):
    return LocalModel(LoadedModel(DirectoryRepository(MODELS).get("iris_mlp"), context), threads)


@pytest.fixture
def serve(context, threads, tmp_path):
    """A model, written in ONNX's text, as it is served."""

    def serve(text: str, model_settings: ModelSettings | None = None) -> LocalModel:
        path = tmp_path / "model.onnx"
        onnx.save(onnx.parser.parse_model(HEAD + text), path)
        return LocalModel(
            LoadedModel(ResolvedModel(path, "m", "1", model_settings or ModelSettings()), context), threads
        )

    return serve


def explain_digits(**more):
    return v1.ExplainRequest(inputs=[v1_tensor("input", X)], **more)


def overrides(values) -> struct_pb2.Struct:
    """A Struct of any numbers: its own update refuses those that JSON has not."""
    struct = struct_pb2.Struct()
    for name, value in values.items():
        if isinstance(value, float):
            struct.fields[name].number_value = value
        else:
            struct.update({name: value})
    return struct


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["steps", "baseline", "head", "rules", "unknown"])
def test_a_number_that_is_none_is_refused_by_its_name(digits, key, number):
    recipe = v1.Recipe(name="integrated_gradients", overrides=overrides({key: number}))
    with pytest.raises(OnnxplainError, match=f"{key} is NaN or infinite") as caught:
        asyncio.run(digits.explain(explain_digits(recipe=recipe)))
    assert caught.value.field == f"recipe.overrides.{key}"


STRANGE = [
    1e308, -1e308, 2.0**63, 1e-320, -1.0, 0.5, None, True, "", "x", "nan", "1e999", "9" * 400, "9" * 5000, "(" * 300,
    "-" * 5000 + "1", "{[]:1}", "\0", "[" * 100, [], [1.0], ["a"], [[1]], {}, {"a": 1}, [{}], [None], "a" * 100_000,
    "epsilon(epsilon=1e999)", "epsilon(epsilon=" + "9" * 400 + ")",
]  # fmt: skip


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: repr(value)[:24])
def test_any_value_of_any_option_is_taken_or_refused(digits, value):
    keys = {"method", "base", "head", "rules", "composite", "x"}.union(*(method.options for method in METHODS.values()))
    for method in METHODS:
        for key in sorted(keys):
            recipe = v1.Recipe(name=method, overrides=overrides({key: value}))
            request = explain_digits(recipe=recipe, output_format=v1.OutputFormat(validate_only=True))
            try:
                asyncio.run(digits.explain(request))
            except OnnxplainError:
                continue


@pytest.mark.parametrize("axes", [[2, -2], [1, 1], [0], [4], [-5], [2**31 - 1], [-(2**31)]])
def test_axes_that_cannot_be_summed_away_are_refused(digits, axes):
    with pytest.raises(InputError) as caught:
        asyncio.run(digits.explain(explain_digits(output_format=v1.OutputFormat(sum_axes=axes))))
    assert caught.value.field == "output_format.sum_axes"


@pytest.mark.parametrize("datatype", [*DATATYPES, "FP8", "fp32"])
@pytest.mark.parametrize("validate_only", [False, True])
def test_relevance_is_sent_as_floating_point_only(digits, datatype, validate_only):
    output_format = v1.OutputFormat(datatype=datatype, validate_only=validate_only)
    request = explain_digits(output_format=output_format)
    if datatype in RELEVANCE:
        for attribution in asyncio.run(digits.explain(request)).attributions:
            assert attribution.relevance.datatype == datatype
        return
    with pytest.raises(InputError, match=f"cannot be sent as '{datatype}'") as caught:
        asyncio.run(digits.explain(request))
    assert caught.value.field == "output_format.datatype"


@pytest.mark.parametrize(
    "more",
    [
        {"request_id": "x" * 129},
        {"targets": [v1.Target(expression="top" + "9" * 5000)]},
        {"targets": [v1.Target(expression=",".join("1" * 5000))]},
        {"targets": [v1.Target(expression="1" * 900)]},
        {"recipe": v1.Recipe(name="smooth_grad-" * 10_000)},
        {"recipe": v1.Recipe(name="lrp", overrides=overrides({"rules": ["a" * 100_000]}))},
    ],
    ids=["request_id", "top", "places", "index", "recipe", "rules"],
)
def test_words_without_end_are_refused(digits, more):
    with pytest.raises(OnnxplainError):
        asyncio.run(digits.explain(explain_digits(**more)))


# Models of every kind


def infer(served: LocalModel, **arrays: np.ndarray):
    """ModelInfer with raw inputs; the outputs by name."""
    request = oip.ModelInferRequest(model_name="m")
    for name, array in arrays.items():
        tensor = v1_tensor(name, array)
        request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        request.raw_input_contents.append(tensor.raw)
    reply = asyncio.run(served.infer(request))
    return {
        tensor.name: to_array(tensor.datatype, tensor.shape, raw, tensor.name)
        for tensor, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


BF16 = np.array([[1.5, -2.0], [0.1, 3.0]], ml_dtypes.bfloat16)


def test_bfloat16_comes_in_raw_and_goes_out(serve):
    served = serve(
        "g (bfloat16[N,2] x) => (bfloat16[N,2] y, float[N,2] z) "
        "{ wide = Cast<to=1>(x) z = Relu(wide) y = Cast<to=16>(z) }"
    )
    outputs = infer(served, x=BF16)
    expected = np.maximum(BF16.astype(np.float32), 0)
    assert outputs["y"].dtype == BF16.dtype and np.array_equal(outputs["y"].astype(np.float32), expected)
    assert outputs["z"].dtype == np.float32 and np.array_equal(outputs["z"], expected)
    config = asyncio.run(served.config("m")).config
    assert [config.input[0].data_type, config.output[0].data_type] == [oip_type("TYPE_BF16")] * 2


def oip_type(name: str) -> int:
    return oip.ModelInput.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name[name].number


def test_an_explanation_of_bfloat16_input_is_that_of_the_same_numbers(serve, tmp_path):
    served = serve("g (bfloat16[N,2] x) => (float[N,2] y) { wide = Cast<to=1>(x) y = Relu(wide) }")
    reply = asyncio.run(served.explain(v1.ExplainRequest(inputs=[v1_tensor("x", BF16)])))
    wide = np.maximum(BF16.astype(np.float32), 0)
    assert np.array_equal(v1_array(reply.scores, ""), wide)
    relevance = v1_array(reply.attributions[0].relevance, "").astype(np.float32)
    best = wide.argmax(1)
    expected = np.zeros_like(wide)
    expected[np.arange(2), best] = wide[np.arange(2), best]
    assert np.allclose(relevance, expected, rtol=1e-5)
    assert np.array_equal(relevance, Explainer(tmp_path / "model.onnx").explain(BF16).relevance.astype(np.float32))


ANSWERS = {  # a model without an explanation -> its input, and what it answers
    "labels": ("g (float[N,4] x) => (int64[N] y) { y = ArgMax<axis=1,keepdims=0>(x) }", np.eye(4, dtype=np.float32)),
    "integers": ("g (int64[N,4] x) => (int64[N,4] y) { y = Add(x,x) }", np.ones((2, 4), np.int64)),
    "strings": ("g (string[N] x) => (string[N] y) { y = Identity(x) }", np.array(["a", "bé"], object)),
    "booleans": ("g (bool[N,4] x) => (bool[N,4] y) { y = Not(x) }", np.ones((2, 4), bool)),
    "shape": ("g (float[N,4] x) => (int64[2] y) { y = Shape(x) }", np.ones((3, 4), np.float32)),
    "constant": ("g (float[N,4] x) => (float[1] y) { y = Constant<value=float[1]{2}>() }", IRIS),
}  # fmt: skip


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_model_that_cannot_be_explained_answers_and_says_why_not(kind, serve, tmp_path):
    text, x = ANSWERS[kind]
    served = serve(text)
    plain = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"x": x})
    assert np.array_equal(infer(served, x=x)["y"], plain[0])
    ((name, why_not),) = asyncio.run(served.explanations())
    assert name == "m.explain" and why_not
    assert asyncio.run(served.ready("m")) and not asyncio.run(served.ready("m.explain"))
    for method in METHODS:
        with pytest.raises(UnsupportedModel) as caught:
            asyncio.run(served.explain(v1.ExplainRequest(inputs=[v1_tensor("x", x)], recipe=v1.Recipe(name=method))))
        assert why_not in str(caught.value)
    told = asyncio.run(served.explainability(v1.GetExplainabilityRequest()))
    assert not told.supported and {blocked.method for blocked in told.blocked_methods} == set(METHODS)
    assert asyncio.run(served.metadata("m")).outputs and asyncio.run(served.config("m")).config.output


def test_scores_inside_a_model_that_answers_in_labels_are_explained_by_their_name(serve):
    served = serve("g (float[N,4] x) => (int64[N] y) { scores = Relu(x) y = ArgMax<axis=1,keepdims=0>(scores) }")
    request = v1.ExplainRequest(inputs=[v1_tensor("x", IRIS)], targets=[v1.Target(output="scores", expression="2")])
    (attribution,) = asyncio.run(served.explain(request)).attributions
    assert np.allclose(v1_array(attribution.relevance, ""), [[0, 0, 1, 0]] * 2)


def test_a_tensor_in_the_settings_that_is_not_there_costs_the_explanation_only(serve):
    plain = ModelSettings()
    served = serve(
        "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }",
        replace(plain, output=replace(plain.output, explain=("nope",))),
    )
    assert np.array_equal(infer(served, x=IRIS)["y"], IRIS)
    ((_, why_not),) = asyncio.run(served.explanations())
    assert "nope" in why_not


# What is said of a model


@pytest.mark.parametrize(
    ("versions", "policy"),
    [
        ("latest", {"latest": {"num_versions": 1}}),
        (3, {"latest": {"num_versions": 3}}),
        ("all", {"all": {}}),
        (("1", "3"), {"specific": {"versions": [1, 3]}}),
    ],
)
def test_the_configuration_has_the_version_policy_of_the_settings(serve, versions, policy):
    plain = ModelSettings()
    served = serve(
        "g (float16[N,4] x) => (float16[N,4] y) { y = Relu(x) }",
        replace(plain, serving=replace(plain.serving, versions=versions)),
    )
    config = asyncio.run(served.config("m")).config
    assert config.version_policy == type(config.version_policy)(**policy)
    assert config.default_model_filename == "model.onnx"
    assert asyncio.run(served.config("m.explain")).config.default_model_filename == ""
    assert [config.input[0].data_type, config.output[0].data_type] == [oip_type("TYPE_FP16")] * 2
    assert config.max_batch_size == ServerOptions().rows_per_batch and list(config.input[0].dims) == [4]
    assert config.HasField("dynamic_batching")


# Parameters


@pytest.mark.parametrize("name", [*NEVER, "triton_enable_empty_final_response", "onnxplain_x", "anything"])
@pytest.mark.parametrize("part", ["request", "input", "output"])
def test_a_parameter_that_is_not_honoured_is_refused_by_its_name(iris, name, part):
    request = oip.ModelInferRequest(model_name="iris_mlp", raw_input_contents=[IRIS.tobytes()])
    tensor = request.inputs.add(name="X", datatype="FP32", shape=[2, 4])
    wanted = request.outputs.add(name="probabilities")
    {"request": request, "input": tensor, "output": wanted}[part].parameters[name].string_param = "17"
    with pytest.raises(OnnxplainError, match=name) as caught:
        asyncio.run(iris.infer(request))
    assert "parameters" in caught.value.field


def test_parameters_that_ask_for_what_is_done_anyway_are_taken(iris):
    request = oip.ModelInferRequest(model_name="iris_mlp", raw_input_contents=[IRIS.tobytes()])
    request.parameters["binary_data_output"].bool_param = True
    request.parameters["sequence_id"].int64_param = 0
    request.parameters["sequence_end"].bool_param = False
    tensor = request.inputs.add(name="X", datatype="FP32", shape=[2, 4])
    tensor.parameters["binary_data_size"].int64_param = IRIS.nbytes
    request.outputs.add(name="probabilities").parameters["binary_data"].bool_param = True
    assert len(asyncio.run(iris.infer(request)).raw_output_contents) == 1


# Anything at all

NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, -1.0, 2.0, 1e30, 2.0**63]))
TEXTS = st.one_of(
    st.sampled_from(["", "input", "X", "lrp", "gradient", "top2", "1 vs 2", "predicted", "FP32", "epsilon", "keep"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
KEYS = st.sampled_from(sorted({"method", "base", "head", "rules", "x"}.union(*(m.options for m in METHODS.values()))))


def value_message(value) -> struct_pb2.Value:
    if isinstance(value, dict):
        return struct_pb2.Value(
            struct_value=struct_pb2.Struct(fields={key: value_message(inner) for key, inner in value.items()})
        )
    if isinstance(value, list):
        return struct_pb2.Value(list_value=struct_pb2.ListValue(values=[value_message(inner) for inner in value]))
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    return struct_pb2.Value(number_value=value) if isinstance(value, float) else struct_pb2.Value(string_value=value)


INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
SMALL = st.integers(-3, 12)
SIDES = st.one_of(SMALL, INT64)
TENSORS = st.builds(
    lambda name, datatype, shape, raw: {
        "name": name, "datatype": datatype, "shape": shape, "raw": raw
    },
    st.sampled_from(["X", "", "x"]),
    st.sampled_from([*DATATYPES, "FP8"]),
    st.one_of(st.just([2, 4]), st.lists(SIDES, max_size=4)),
    st.one_of(st.just(IRIS.tobytes()), st.just(b"\xff" * 32), st.binary(max_size=40)),
)  # fmt: skip
SEEDS = st.builds(
    lambda datatype, shape, fill: {"datatype": datatype, "shape": shape, "raw": fill * (math.prod(shape) * 4)},
    st.sampled_from(["FP32", "BF16", "INT64", "BOOL", "BYTES"]),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([b"\0", b"\x01", b"\x7f", b"\xff"]),
)
TARGETS = st.one_of(
    st.just({}),
    st.builds(lambda text: {"expression": text}, TEXTS),
    st.builds(lambda k: {"arg_max": {"k": k}}, st.one_of(SMALL, INT32)),
    st.builds(lambda index: {"indices": {"index": index}}, st.lists(st.one_of(SMALL, INT64), max_size=3)),
    st.builds(
        lambda one, others: {"contrast": {"positive": one, "negatives": others}},
        st.one_of(SMALL, INT64),
        st.lists(st.one_of(SMALL, INT64), max_size=3),
    ),
    st.builds(lambda seed: {"seed": seed}, SEEDS),
    st.builds(lambda text: {"output": text}, TEXTS),
)
GOOD = {"name": "X", "datatype": "FP32", "shape": [2, 4], "raw": IRIS.tobytes()}


@st.composite
def explain_requests(draw) -> v1.ExplainRequest:
    request = v1.ExplainRequest(
        inputs=draw(st.one_of(st.just([GOOD]), st.lists(TENSORS, max_size=2))),
        targets=draw(st.lists(TARGETS, max_size=2)),
        attribute_to=draw(st.one_of(st.just([]), st.lists(TEXTS, max_size=2))),
        outputs=draw(st.one_of(st.just([]), st.lists(TEXTS, max_size=2))),
        diagnostics=draw(st.integers(0, 7)),
        output_format=v1.OutputFormat(
            datatype=draw(st.sampled_from(["", "FP16", "FP64", "INT8"])),
            sum_axes=draw(st.lists(st.one_of(SMALL, INT32), max_size=2)),
            validate_only=draw(st.booleans()),
        ),
    )
    if draw(st.booleans()):
        request.recipe.name = draw(st.one_of(st.sampled_from(["", "gradient", "lrp", "lrp-epsilon"]), TEXTS))
        if draw(st.booleans()):
            fields = draw(st.dictionaries(KEYS, VALUES, max_size=2))
            fields.pop("samples", None), fields.pop("steps", None)  # of how much work, bounded elsewhere
            request.recipe.overrides.CopyFrom(value_message(fields).struct_value)
    return request


@st.composite
def infer_requests(draw):
    name = draw(st.sampled_from(["iris_mlp", "iris_mlp.explain", "iris_mlp.explain.gradient", "iris_mlp.explain.x"]))
    tensors = draw(st.one_of(st.just([GOOD]), st.lists(TENSORS, max_size=2)))
    request = oip.ModelInferRequest(model_name=name)
    raw = draw(st.booleans())
    for tensor in tensors:
        entry = request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        if raw:
            request.raw_input_contents.append(tensor["raw"])
        else:
            entry.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=8)))
    for output in draw(st.lists(st.sampled_from(["probabilities", "label", "X.relevance", "x"]), max_size=2)):
        request.outputs.add(name=output)
    for key in draw(st.lists(st.sampled_from(["onnxplain_target", "onnxplain_target_index", "x"]), max_size=2)):
        choice = draw(st.sampled_from(["string_param", "int64_param", "double_param", "bool_param", "uint64_param"]))
        value = {
            "string_param": TEXTS, "int64_param": INT64, "double_param": st.floats(), "bool_param": st.booleans(),
            "uint64_param": st.integers(0, 2**64 - 1),
        }[choice]  # fmt: skip
        setattr(request.parameters[key], choice, draw(value))
    return request


FEW = settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@FEW
@given(request=explain_requests())
def test_no_explain_request_ends_in_an_unexpected_error(iris, request):
    try:
        asyncio.run(iris.explain(v1.ExplainRequest.FromString(request.SerializeToString())))
    except OnnxplainError as error:
        assert error.status != "INTERNAL" and str(error)


@FEW
@given(request=infer_requests())
def test_no_infer_request_ends_in_an_unexpected_error(iris, request):
    try:
        asyncio.run(iris.infer(oip.ModelInferRequest.FromString(request.SerializeToString())))
    except OnnxplainError as error:
        assert error.status != "INTERNAL" and str(error)
