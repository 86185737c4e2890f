"""One repository of a container registry, asked by oras: manifests and blobs, bounded in bytes and time."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from onnxplain.errors import InputError, NotFound, OnnxplainError, Unavailable, UsageError
from onnxplain.sources.deadline import within
from onnxplain.sources.download import one_line

Answer = TypeVar("Answer")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MANIFEST_BYTES = 4 * 2**20  # what registries take themselves
PIECE = 2**20
TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class OciRegistry:
    """scheme: oci or oci+http. host: HOST[:PORT]. path: of the repository. seconds: for one answer."""

    def __init__(self, scheme: str, host: str, path: str, seconds: float):
        self._plain = scheme == "oci+http" or _loopback(host)
        self._host, self._path, self._seconds = host, path, seconds
        self._oras: Any = None
        self._where = f"{host}/{path}"

    def manifest(self, reference: str) -> tuple[str, dict[str, Any]]:
        """(digest, manifest) of a tag or digest. Raises InputError where it is not what the digest says."""
        content = b"".join(self._get("manifests", reference, MANIFEST_BYTES))
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if DIGEST.fullmatch(reference) and digest != reference:
            raise InputError(f"{self._where}@{reference}: the registry gave another manifest, {digest}.")
        try:
            manifest = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self._where}: the manifest of {reference} is no JSON.") from error
        if not isinstance(manifest, dict):
            raise InputError(f"{self._where}: the manifest of {reference} is no JSON object.")
        return digest, manifest

    def blob(self, digest: str) -> Iterator[bytes]:
        """Its content in pieces, as the registry sends them: whoever takes them checks size and digest."""
        return self._get("blobs", digest, None)

    def _get(self, kind: str, reference: str, limit: int | None) -> Iterator[bytes]:
        response = self._call(lambda: self._answer(kind, reference))
        try:
            if response.status_code != 200:
                raise self._refusal(response.status_code, reference)
            pieces, total = response.iter_content(PIECE), 0
            while piece := self._call(lambda: next(pieces, b"")):
                total += len(piece)
                if limit is not None and total > limit:
                    raise InputError(f"{self._where}: {reference} has more than {limit} bytes.")
                yield piece
        finally:
            response.close()

    def _answer(self, kind: str, reference: str) -> Any:
        """One request, signed in where the registry asks for it."""
        if self._oras is None:
            self._oras = self._connected()
        url = f"{self._oras.prefix}://{self._where.replace('/', '/v2/', 1)}/{kind}/{reference}"
        once = inspect.unwrap(
            type(self._oras).do_request
        )  # its own five attempts take two minutes: polling is the retry
        return once(self._oras, url, "GET", headers={"Accept": ", ".join(TYPES)}, stream=True)

    def _connected(self) -> Any:
        """A client that has the credentials, in the way this registry takes them."""
        provider = importlib.import_module("oras.provider")
        importlib.import_module("oras.logger").setup_logger(quiet=True)
        container = importlib.import_module("oras.container").Container(self._where)
        requests = importlib.import_module("requests")
        probe = provider.Registry(self._host, insecure=self._plain)
        with requests.Session() as session:
            asks = session.get(f"{probe.prefix}://{self._host}/v2/", timeout=self._seconds).headers.get(
                "Www-Authenticate", ""
            )
        backend = "basic" if asks.lower().startswith("basic") else "ecr" if ".dkr.ecr." in self._host else "token"
        client = provider.Registry(self._host, insecure=self._plain, auth_backend=backend)
        client.session.request = functools.partial(client.session.request, timeout=self._seconds)
        client.auth.load_configs(
            container, [str(Path(folder, "config.json")) for folder in [os.environ.get("DOCKER_CONFIG")] if folder]
        )
        if backend == "basic" and not getattr(client.auth, "_basic_auth", None):
            raise self._refusal(401, "")
        return client

    def _refusal(self, status: int, reference: str) -> OnnxplainError:
        if status == 404:
            return NotFound(f"{self._where}: the registry has no {reference[:80]}. Look at the name and the tag.")
        if status in (401, 403):
            return Unavailable(f"{self._where}: access denied ({status}). Sign in: docker login {self._host}.")
        return Unavailable(f"{self._where}: it answers with HTTP status {status}. It is asked again.")

    def _call(self, call: Callable[[], Answer]) -> Answer:
        try:
            return within(self._seconds, call, self._where)
        except OnnxplainError:
            raise
        except ImportError as error:
            raise UsageError(f"oci:// needs a library ({one_line(error)}): pip install 'onnxplain[oci]'.") from error
        except Exception as error:  # requests', urllib3's and oras' own
            if "authentication" in str(error):
                raise self._refusal(401, "") from error
            raise Unavailable(
                f"{self._where}: {type(error).__name__}: {one_line(error)}. It is asked again."
            ) from error


def _loopback(host: str) -> bool:
    """Whether a registry is on this machine, where Docker asks over http as well."""
    name = host.rpartition(":")[0].strip("[]") or host
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
