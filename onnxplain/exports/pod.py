"""What every pod of ours has, on KServe and on plain Kubernetes, as YAML: probes, grace, limits, ports, folders."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from textwrap import indent

from onnxplain import __version__
from onnxplain.errors import UsageError
from onnxplain.exports.registry import ExportJob, ExportOption

HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002  # the server's, which are Triton's
USER = 10001  # of the Dockerfile
ALIVE = "liveness"  # SERVING from the first moment; "" by --readiness
CACHE, TEMPORARY = "/cache", "/tmp"  # the only folders that can be written
DRAIN_DELAY, DRAIN_TIMEOUT = 5, 30  # seconds: for balancers to look away, for calls that are being answered
GRACE = DRAIN_DELAY + DRAIN_TIMEOUT + 15  # until the kubelet kills: sessions close and worker processes end meanwhile
CPUS = 2
MIB = 2**20
BASE = 512 * MIB  # Python, onnxruntime and an empty server
COPIES = 3  # of the weights: as read, and in the sessions of the answer and of the explanation
SHARES = 4  # bytes of the container for each byte of sessions: runs, clients and what nobody counts take the rest
STEP = 256 * MIB
URI = re.compile(r"[a-z][a-z0-9+.-]*://[!-~]+")
IMAGE_NAME = re.compile(r"[!-~]+")

STORAGE_URI = ExportOption("storage_uri", "Where the cluster finds the folder with MODEL's folder.", metavar="URI")
IMAGE = ExportOption("image", "Our container image.", metavar="IMAGE", default=f"onnxplain:{__version__}")


@dataclass(frozen=True)
class Sizes:
    """What the cluster gives a model. weights, stream: bytes of the model, and of one row of an explanation."""

    weights: int = 0
    stream: int = 0
    rows: int = 8  # of one run: the server's default on CPUs

    @classmethod
    def of(cls, job: ExportJob) -> Sizes:
        """Of a model with its explanation."""
        weights = [value.const_value for value in job.explainer.subject.normalised.model.graph.initializers.values()]
        nbytes = sum(weight.nbytes for weight in weights if weight is not None)
        return cls(nbytes, job.explainer.bytes_per_stream)

    @property
    def sessions(self) -> int:
        """Bytes of the open sessions of an answer and its explanation."""
        return COPIES * self.weights + self.rows * self.stream

    @property
    def memory(self) -> int:
        """Bytes of the container, rounded up, of which the server gives the model's sessions as much as they take."""
        return STEP * ceil((2 * BASE + SHARES * self.sessions) / STEP)


def check(storage_uri: str, image: str) -> None:
    """Raise UsageError for a text that is neither."""
    if not URI.fullmatch(storage_uri):
        raise UsageError(
            f"--storage-uri {storage_uri!r}: give a URI such as s3://bucket/models, gs://… or pvc://claim/models, of "
            "the folder that holds the model's folder."
        )
    if not IMAGE_NAME.fullmatch(image):
        raise UsageError(f"--image {image!r}: give a container image such as registry.example/onnxplain:1.")


def variables(grpc: int, http: int) -> dict[str, str]:
    """The server's flags, as its environment's variables. No memory budget: the server reads the container's limit."""
    return {
        "ONNXPLAIN_HOST": "0.0.0.0",
        "ONNXPLAIN_INSECURE": "true",
        "ONNXPLAIN_PORT": str(grpc),
        "ONNXPLAIN_HTTP_PORT": str(http),
        "ONNXPLAIN_METRICS_PORT": str(METRICS_PORT),
        "ONNXPLAIN_DRAIN_DELAY": str(DRAIN_DELAY),
        "ONNXPLAIN_DRAIN_TIMEOUT": str(DRAIN_TIMEOUT),
        "ONNXPLAIN_LOG_FORMAT": "json",
        "XDG_CACHE_HOME": CACHE,
    }


def environment(values: Mapping[str, str]) -> str:
    """The list `env` of a container."""
    return "env:\n" + "".join(f"  - name: {name}\n    value: {text(value)}\n" for name, value in values.items())


def probes(port: int) -> str:
    """Alive: its event loop answers. Ready: by --readiness, so a pod that starts or is drained gets no traffic."""
    return f"""\
startupProbe:  # two minutes to import and listen; models load afterwards
  grpc:
    port: {port}
    service: {ALIVE}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:  # that models load, fail or wait for a registry is no reason to start anew
  grpc:
    port: {port}
    service: {ALIVE}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  grpc:
    port: {port}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
"""


def resources(memory: int) -> str:
    """Asked for and at most, the same: memory cannot be taken back, and there are as many threads as CPUs."""
    amount = f'  cpu: "{CPUS}"\n  memory: {memory // MIB}Mi\n'
    return (
        f"resources:  # for this model alone: add up for a repository of several\n"
        f"  requests:\n{indent(amount, '  ')}  limits:\n{indent(amount, '  ')}"
    )


def security() -> str:
    """Of the container: nobody's user, nothing to write to but the two folders, no privilege to gain."""
    return f"""\
securityContext:
  runAsNonRoot: true
  runAsUser: {USER}
  runAsGroup: {USER}
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities:
    drop:
      - ALL
  seccompProfile:
    type: RuntimeDefault
"""


def mounts() -> str:
    """The folders that the container writes."""
    return f"""\
volumeMounts:
  - name: cache  # downloads and compiled graphs
    mountPath: {CACHE}
  - name: temporary
    mountPath: {TEMPORARY}
"""


def text(value: str) -> str:
    """As a double-quoted YAML string."""
    return json.dumps(value)


def within(template: str, **blocks: str) -> str:
    """A template whose lines `  <name>` are replaced by blocks, as deep as the line was."""

    def block(match: re.Match[str]) -> str:
        return indent(blocks[match[2]].rstrip("\n"), match[1])

    return re.sub(r"^( *)<(\w+)>$", block, template, flags=re.M)
