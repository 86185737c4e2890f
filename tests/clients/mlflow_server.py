"""A real `mlflow server` on loopback for tests: sqlite, artifacts handed out by the server itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

START_SECONDS = 120  # it migrates its database first; 12 s on an idle core
WEBHOOKS = {  # to loopback, over http, and from a list of webhooks that is a second old instead of a minute
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_CACHE_TTL": "1",
}
CLIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """One that can be stopped and started again at the same address, with the same folder. `uri`: http://…"""

    def __init__(self, folder: Path, port: int | None = None):
        self.folder, self.port = Path(folder), port or free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.artifacts = self.folder / "artifacts"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = (self.folder / "server.log").open("ab")
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.artifacts)]
        env = {**os.environ, **WEBHOOKS, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "0"}
        self._process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=self.folder, env=env, start_new_session=True
        )
        log.close()
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"mlflow server did not start: {(self.folder / 'server.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """Its workers too: they are in the process group that `start` made."""
        if self._process is None:
            return
        for kill in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, kill)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        self._process = None

    def pause(self) -> None:
        """Connections are taken and never answered."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A server that keeps everything in `folder`; yields its address."""
    server = Server(folder)
    server.start()
    try:
        yield server.uri
    finally:
        server.stop()


def client(uri: str):
    from mlflow import MlflowClient

    for name, value in CLIENT.items():
        os.environ.setdefault(name, value)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def at(uri: str) -> Iterator[None]:
    """mlflow's module-level functions speak to this server."""
    import mlflow

    tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(tracking)
        mlflow.set_registry_uri(registry)


def register(uri: str, name: str, path: Path) -> str:
    """A new version of a registered model from an ONNX file, as mlflow.onnx logs it; returns its number."""
    import mlflow
    import onnx

    with at(uri):
        info = mlflow.onnx.log_model(
            onnx.load(path), name=name, registered_model_name=name, pip_requirements=["onnxruntime"]
        )
    return str(info.registered_model_version)


def move_alias(uri: str, name: str, alias: str, version: str) -> None:
    client(uri).set_registered_model_alias(name, alias, version)


def stored(server: Server, name: str, version: str) -> Path:
    """The folder in which the server keeps a version's files."""
    place = client(server.uri).get_model_version_download_uri(name, version)
    return server.artifacts / place.removeprefix("mlflow-artifacts:/").lstrip("/")
