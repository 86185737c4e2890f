"""A store that speaks S3 and a container registry, both on loopback, for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from .mlflow_server import free_port

START_SECONDS = 60
CONFIG = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/blobs}}, delete: {{enabled: true}}}}
http: {{addr: 127.0.0.1:{port}}}
{auth}
"""


@contextlib.contextmanager
def running(command: list[str], url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the end of the block, once it answers at `url`."""
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    try:
        until = time.monotonic() + START_SECONDS
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[str]:
    """Moto's server; yields its address."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, f"http://127.0.0.1:{port}/moto-api/", folder / "moto.log"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def oci(folder: Path, htpasswd: str = "") -> Iterator[str]:
    """Docker's registry; yields HOST:PORT. htpasswd: a line of one, then it asks for a password."""
    binary = os.environ.get("ONNXPLAIN_OCI_REGISTRY") or shutil.which("docker-registry")
    if binary is None:
        pytest.skip("no container registry: apt install docker-registry, or set ONNXPLAIN_OCI_REGISTRY")
    port, auth = free_port(), ""
    if htpasswd:
        (folder / "htpasswd").write_text(htpasswd + "\n")
        auth = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}"
    (folder / "registry.yml").write_text(CONFIG.format(folder=folder, port=port, auth=auth))
    command = [binary, "serve", str(folder / "registry.yml")]
    with running(command, f"http://127.0.0.1:{port}/v2/", folder / "registry.log"):
        yield f"127.0.0.1:{port}"
