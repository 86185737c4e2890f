"""A model in a container registry: `oci://ghcr.io/org/net:3` or `…@sha256:…`, as `oras push` writes it.

One artifact is one version of one model; each layer is a file, named by its title: model.onnx, weights, model.toml.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from onnxplain.errors import InputError, UsageError
from onnxplain.inputs.settings import VERSION
from onnxplain.sources.cache import About, ContentCache
from onnxplain.sources.download import DOWNLOAD_SECONDS, check_sizes, check_sums, in_time, opened, relative_path, write
from onnxplain.sources.folder import unservable
from onnxplain.sources.oci_registry import DIGEST, OciRegistry
from onnxplain.sources.registry import model_registry
from onnxplain.sources.resolved import ResolvedModel
from onnxplain.sources.source import Release

EXAMPLE = "oci://HOST:PORT/path/name:tag"
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
PATH = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")  # the distribution API's own rule
TITLE = "org.opencontainers.image.title"
NUMBER = "org.opencontainers.image.version"
UNPACK = "io.deis.oras.content.unpack"
ARCHIVES = ("+gzip", ".gzip", "+zstd")  # not ".tar": oras-py calls plain files so


@dataclass(frozen=True)
class ArtifactLayer:
    """One file of an artifact; its digest begins with sha256."""

    title: str
    digest: str
    size: int


@model_registry("oci", "oci+http", example=EXAMPLE)
class OciSource:
    """One model: its name is the path's last part, its alias the tag.

    Its version is the manifest's annotation org.opencontainers.image.version, else the tag, if that is a whole number,
    else 1.
    Credentials come from Docker's config.json (`docker login`, `oras login`). Registries on this machine are asked over
    http, others over https, or http with oci+http://. cache: folder for downloads. seconds: for one answer.
    """

    def __init__(self, address: str, cache: Path, seconds: float = 30.0, download_seconds: float = DOWNLOAD_SECONDS):
        parts = urlsplit(address)
        place, at, digest = parts.path.strip("/").partition("@")
        path, colon, tag = place.partition(":")
        wrong = parts.username or parts.password or parts.query or parts.fragment or not parts.netloc
        if wrong or not PATH.fullmatch(path) or bool(at) == bool(colon):
            raise UsageError(
                f"{parts.scheme}://{(parts.hostname or '')[:60]}/{path[:60]}: write {EXAMPLE} or …/name@sha256:…."
            )
        if (at and not DIGEST.fullmatch(digest)) or (colon and not TAG.fullmatch(tag)):
            raise UsageError(
                f"{(digest or tag)[:80]!r} is no {'digest' if at else 'tag'}: write {EXAMPLE} or …/name@sha256:…."
            )
        self._model = path.rpartition("/")[2]
        if reason := unservable(self._model):
            raise UsageError(f"{self._model!r} cannot be the name of a served model: {reason}.")
        self._reference, self._tag = digest or tag, tag
        self.name = f"{parts.scheme}://{parts.netloc}/{path}{'@' if at else ':'}{self._reference}"
        self.problems: dict[str, str] = {}  # what is wrong with the one artifact is raised
        self.cache = ContentCache(Path(cache))
        self._download_seconds = download_seconds
        self._registry = OciRegistry(parts.scheme, parts.netloc, path, seconds)
        self._pinned: Release | None = None

    def releases(self) -> Sequence[Release]:
        """The one release that the tag or digest names. Raises InputError, NotFound, Unavailable, UsageError."""
        if self._pinned is not None:
            return [self._pinned]  # a digest names the same for ever
        digest, manifest = self._registry.manifest(self._reference)
        layers_of(manifest, self.name)
        told = (manifest.get("annotations") or {}).get(NUMBER, "")
        version = next((text for text in (told, self._tag) if VERSION.fullmatch(str(text))), "1")
        aliases = (self._tag,) if self._tag and not self._tag.isdecimal() else ()
        release = Release(self._model, str(version), digest, aliases)
        self._pinned = release if not self._tag else None
        return [release]

    def fetch(self, release: Release) -> ResolvedModel:
        """The files of a release, from the cache where it has them whole. Raises InputError, Unavailable."""
        key = "\n".join((self.name, release.version, release.fingerprint))
        cached = self.cache.get(key)
        if cached is None:
            cached = self.cache.put(key, lambda folder: self._download(release, folder))
        return opened(cached.folder, release)

    def _download(self, release: Release, folder: Path) -> About:
        until = time.monotonic() + self._download_seconds
        _, manifest = self._registry.manifest(release.fingerprint)
        place = folder / release.name / release.version
        for layer in layers_of(manifest, self.name):
            pieces = in_time(self._registry.blob(layer.digest), until, f"{self.name}: {layer.title}")
            write(place / layer.title, pieces, layer.size, "sha256", layer.digest.removeprefix("sha256:"))
        check_sums(place)
        opened(folder, release)
        return {}


def layers_of(manifest: Mapping[str, Any], where: str) -> list[ArtifactLayer]:
    """The files that a manifest names. Raises InputError for one that is no model's."""
    if "manifests" in manifest:
        raise InputError(f"{where} is an index of several artifacts; name one of them by its digest.")
    entries = manifest.get("layers")
    if not isinstance(entries, list):
        raise InputError(f"{where} is no artifact: its manifest has no layers. Make it with `oras push`.")
    layers = []
    for entry in entries:
        noted = (entry.get("annotations") or {}) if isinstance(entry, dict) else None
        digest, size = (str(entry.get("digest")), entry.get("size")) if isinstance(entry, dict) else ("", None)
        if not isinstance(noted, dict) or not DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
            raise InputError(f"{where}: a layer of its manifest has no digest and size. Make it with `oras push`.")
        title = noted.get(TITLE)
        if title is None:
            raise InputError(
                f"{where} looks like an image: a layer has no title. Push files: oras push {EXAMPLE[6:]} model.onnx."
            )
        if str(noted.get(UNPACK)).lower() == "true" or str(entry.get("mediaType", "")).endswith(ARCHIVES):
            raise InputError(
                f"{where}: {str(title)[:100]!r} is an archive, and none is unpacked. Push files, not folders."
            )
        layers.append(ArtifactLayer(relative_path(str(title)), digest, size))
    if len({layer.title.lower() for layer in layers}) < len(layers):
        raise InputError(f"{where}: two layers have one title. Give each file a name of its own.")
    check_sizes((layer.size for layer in layers), where)
    return layers
