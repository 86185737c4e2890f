"""KServe's manifests: a ServingRuntime (how to run our server) and an InferenceService (which models it serves).

Or an InferenceService whose predictor is any server of the cluster's and whose explainer is ours.
"""

from __future__ import annotations

import re
from pathlib import Path

from onnxplain.errors import UsageError
from onnxplain.exports import pod
from onnxplain.exports.entry import FORCE, write_texts
from onnxplain.exports.pod import Sizes, text, within
from onnxplain.exports.registry import Exported, ExportJob, ExportOption, export_target

HTTP_PORT, GRPC_PORT = 8080, 8081  # where KServe's own servers listen
RUNTIME = "onnxplain"
ROUTED = re.compile(r"[\w-]+", re.ASCII)  # KServe's ingress sends /v1/models/[\w-]+:explain to the explainer

SERVING = """\
# How to run onnxplain's server; once per namespace.
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata:
  name: {runtime}
spec:
  annotations:
    prometheus.kserve.io/port: "{metrics}"
    prometheus.kserve.io/path: /metrics
  supportedModelFormats:
    - name: onnx
      version: "1"
      autoSelect: false  # other ONNX models of the namespace keep the runtime they have
  protocolVersions:
    - grpc-v2
    - v2
    - v1
  containers:
    - name: kserve-container  # KServe mounts the models into the container of this name
      image: {image}
      args:
        - serve
        - /mnt/models
      # Plain text inside the pod's network only: KServe's sidecar or ingress speaks TLS to the outside.
      <environment>
      ports:
        - name: h2c  # the first port is the service's; by this name the ingress speaks HTTP/2 to it
          containerPort: {grpc}
          protocol: TCP
        - name: http1
          containerPort: {http}
          protocol: TCP
        - name: metrics
          containerPort: {metrics}
          protocol: TCP
      <probes>
      <resources>
      <security>
      <mounts>
  volumes:
    <volumes>
"""
VOLUMES = """\
- name: cache  # a claim with ReadWriteMany instead lets new replicas start from what others downloaded and compiled
  emptyDir:
    sizeLimit: 16Gi
- name: temporary
  emptyDir:
    sizeLimit: 1Gi
"""
HEAD = """\
# {model} and its explanations.
# storageUri is a model repository: a folder with {model}/1/model.onnx and {model}/model.toml.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {service}
  annotations:
    serving.kserve.io/deploymentMode: Standard  # a Deployment: Knative allows one port and no grace of a pod's own
    serving.kserve.io/enable-prometheus-scraping: "true"
"""
PREDICTOR = """\
spec:
  predictor:
    minReplicas: 1
    terminationGracePeriodSeconds: {grace}  # above the server's drain: {delay} s and {timeout} s
    model:
      modelFormat:
        name: onnx
        version: "1"
      protocolVersion: grpc-v2
      runtime: {runtime}
      storageUri: {storage}
      <resources>
"""
EXPLAINER = """\
spec:
  predictor:  # whatever runtime the cluster has for ONNX; it answers :predict
    model:
      modelFormat:
        name: onnx
        version: "1"
      storageUri: {storage}
  explainer:  # answers POST /v1/models/{model}:explain by itself: the explanation is part of its graph
    minReplicas: 1
    terminationGracePeriodSeconds: {grace}  # above the server's drain: {delay} s and {timeout} s
    annotations:
      prometheus.io/port: "{metrics}"
      prometheus.io/path: /metrics
    containers:
      - name: kserve-container
        image: {image}
        # KServe appends --model_name, --predictor_host and --http_port; behind `sh -c` they say nothing.
        command:
          - /bin/sh
          - -c
          - exec onnxplain serve /mnt/models
        <environment>
        ports:
          - name: http1
            containerPort: {http}
            protocol: TCP
        <probes>
        <resources>
        <security>
        <mounts>
    volumes:
      <volumes>
"""


def manifests(name: str, storage: str, image: str, sizes: Sizes, explainer: bool = False) -> dict[str, str]:
    """File name → YAML. storage: the URI of a model repository that holds `name`. Raises UsageError.

    explainer: ours only explains, beside a predictor of the cluster's own choice.
    """
    pod.check(storage, image)
    if explainer and not ROUTED.fullmatch(name):
        raise UsageError(
            f"{name!r}: KServe sends :explain to an explainer for names of letters, digits, '_' and '-' only. "
            "Rename the model, or leave --explainer out."
        )
    words = {
        **{"model": name, "service": service_name(name), "runtime": RUNTIME},
        **{
            "storage": text(storage),
            "image": text(image),
            "how": "" if explainer else ", by the Open Inference Protocol",
        },
        **{"http": HTTP_PORT, "grpc": GRPC_PORT, "metrics": pod.METRICS_PORT},
        **{"grace": pod.GRACE, "delay": pod.DRAIN_DELAY, "timeout": pod.DRAIN_TIMEOUT},
    }
    variables = pod.variables(GRPC_PORT, HTTP_PORT)
    blocks = {
        "environment": pod.environment(variables | ({"STORAGE_URI": storage} if explainer else {})),
        "probes": pod.probes(GRPC_PORT),
        "resources": pod.resources(sizes.memory),
        "security": pod.security(),
        "mounts": pod.mounts(),
        "volumes": VOLUMES,
    }
    if explainer:
        return {"inferenceservice.yaml": HEAD.format(**words) + within(EXPLAINER.format(**words), **blocks)}
    runtime = blocks | {"resources": pod.resources(Sizes().memory)}
    return {
        "servingruntime.yaml": within(SERVING.format(**words), **runtime),
        "inferenceservice.yaml": HEAD.format(**words) + within(PREDICTOR.format(**words), **blocks),
    }


def _check(storage_uri: str | None, **options: object) -> None:
    if storage_uri is None:
        raise UsageError(
            "--kserve needs --storage-uri: where the cluster finds the folder with the model's folder, "
            "such as s3://bucket/models or pvc://claim/models."
        )


@export_target(
    ExportOption("kserve", "Print the KServe manifests that serve MODEL.", bool),
    options=[
        pod.STORAGE_URI,
        pod.IMAGE,
        ExportOption("explainer", "KServe: only explain, beside a predictor of the cluster's.", bool),
        ExportOption("out", "KServe: write the manifests there.", Path, "DIR"),
        FORCE,
    ],
    otherwise="The server explains as model.toml says.",
    check=_check,
)
def to_kserve(
    job: ExportJob, _: bool, *, storage_uri: str, image: str, explainer: bool, out: Path | None, force: bool
) -> Exported:
    """The manifests themselves, or where they lie."""
    files = manifests(job.resolved.name, storage_uri, image, Sizes.of(job), explainer)
    if out is None:
        return Exported("---\n".join(files.values()).rstrip("\n"))
    return Exported(write_texts(files, out, force))


def service_name(name: str) -> str:
    """The model's name as Kubernetes spells names: lower case, digits and '-', a letter first, 40 characters."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    label = label if label[:1].isalpha() else f"model-{label}"
    return label[:40].rstrip("-")  # KServe appends "-predictor" and more, and a DNS label ends at 63
