"""KServe's two manifests: a ServingRuntime (how to run our server) and an InferenceService (which models it serves)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from onnxplain import __version__
from onnxplain.errors import UsageError
from onnxplain.exports.entry import FORCE, place, staging
from onnxplain.exports.registry import Exported, ExportJob, ExportOption, export_target

PORT = 8081  # KServe's own servers listen there
RUNTIME = "onnxplain"
USER = 10001  # of the Dockerfile
MIB = 2**20
BASE = 512 * MIB  # Python, onnxruntime and an empty server
COPIES = 3  # of the weights: as read, and in the sessions of the answer and of the explanation
STEP = 256 * MIB
URI = re.compile(r"[a-z][a-z0-9+.-]*://[!-~]+")
IMAGE = re.compile(r"[!-~]+")

SERVING = """\
# How to run onnxplain's server; once per namespace.
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata:
  name: {runtime}
spec:
  supportedModelFormats:
    - name: onnx
      version: "1"
      autoSelect: false  # other ONNX models of the namespace keep the runtime they have
  protocolVersions:
    - grpc-v2
  containers:
    - name: kserve-container  # KServe mounts the models into the container of this name
      image: {image}
      args:
        - serve
        - /mnt/models
        - --host
        - 0.0.0.0
        # Plain text inside the pod's network only: KServe's sidecar or ingress speaks TLS to the outside.
        - --insecure
        - --port
        - "{port}"
      ports:
        - name: h2c  # Knative takes one port, and this name makes it HTTP/2
          containerPort: {port}
          protocol: TCP
      readinessProbe:
        grpc:
          port: {port}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 3
      resources:
        requests:
          cpu: "1"
          memory: {base}
        limits:
          memory: {twice}
      securityContext:
        runAsNonRoot: true
        runAsUser: {user}
        allowPrivilegeEscalation: false
        capabilities:
          drop:
            - ALL
        seccompProfile:
          type: RuntimeDefault
"""
INFERENCE = """\
# {model} and {model}.explain, asked by the Open Inference Protocol over gRPC.
# storageUri is a model repository: a folder with {model}/1/model.onnx and {model}/model.toml.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {service}
spec:
  predictor:
    model:
      modelFormat:
        name: onnx
        version: "1"
      protocolVersion: grpc-v2
      runtime: {runtime}
      storageUri: {storage}
      resources:
        requests:
          cpu: "1"
          memory: {memory}
        limits:
          memory: {twice}
"""


@dataclass(frozen=True)
class Runtime:
    """What the cluster gives a model. weights, stream: bytes of the model, and of one row of an explanation."""

    image: str = f"onnxplain:{__version__}"
    weights: int = 0
    stream: int = 0
    rows: int = 8  # of one run: the server's default on CPUs

    @property
    def memory(self) -> int:
        """Bytes to ask for, rounded up."""
        return STEP * ceil((BASE + COPIES * self.weights + self.rows * self.stream) / STEP)


def manifests(name: str, storage: str, runtime: Runtime | None = None) -> dict[str, str]:
    """File name → YAML. storage: the URI of a model repository that holds `name`. Raises UsageError."""
    runtime = runtime or Runtime()
    if not URI.fullmatch(storage):
        raise UsageError(
            f"--storage-uri {storage!r}: KServe wants a URI such as s3://bucket/models, gs://…, pvc://claim/models or "
            "https://…, of the folder that holds the model's folder."
        )
    if not IMAGE.fullmatch(runtime.image):
        raise UsageError(f"--image {runtime.image!r}: give a container image such as registry.example/onnxplain:1.")
    return {
        "servingruntime.yaml": SERVING.format(
            runtime=RUNTIME,
            image=_text(runtime.image),
            port=PORT,
            user=USER,
            base=_mebibytes(BASE),
            twice=_mebibytes(2 * BASE),
        ),
        "inferenceservice.yaml": INFERENCE.format(
            model=name,
            service=service_name(name),
            runtime=RUNTIME,
            storage=_text(storage),
            memory=_mebibytes(runtime.memory),
            twice=_mebibytes(2 * runtime.memory),
        ),
    }


def write(files: dict[str, str], folder: Path, force: bool = False) -> list[Path]:
    """Both manifests into a folder, all or nothing; returns what is new. Raises InputError where others lie there."""
    with staging(folder) as stage:
        for file, text in files.items():
            (stage / file).write_text(text, encoding="utf-8")
        return place(stage, folder, force)


def _check(storage_uri: str | None, **options: object) -> None:
    if storage_uri is None:
        raise UsageError(
            "--kserve needs --storage-uri: where the cluster finds the folder with the model's folder, "
            "such as s3://bucket/models or pvc://claim/models."
        )


@export_target(
    ExportOption("kserve", "Print the KServe manifests that serve MODEL.", bool),
    options=[
        ExportOption("storage_uri", "KServe: where the cluster finds the model repository.", metavar="URI"),
        ExportOption("image", "KServe: ours.", metavar="IMAGE", default=Runtime.image),
        ExportOption("out", "KServe: write the manifests there.", Path, "DIR"),
        FORCE,
    ],
    otherwise="The server explains as model.toml says.",
    check=_check,
)
def to_kserve(job: ExportJob, _: bool, *, storage_uri: str, image: str, out: Path | None, force: bool) -> Exported:
    """The manifests themselves, or where they lie."""
    weights = [value.const_value for value in job.explainer.subject.normalised.model.graph.initializers.values()]
    nbytes = sum(weight.nbytes for weight in weights if weight is not None)
    runtime = Runtime(image, nbytes, job.explainer.bytes_per_stream)
    files = manifests(job.resolved.name, storage_uri, runtime)
    if out is None:
        return Exported("---\n".join(files.values()).rstrip("\n"))
    fresh = write(files, out, force)
    return Exported("\n".join(f"{out / file}{'' if out / file in fresh else '  as it was'}" for file in files))


def service_name(name: str) -> str:
    """The model's name as Kubernetes spells names: lower case, digits and '-', a letter first, 40 characters."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    label = label if label[:1].isalpha() else f"model-{label}"
    return label[:40].rstrip("-")  # KServe appends "-predictor" and more, and a DNS label ends at 63


def _mebibytes(size: int) -> str:
    return f"{size // MIB}Mi"


def _text(text: str) -> str:
    return json.dumps(text)  # a double-quoted YAML string
