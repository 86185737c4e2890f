"""A kustomize base that serves a model repository on plain Kubernetes: `kubectl apply -k DIR`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from onnxplain.errors import UsageError
from onnxplain.exports import pod
from onnxplain.exports.entry import FORCE, write_texts
from onnxplain.exports.kubernetes_manifests import FILES
from onnxplain.exports.pod import Sizes, text, within
from onnxplain.exports.registry import Exported, ExportJob, ExportOption, export_target
from onnxplain.sources import REGISTRIES

QUEUE_ROWS = 64  # of one model: the server's default
MODELS = "/models"
CLAIM = "pvc"  # pvc://CLAIM[/FOLDER], as KServe writes a volume
LOCAL = ("file", "memory")  # no other machine sees them
EXTRAS = {"mlflow+http": "mlflow", "mlflow+https": "mlflow", "oci+http": "oci", "abfs": "az"}  # else the scheme itself
PORTS = {"https": 443, "http": 80}

VOLUMES = """\
- name: cache
  persistentVolumeClaim:
    claimName: onnxplain-cache
- name: temporary
  emptyDir:
    sizeLimit: 1Gi
"""


def manifests(storage: str, image: str, sizes: Sizes) -> dict[str, str]:
    """File name → text. storage: a claim that holds a model repository, or a registry. Raises UsageError."""
    pod.check(storage, image)
    scheme = urlsplit(storage).scheme
    known = [CLAIM, *(name for name in REGISTRIES if name not in LOCAL)]
    if scheme not in known:
        raise UsageError(f"--storage-uri {storage!r}: --kubernetes knows {', '.join(f'{name}://' for name in known)}.")
    if scheme == CLAIM and not urlsplit(storage).netloc:
        raise UsageError(f"--storage-uri {storage!r}: write pvc://CLAIM or pvc://CLAIM/FOLDER.")
    flags = pod.variables(pod.GRPC_PORT, pod.HTTP_PORT)
    flags |= {"ONNXPLAIN_MODELS": MODELS} if scheme == CLAIM else {"ONNXPLAIN_REGISTRY": storage}
    volume, mount = _models(storage) if scheme == CLAIM else ("", "")
    port = _port(storage)
    words = {
        **{"image": text(image), "user": pod.USER, "rows": QUEUE_ROWS // 2},
        **{"grpc": pod.GRPC_PORT, "http": pod.HTTP_PORT, "metrics": pod.METRICS_PORT},
        **{"grace": pod.GRACE, "delay": pod.DRAIN_DELAY, "timeout": pod.DRAIN_TIMEOUT},
        "out_says": f", and port {port} for the models" if port else "; models come from the volume",
    }
    blocks = {
        "flags": "".join(f"{name}={value}\n" for name, value in flags.items()),
        "probes": pod.probes(pod.GRPC_PORT),
        "resources": pod.resources(sizes.memory),
        "security": pod.security(),
        "mounts": pod.mounts() + mount,
        "volumes": VOLUMES + volume,
        "egress": f"- ports:\n    - port: {port}\n      protocol: TCP\n" if port else "",
    }
    return {file: within(template.format(**words), **blocks).rstrip() + "\n" for file, template in FILES.items()}


def _models(storage: str) -> tuple[str, str]:
    """Volume and mount of the claim that holds the models."""
    parts = urlsplit(storage)
    claim, folder = parts.netloc, parts.path.strip("/")
    volume = f"- name: models\n  persistentVolumeClaim:\n    claimName: {text(claim)}\n    readOnly: true\n"
    mount = f"  - name: models\n    mountPath: {MODELS}\n    readOnly: true\n"
    return volume, mount + (f"    subPath: {text(folder)}\n" if folder else "")


def _port(storage: str) -> int:
    """Where the models are fetched from; 0 for a volume."""
    parts = urlsplit(storage)
    if parts.scheme == CLAIM:
        return 0
    return parts.port or PORTS[parts.scheme.rpartition("+")[2] if "+" in parts.scheme else "https"]


def _check(storage_uri: str | None, **options: object) -> None:
    if storage_uri is None:
        raise UsageError(
            "--kubernetes needs --storage-uri: where the cluster finds the folder with the model's folder, "
            "such as s3://bucket/models or pvc://claim/models."
        )


@export_target(
    ExportOption("kubernetes", "Write a kustomize base that serves MODEL's repository.", Path, "DIR"),
    options=[pod.STORAGE_URI, pod.IMAGE, FORCE],
    otherwise="The server explains as model.toml says.",
    check=_check,
)
def to_kubernetes(job: ExportJob, folder: Path, *, storage_uri: str, image: str, force: bool) -> Exported:
    """Where the files lie."""
    files = manifests(storage_uri, image, Sizes.of(job))
    scheme = urlsplit(storage_uri).scheme
    extra = EXTRAS.get(scheme, scheme)
    note = f"{scheme}:// needs an extra in the image: docker build --build-arg EXTRAS={extra}."
    return Exported(write_texts(files, folder, force), () if scheme == CLAIM else (note,))
