"""Numbers at the edge of their types and tensors without elements: right answers or clear errors, by both protocols."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from .rpc import code, explain, explain_request, infer, infer_arrays, infer_request

F32 = np.float32
TINY = np.finfo(F32).smallest_subnormal
VALUES = {
    "nan": [np.nan, 1, 2, 3],
    "inf": [np.inf, -np.inf, 1, 2],
    "denormal": [TINY, -TINY, 100 * TINY, 1],
    "largest": [np.finfo(F32).max, np.finfo(F32).min, 1, 2],
    "zero": [0, -0.0, 0, 0],
}
ERRORS = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "DATA_LOSS", "OUT_OF_RANGE"}  # each in words of ours


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.mark.parametrize("kind", VALUES)
def test_a_model_answers_as_its_arithmetic_says(channel, kind):
    x = np.array([VALUES[kind]], F32)
    y = infer_arrays(infer(channel)(infer_request("any_length", {"x": x}), timeout=10))["y"]
    np.testing.assert_allclose(y, 2 * np.tanh(x), rtol=1e-6, atol=np.finfo(F32).tiny)  # onnxruntime flushes


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("model", ["iris_mlp", "any_length"])
def test_an_explanation_is_of_its_input_or_an_error_of_ours(channel, kind, model):
    x = np.array([VALUES[kind]], F32)
    name = "X" if model == "iris_mlp" else "x"
    for call, request in (
        (explain(channel), explain_request(model, {name: x})),
        (infer(channel), infer_request(f"{model}.explain", {name: x})),
    ):
        try:
            reply = call(request, timeout=20)
        except grpc.RpcError as error:
            assert code(error) in ERRORS, error.details()
            assert error.details()
            continue
        if hasattr(reply, "attributions"):
            relevance = np.frombuffer(reply.attributions[0].relevance.raw, F32)
        else:
            relevance = infer_arrays(reply)[f"{name}.relevance"]
        assert relevance.size == x.size and np.isfinite(relevance).all()


@pytest.mark.parametrize("shape", [(0, 4), (1, 0), (0, 0)])
def test_tensors_without_elements_get_their_like_or_an_error(channel, shape):
    x = np.zeros(shape, F32)
    y = infer_arrays(infer(channel)(infer_request("any_length", {"x": x}), timeout=10))["y"]
    assert y.shape == shape
    for call, request in (
        (explain(channel), explain_request("any_length", {"x": x})),
        (explain(channel), explain_request("any_length", {"x": x}, "0")),
        (infer(channel), infer_request("any_length.explain", {"x": x})),
    ):
        try:
            reply = call(request, timeout=20)
        except grpc.RpcError as error:
            assert code(error) in ERRORS, error.details()
            continue
        tensor = reply.attributions[0].relevance if hasattr(reply, "attributions") else reply.outputs[1]
        assert 0 in tensor.shape


def test_scalars_go_in_and_out(channel):
    reply = infer(channel)(infer_request("scalar", {"x": np.int64(21)}), timeout=10)
    assert list(reply.outputs[0].shape) == []
    assert infer_arrays(reply)["y"] == 42
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel)(infer_request("scalar", {"x": np.array([21])}), timeout=10)
    assert code(caught.value) == "INVALID_ARGUMENT"
    assert "expected []" in caught.value.details()


def test_a_scalar_is_explained_or_said_to_be_impossible(channel):
    for call, request in (
        (explain(channel), explain_request("scalar", {"x": np.int64(1)})),
        (infer(channel), infer_request("scalar.explain", {"x": np.int64(1)})),
    ):
        try:
            reply = call(request, timeout=20)
        except grpc.RpcError as error:
            assert code(error) in ERRORS, error.details()
            continue
        tensor = reply.attributions[0].relevance if hasattr(reply, "attributions") else reply.outputs[1]
        assert list(tensor.shape) in ([], [1])  # one seed makes one row


def test_doubles_stay_doubles(channel):
    x = np.array([[4.0, -1.0, 1e-310]])
    y = infer_arrays(infer(channel)(infer_request("doubles", {"x": x}), timeout=10))["y"]
    assert y.dtype == np.float64
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(y, np.sqrt(x))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.bool_])
def test_another_type_than_the_models_is_told_with_its_field(channel, dtype):
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel)(infer_request("any_length", {"x": np.ones((1, 2), dtype)}), timeout=10)
    assert code(caught.value) == "INVALID_ARGUMENT"
    assert "expected FP32" in caught.value.details()
