"""KServe's first protocol gives the numbers that the other protocols give."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from over_http import served
from running import MODELS
from service.nets import scalar, store
from service.rpc import infer, infer_arrays, infer_request

from onnxplain.server.http.tensors import json_array
from onnxplain.sources import DirectorySource

X = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
PREDICT, EXPLAIN = "/v1/models/iris_mlp:predict", "/v1/models/iris_mlp:explain"


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(MODELS / "iris_mlp", folder / "iris_mlp", ignore=shutil.ignore_patterns("samples"))
    store(scalar(), folder, "scalar")
    with served([DirectorySource(folder)]) as server:
        yield server


def test_models_and_whether_they_answer(rest):
    assert rest.ask("GET", "/v1/models").json == {"models": ["iris_mlp", "scalar"]}
    assert rest.ask("GET", "/v1/models/iris_mlp").json == {"name": "iris_mlp", "ready": True}
    assert rest.ask("GET", "/v1/models/nope").status == 404


BODIES = [{"instances": X}, {"instances": [{"X": row} for row in X]}, {"inputs": {"X": X}}, {"inputs": X}]


@pytest.mark.parametrize("body", BODIES)
def test_predictions_are_the_models_answers(rest, body):
    with rest.channel() as channel:
        expected = infer_arrays(infer(channel)(infer_request("iris_mlp", {"X": np.array(X, np.float32)})))
    found = rest.ask("POST", PREDICT, body).json
    if "instances" in body:
        found = {name: [row[name] for row in found["predictions"]] for name in expected}
    else:
        found = found["outputs"]
    for name, array in expected.items():
        kind = "INT64" if array.dtype == np.int64 else "FP32"
        assert json_array(kind, array.shape, found[name], name).tobytes() == array.tobytes()


def test_one_output_stands_alone(rest):
    assert rest.ask("POST", "/v1/models/scalar:predict", {"inputs": {"x": 3}}).json == {"outputs": 6.0}


@pytest.mark.parametrize("words", [{}, {"target": ["0", "top2"]}, {"method": "gradient"}, {"method": "rise"}])
def test_explanations_are_those_of_v2(rest, words):
    tensor = {"name": "X", "datatype": "FP32", "shape": [2, 4], "data": X}
    expected = rest.ask("POST", "/v2/models/iris_mlp/explain", {"inputs": [tensor], **words}).json
    found = rest.ask("POST", EXPLAIN, {"instances": X, **words}).json
    relevance = np.array(expected["attributions"][0]["data"]).reshape(-1, 2, 4)
    for sample, entry in enumerate(found["explanations"]):
        rows = [target["attributions"]["X"] for target in entry["targets"]]
        assert np.array_equal(np.array(rows), relevance[:, sample])
        assert [t["score"] for t in entry["targets"]] == [t["scores"][sample] for t in expected["targets"]]
        errors = [target.get("standard_errors", {}).get("X") for target in entry["targets"]]
        if expected["standard_errors"]:
            there = np.array(expected["standard_errors"][0]["data"]).reshape(-1, 2, 4)
            assert np.array_equal(np.array(errors), there[:, sample]) and there.all()
        assert bool(expected["standard_errors"]) == (words.get("method") == "rise") == any(errors)
    assert found["warnings"] == expected["warnings"]


@pytest.mark.parametrize(
    "path, body, says",
    [
        (PREDICT, {}, "instances"),
        (PREDICT, {"instances": X, "inputs": X}, "give one"),
        (PREDICT, {"instances": {}}, "expected an array"),
        (PREDICT, {"instances": []}, "empty"),
        (PREDICT, {"instances": X, "target": "1"}, "target"),
        (PREDICT, {"instances": [X[0], X[1][:3]]}, "not nested"),
        (PREDICT, {"instances": [{"X": X[0]}, {"Y": X[1]}]}, "instances[1]"),
        (PREDICT, {"instances": [{"X": X[0]}, X[1]]}, "instances[1]"),
        (PREDICT, {"inputs": {"Y": X}}, "no input named"),
        (PREDICT, {"instances": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}, "axes"),
        (EXPLAIN, {"instances": X, "target": "nope"}, "nope"),
        (EXPLAIN, {"instances": X, "format": "png"}, "says nothing"),
        (EXPLAIN, {"instances": X, "image": ""}, "image"),
    ],
)
def test_whatever_is_wrong_is_one_line(rest, path, body, says):
    answer = rest.ask("POST", path, body)
    assert answer.status == 400 and says in answer.error and "\n" not in answer.error
