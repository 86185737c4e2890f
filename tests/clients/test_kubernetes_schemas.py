"""The kustomize base against Kubernetes' own API schemas, as the package kubernetes-validate brings them."""

from __future__ import annotations

import pytest

pytest.importorskip("kubernetes_validate", reason="run tests/clients/install remote, then its python")

import kubernetes_validate as validate
import yaml

from onnxplain.exports import kubernetes
from onnxplain.exports.pod import Sizes

pytestmark = pytest.mark.clients
OTHERS = ("Kustomization", "Component", "PodMonitor", "ScaledObject")  # of other projects, with schemas of their own
FILES = kubernetes.manifests("pvc://claim/models", "onnxplain:1", Sizes())
DOCUMENTS = [d for name, text in FILES.items() if name.endswith(".yaml") for d in yaml.safe_load_all(text)]
OURS = [document for document in DOCUMENTS if document["kind"] not in OTHERS]


@pytest.mark.parametrize("version", ["1.28", validate.latest_version()])
@pytest.mark.parametrize("document", OURS, ids=lambda document: document["kind"])
def test_kubernetes_accepts_it_and_knows_every_field(document, version):
    validate.validate(document, version, strict=True)


@pytest.mark.parametrize("document", OURS, ids=lambda document: document["kind"])
def test_the_schema_refuses_unknown_fields(document):
    with pytest.raises(validate.ValidationError):
        validate.validate({**document, "speck": {}}, validate.latest_version(), strict=True)
