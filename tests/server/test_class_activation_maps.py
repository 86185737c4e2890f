"""Class activation maps over the wire: one pass, the same bytes as offline, a layer by name, and refusals."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from nets import MODELS, sample
from running import running_server

from onnxplain import Client, Explainer
from onnxplain.errors import OnnxplainError

X = sample("digits_cnn")
PATH = MODELS / "digits_cnn" / "1" / "model.onnx"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("digits_cnn", "iris_mlp"):
        shutil.copytree(MODELS / name, folder / name, ignore=shutil.ignore_patterns("samples"))
    with running_server(folder, "--allow-export") as server, Client(server.address) as found:
        yield found


@pytest.mark.parametrize("method", ["grad_cam", "grad_cam_plus_plus", "guided_grad_cam", "full_grad"])
def test_the_service_answers_as_offline(client, method):
    found = client.explain("digits_cnn", X, ["predicted", "3"], method=method)
    expected = Explainer(PATH, method).explain(X, ["predicted", "3"])
    assert list(found.relevances) == list(expected.relevances) and found.samples == len(X)
    np.testing.assert_array_equal(found.relevance, expected.relevance)
    assert found.map.shape == expected.map.shape and found.provenance["maps"] == expected.provenance["maps"]
    assert method == "full_grad" or [note for note in found.notes if "last feature map" in note]


def test_a_layer_is_chosen_by_its_name(client):
    layer = next(iter(Explainer(PATH, "grad_cam").explain(X, 0).relevances))
    named = client.explain("digits_cnn", X, "3", method="grad_cam", attribute_to=layer)
    np.testing.assert_allclose(named.relevance, client.explain("digits_cnn", X, "3", method="grad_cam").relevance)
    assert not [note for note in named.notes if "attributing to" in note]


def test_a_model_without_feature_maps_is_refused_by_name(client):
    with pytest.raises(OnnxplainError, match="no feature map"):
        client.explain("iris_mlp", sample("iris_mlp"), method="grad_cam")
    blocked = {entry.method: entry.reason for entry in client.explainability("iris_mlp").blocked_methods}
    assert "no feature map" in blocked["grad_cam"]
