"""REST is the gRPC service with other bytes: the same answers, bit for bit, and the same faults."""

from __future__ import annotations

import gzip
import json
import zlib

import numpy as np
import pytest
from over_http import served
from service.nets import repository
from service.rpc import infer, infer_arrays, infer_request

from onnxplain.server.http.tensors import json_array, json_values
from onnxplain.sources import DirectorySource
from onnxplain.wire.tensors import DATATYPES, to_array, to_raw

X = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, np.float32(1e-7)]], np.float32)
HEAD = "inference-header-content-length"
INFER = "/v2/models/iris_mlp/infer"


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    with served([DirectorySource(repository(tmp_path_factory.mktemp("models")))]) as server:
        yield server


def tensor(name, array, **more):
    kind = next(word for word, dtype in DATATYPES.items() if dtype == array.dtype)
    return {"name": name, "datatype": kind, "shape": list(array.shape), "data": json_values(array), **more}


def by_grpc(rest, model, arrays, **more):
    with rest.channel() as channel:
        return infer_arrays(infer(channel)(infer_request(model, arrays, **more)))


def arrays_of(answer):
    """The outputs of a reply, whichever form each has."""
    size = int(answer.headers.get(HEAD, len(answer.body)))
    head, tail, found = json.loads(answer.body[:size]), answer.body[size:], {}
    for output in head["outputs"]:
        kind, shape, bytes_ = output["datatype"], output["shape"], output.get("parameters", {}).get("binary_data_size")
        if bytes_ is None:
            found[output["name"]] = json_array(kind, shape, output["data"], output["name"])
        else:
            found[output["name"]] = to_array(kind, shape, tail[:bytes_], output["name"])
            tail = tail[bytes_:]
    assert not tail
    return found


def binary(arrays, *, wanted=None, **more):
    head = {
        "inputs": [
            {**tensor(name, array), "parameters": {"binary_data_size": array.nbytes}} for name, array in arrays.items()
        ],
        **more,
    }
    for entry in head["inputs"]:
        del entry["data"]
    text = json.dumps(head).encode()
    return text + b"".join(map(to_raw, arrays.values())), {HEAD: str(len(text))}


@pytest.mark.parametrize("model", ["iris_mlp", "iris_mlp.explain", "iris_mlp.explain.gradient"])
@pytest.mark.parametrize("nested", [True, False])
def test_json_is_bit_for_bit_what_grpc_answers(rest, model, nested):
    entry = tensor("X", X)
    entry["data"] = entry["data"] if nested else X.reshape(-1).tolist()
    answer = rest.ask("POST", f"/v2/models/{model}/infer", {"inputs": [entry]})
    assert answer.status == 200 and HEAD not in answer.headers
    expected = by_grpc(rest, model, {"X": X})
    found = arrays_of(answer)
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype and found[name].tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("model", ["iris_mlp", "iris_mlp.explain"])
def test_binary_is_bit_for_bit_what_grpc_answers(rest, model):
    body, headers = binary({"X": X}, parameters={"binary_data_output": True})
    answer = rest.ask("POST", f"/v2/models/{model}/versions/1/infer", body, headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    expected = by_grpc(rest, model, {"X": X})
    found = arrays_of(answer)
    assert {name: a.tobytes() for name, a in found.items()} == {name: a.tobytes() for name, a in expected.items()}


def test_each_output_has_the_form_that_was_asked_for(rest):
    body, headers = binary(
        {"X": X},
        outputs=[{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "label"}],
    )
    answer = rest.ask("POST", INFER, body, headers)
    head = json.loads(answer.body[: int(answer.headers[HEAD])])
    forms = {output["name"]: "data" in output for output in head["outputs"]}
    assert forms == {"probabilities": False, "label": True}
    assert set(arrays_of(answer)) == {"probabilities", "label"}


def test_a_body_of_bytes_alone_is_the_only_input(rest):
    answer = rest.ask("POST", INFER, X.tobytes(), {HEAD: "0"})
    assert (
        arrays_of(answer)["probabilities"].tobytes() == by_grpc(rest, "iris_mlp", {"X": X})["probabilities"].tobytes()
    )
    assert rest.ask("POST", INFER, X.tobytes()[:-1], {HEAD: "0"}).status == 400
    assert "two" not in rest.ask("POST", "/v2/models/work/infer", b"", {HEAD: "0"}).error


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_packed_bodies_are_unpacked(rest, pack):
    coding = "gzip" if pack is gzip.compress else "deflate"
    body = pack(json.dumps({"inputs": [tensor("X", X)]}).encode())
    assert rest.ask("POST", INFER, body, {"content-encoding": coding}).status == 200
    assert rest.ask("POST", INFER, body[:-3], {"content-encoding": coding}).status == 400
    assert rest.ask("POST", INFER, body, {"content-encoding": "br"}).status == 415
    assert rest.ask("POST", INFER, b"{}", {"content-encoding": coding}).status == 400


def test_a_small_body_does_not_become_a_large_one(rest):
    bomb = gzip.compress(b"0" * (65 * 2**20))
    assert len(bomb) < 100_000
    answer = rest.ask("POST", INFER, bomb, {"content-encoding": "gzip"})
    assert answer.status == 413 and "--max-message-bytes" in answer.error


def test_what_a_server_says_of_itself(rest):
    assert rest.ask("GET", "/v2").json["name"] == "onnxplain"
    assert rest.ask("GET", "/v2/health/live").json == {"live": True}
    assert rest.ask("GET", "/v2/health/ready").json == {"ready": True}
    assert rest.ask("HEAD", "/v2/health/ready").body == b""
    assert rest.ask("GET", "/v2/models/iris_mlp/versions/1/ready").json == {"name": "iris_mlp", "ready": True}
    for unknown in ("nope", "nope.explain", "iris_mlp.explain.nope"):
        assert rest.ask("GET", f"/v2/models/{unknown}/ready").status == 404
    metadata = rest.ask("GET", "/v2/models/iris_mlp").json
    assert metadata["inputs"] == [{"name": "X", "datatype": "FP32", "shape": [-1, 4]}]
    assert "properties" not in metadata
    config = rest.ask("GET", "/v2/models/iris_mlp/config").json
    assert config["input"][0]["data_type"] == "TYPE_FP32" and config["input"][0]["dims"][-1] == 4
    names = {entry["name"] for entry in rest.ask("GET", "/v2/models/stats").json["model_stats"]}
    assert {"iris_mlp", "scalar"} <= names
    index = rest.ask("POST", "/v2/repository/index", {"ready": True}).json
    assert {"name": "iris_mlp", "version": "1", "state": "READY", "reason": ""} in index


def test_loading_is_refused_as_over_grpc(rest):
    for verb in ("load", "unload"):
        answer = rest.ask(
            "POST", f"/v2/repository/models/iris_mlp/{verb}", {"parameters": {"unload_dependents": False}}
        )
        assert answer.status == 400


@pytest.mark.parametrize(
    "body, says",
    [
        (b"", "inputs"),
        (b"[]", "an array, expected an object"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"inputs": [], "inputs": []}', "twice"),
        ({"inputs": []}, "missing"),
        ({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4]}]}, "inputs[0].data is missing"),
        ({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3]}]}, "3 elements"),
        ({"inputs": [{"name": "X", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3]]}]}, "not nested"),
        ({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, "4"]}]}, "takes numbers"),
        ({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, True]}]}, "true or false"),
        ({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 1e39]}]}, "beyond FP32"),
        (b'{"inputs": [{"name": "X", "datatype": "FP64", "shape": [1], "data": [1e999]}]}', "beyond FP64"),
        ({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, -4], "data": []}]}, "negative"),
        ({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1.0, 4], "data": []}]}, "whole numbers"),
        ({"inputs": [{"name": "X", "datatype": "FLOAT", "shape": [1], "data": [1]}]}, "datatype"),
        ({"inputs": [{"name": "X", "datatype": "INT8", "shape": [1], "data": [128]}]}, "128 is beyond INT8"),
        ({"inputs": [{"name": "X", "datatype": "INT64", "shape": [1], "data": [1.0]}]}, "found 1.0"),
        ({"inputs": [{"name": "Y", "datatype": "FP32", "shape": [1], "data": [1]}]}, "no input named"),
        ({"inputs": [], "output": []}, "Did you mean outputs"),
        ({"model_name": "other", "inputs": []}, "model_name"),
        ({"parameters": {"a": None}, "inputs": []}, "null"),
    ],
)
def test_whatever_is_wrong_is_one_line_with_its_field(rest, body, says):
    answer = rest.ask("POST", INFER, body)
    assert answer.status == 400 and says in answer.error and "\n" not in answer.error
    assert answer.json["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("length", ["-1", "x", "999999", "1" * 30, "1.0"])
def test_a_head_that_is_no_part_of_the_body_is_refused(rest, length):
    answer = rest.ask("POST", INFER, {"inputs": [tensor("X", X)]}, {HEAD: length})
    assert answer.status == 400 and HEAD in answer.error


@pytest.mark.parametrize("size", [-1, 31, 33, 1.0, True, "32", 10**30])
def test_binary_sizes_are_the_bytes_there_are(rest, size):
    head = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": size}}]}
    text = json.dumps(head).encode()
    assert rest.ask("POST", INFER, text + X.tobytes(), {HEAD: str(len(text))}).status == 400


@pytest.mark.parametrize("datatype", DATATYPES)
def test_numbers_survive_json_in_every_type(datatype):
    dtype = DATATYPES[datatype]
    rng = np.random.default_rng(0)
    if datatype == "BYTES":
        array = np.array(["", "é", "NaN", "\x00"], object)
    else:
        bits = rng.integers(0, 256, 4096 * dtype.itemsize, np.uint8)
        array = (bits & 1 if datatype == "BOOL" else bits).view(dtype)
        if dtype.kind in "fV":  # a NaN has one word, whatever its bits
            array = np.where(np.isnan(array.astype(np.float64)), np.array(np.nan, dtype), array)
    array = array.reshape(2, -1)
    said = json.loads(json.dumps(json_values(array), allow_nan=False))
    read = json_array(datatype, array.shape, said, "x")
    assert to_raw(read) == to_raw(array)
