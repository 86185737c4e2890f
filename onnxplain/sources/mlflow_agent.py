"""MLflow's client in a process of its own: reads one JSON request a line, writes one JSON answer a line.

`sources/mlflow.py` runs this file with `python -P`: by path, so that nothing of onnxplain is imported, and with -P,
because the folder of this file holds an `mlflow.py` that would hide the package. A process of its own because MLflow
takes its timeouts from the environment, a server that sends one byte a second outlasts all of them, and a download
cannot be stopped from another thread. The parent kills the process when its time is over.

Nothing from an artifact is imported or run: MLmodel goes through `yaml.safe_load`, everything else is bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MLMODEL, MLMODEL_BYTES = "MLmodel", 2**20
MODELS = 1000  # registered models that are looked through for an alias
REMOTE = ("mlflow-artifacts", "s3", "gs", "wasbs", "abfss", "hdfs", "viewfs", "oci", "r2", "b2")
HTTP_STATUS = re.compile(r"\b(?:error code|failed with) (\d{3})\b|\b(\d{3}) (?:Client|Server) Error")


class AgentError(Exception):
    """An answer with a reason; kind: missing, denied, unsafe or down."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


class MlflowAgent:
    """The requests, each a method: `{"do": name, …}` -> what it returns."""

    def __init__(self, base: str):
        from mlflow import MlflowClient  # type: ignore[import-not-found, unused-ignore]

        self.base = base
        self.client: Any = MlflowClient(tracking_uri=base, registry_uri=base)

    def model(self, name: str) -> dict[str, Any]:
        """{aliases: {alias: version}} of a registered model."""
        registered = self.client.get_registered_model(name)
        return {"aliases": {str(alias): str(version) for alias, version in registered.aliases.items()}}

    def names(self, alias: str) -> list[str]:
        """Registered models that have the alias."""
        names: list[str] = []
        token, seen = None, 0
        while seen < MODELS:
            page = self.client.search_registered_models(max_results=100, page_token=token)
            seen += len(page)
            names += [model.name for model in page if alias in model.aliases]
            token = page.token
            if not token or not page:
                break
        return names

    def version(self, name: str, version: str) -> dict[str, str]:
        """{version, status, identity} of one version; version "" is the newest that is ready."""
        if version:
            model_version = self.client.get_model_version(name, version)
        else:
            ready = [
                v for v in self.client.search_model_versions(f"name='{name}'", max_results=1000) if v.status == "READY"
            ]
            if not ready:
                raise AgentError("missing", "no version that is ready")
            model_version = max(ready, key=lambda v: int(v.version))
        logged = getattr(model_version, "model_id", None) or ""
        identity = f"{logged} {model_version.source} {model_version.creation_timestamp}"
        return {"version": str(model_version.version), "status": str(model_version.status), "identity": identity}

    def download(self, name: str, version: str, folder: str, files: int, total: int) -> dict[str, Any]:
        """Fetch a version's files into a folder; what its MLmodel says of them."""
        import mlflow.store.artifact.artifact_repository_registry as places  # type: ignore[import-not-found, unused-ignore]

        uri = self.client.get_model_version_download_uri(name, version)
        check_place(uri, self.base)
        repository: Any = places.get_artifact_repository(uri, tracking_uri=self.base, registry_uri=self.base)
        limit_file_size(total)
        check_listing(repository, files, total)
        repository.download_artifacts("", dst_path=folder)
        content = about(Path(folder))
        check_content(Path(folder), content)
        return content


def check_place(uri: str, base: str) -> None:
    """A registry names any place for a version: not this machine's disk, and not another MLflow, with our token."""
    place = urlsplit(uri)
    if place.scheme not in REMOTE:
        raise AgentError(
            "unsafe",
            f"its files lie at a {place.scheme or 'local'} address, which is not read from here; "
            "start MLflow with --artifacts-destination, so that the server hands them out",
        )
    if place.scheme == "mlflow-artifacts" and place.netloc not in ("", urlsplit(base).netloc):
        raise AgentError("unsafe", "its files lie at another MLflow server; register it with one that has them")


def check_listing(repository: Any, files: int, total: int) -> None:
    """Refuse by the announced sizes what would be refused after the download."""
    waiting: list[str | None] = [None]
    seen = size = 0
    while waiting:
        for entry in repository.list_artifacts(waiting.pop()):
            seen, size = seen + 1, size + int(entry.file_size or 0)
            if entry.is_dir:
                waiting.append(entry.path)
            if seen > files:
                raise AgentError("unsafe", f"more than {files} files and folders; a model needs a few")
    if size > total:
        raise AgentError("unsafe", f"{size} bytes, more than the {total} allowed")


def limit_file_size(total: int) -> None:
    """Where the announced sizes were wrong, the disk does not pay for it."""
    try:
        import resource
    except ImportError:
        return
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (total if hard < 0 else min(total, hard), hard))


def about(folder: Path) -> dict[str, Any]:
    """{onnx: model file, recipe, settings, graph: file names or None, sha256: {name: hash}} from MLmodel."""
    import yaml  # type: ignore[import-untyped, unused-ignore]

    file = folder / MLMODEL
    if file.is_symlink() or not file.is_file():
        raise AgentError("unsafe", "it holds no MLmodel file; log it with mlflow.onnx or onnxplain.mlflow")
    if file.stat().st_size > MLMODEL_BYTES:
        raise AgentError("unsafe", f"its MLmodel is larger than {MLMODEL_BYTES} bytes")
    try:
        content = yaml.safe_load(file.read_bytes())
        flavors = content["flavors"]
        data = flavors["onnx"]["data"]
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise AgentError("unsafe", "its MLmodel is not valid YAML") from None
    except (KeyError, TypeError):
        raise AgentError(
            "unsafe", "its MLmodel has no onnx flavor; log it with mlflow.onnx or onnxplain.mlflow"
        ) from None
    own_flavor = flavors.get("onnxplain")
    own_flavor = own_flavor if isinstance(own_flavor, dict) else {}
    named = {
        key: own_flavor[key] if isinstance(own_flavor.get(key), str) else None
        for key in ("recipe", "settings", "graph")
    }
    hashes = own_flavor.get("sha256")
    hashes = hashes if isinstance(hashes, dict) else {}
    kept = {name: sha for name, sha in list(hashes.items())[:100] if isinstance(name, str) and isinstance(sha, str)}
    return {"onnx": data if isinstance(data, str) else None, **named, "sha256": kept}


def check_content(folder: Path, content: dict[str, Any]) -> None:
    """The hashes that `onnxplain.mlflow` wrote, and whether the model can be read with all its weights."""
    from onnxplain.errors import OnnxplainError
    from onnxplain.frontend.load import load

    for name, sha in content["sha256"].items():
        file = member(folder, name)
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha:
                raise AgentError("unsafe", f"the file {name!r} is not the one that was logged; log the version again")
    try:
        load(member(folder, content["onnx"]))
    except OnnxplainError as error:
        raise AgentError("unsafe", str(error).replace(f"{folder}{os.sep}", "").rstrip(".")) from error


def member(folder: Path, name: str | None) -> Path:
    """A file of an artifact by the name that its MLmodel gives, which anybody may have written."""
    file = folder / (name or "")
    parts = Path((name or "").replace("\\", "/")).parts
    if not name or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise AgentError("unsafe", f"its MLmodel names the file {str(name)[:100]!r}, which is no name within it")
    if not file.is_file() or file.is_symlink() or not file.resolve().is_relative_to(folder.resolve()):
        raise AgentError("unsafe", f"its MLmodel names the file {name[:100]!r}, which it does not hold")
    return file


def reason(error: Exception) -> tuple[str, str]:
    """(kind, one line) of whatever MLflow or requests raised. Addresses and response bodies stay out of it."""
    if isinstance(error, AgentError):
        return error.kind, str(error)
    code = str(getattr(error, "error_code", ""))
    match = HTTP_STATUS.search(str(error))
    status = next(filter(None, match.groups()), "") if match else ""
    if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND") or status == "404":
        return "missing", "there is none"
    if code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED") or status in ("401", "403"):
        return "denied", "it wants other credentials"
    if status:
        return "down", f"it answers with HTTP status {status}"
    text = str(error)
    if "timeout" in text.lower() or "timed out" in text.lower():
        return "down", "it does not answer in time"
    if "refused" in text:
        return "down", "nobody listens there"
    if isinstance(error, OSError) and error.errno is not None and type(error).__module__ == "builtins":
        return "disk", os.strerror(error.errno)
    return "down", code.lower().replace("_", " ") or type(error).__name__


def main(base: str) -> None:
    """Serve until the parent closes our input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        agent = MlflowAgent(base)
    except ImportError as error:
        answer({"kind": "import", "text": str(error)[:200]})
        return
    answer({"ok": os.getpid()})
    for line in sys.stdin:
        request = json.loads(line)
        do: Callable[..., Any] = getattr(agent, request.pop("do"))
        try:
            answer({"ok": do(**request)})
        except Exception as error:  # any library below may raise anything; the parent must hear of it
            kind, text = reason(error)
            answer({"kind": kind, "text": text, "detail": " ".join(str(error).split())[:500]})


if __name__ == "__main__":
    main(sys.argv[1])
