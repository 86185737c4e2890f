"""A model repository that is not on this machine: `s3://bucket/prefix` and the like, with the layout of a folder.

<name>/model.toml, <name>/<N>/model.onnx. A release is copied here whole, and only when it is served.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from onnxplain.errors import InputError, OnnxplainError, Unavailable, UsageError
from onnxplain.inputs.settings import VERSION
from onnxplain.sources.cache import About, ContentCache
from onnxplain.sources.directory import COMPLETE, MODEL, SETTINGS, SETTINGS_BYTES, settings_of
from onnxplain.sources.download import DOWNLOAD_SECONDS, check_sizes, check_sums, opened, relative_path
from onnxplain.sources.folder import chosen_versions, unservable
from onnxplain.sources.object_store import CREDENTIALS, ObjectStore, StoredFile
from onnxplain.sources.registry import model_registry
from onnxplain.sources.resolved import ResolvedModel
from onnxplain.sources.source import Release

RESTED = 30.0  # seconds since the last change, after which an upload counts as finished
Policy = str | int | Iterable[str]


@model_registry("file", "memory", example="file:///FOLDER")
@model_registry("s3", "gs", "az", "abfs", example="s3://BUCKET/PREFIX")
class RemoteSource:
    """The releases below an address, after `[serving] versions` of each model.toml.

    cache: folder for downloads. seconds: the longest wait for one answer. A version that changed since the last look is
    left alone until two looks agree, until nothing of it changed for RESTED seconds, or until <N>/.complete is there
    and nothing is younger. An address with nothing below it is an error, so that a lost bucket takes no model away.
    """

    def __init__(self, address: str, cache: Path, seconds: float = 60.0, download_seconds: float = DOWNLOAD_SECONDS):
        parts = urlsplit(address)
        place = f"{parts.netloc}{parts.path}".strip("/")
        if not place or "::" in address or "\0" in address:
            raise UsageError(f"{address[:100]!r} names no place: write {parts.scheme}://BUCKET/PREFIX.")
        if parts.username or parts.password or parts.query or parts.fragment:
            variables = CREDENTIALS.get(parts.scheme, "those of fsspec, FSSPEC_<SCHEME>_<OPTION>")
            raise UsageError(
                f"{parts.scheme}://…: an address has no credentials and no options, which would end up in logs. "
                f"Set the environment's variables: {variables}."
            )
        if parts.scheme == "file" and parts.netloc:
            raise UsageError(f"{address[:100]!r}: three slashes, and a whole path: file:///FOLDER.")
        self.name = f"{parts.scheme}://{'/' if parts.scheme == 'file' else ''}{place}"
        self.problems: dict[str, str] = {}
        self.cache = ContentCache(Path(cache))
        self._store = ObjectStore(self.name, seconds)
        self._download_seconds = download_seconds
        self._policies: dict[str, tuple[str, Policy]] = {}  # model -> mark of its model.toml, what that says
        self._seen: dict[tuple[str, str], str] | None = None  # fingerprints at the last look; None: never looked
        self._settled: dict[tuple[str, str], str] = {}  # fingerprints that may be reported
        self._last: dict[str, list[Release]] = {}

    def releases(self) -> Sequence[Release]:
        """What is to be served now, by name, oldest version first. Raises InputError, Unavailable, UsageError."""
        models: dict[str, dict[str, StoredFile]] = defaultdict(dict)
        for path, file in self._store.list().items():
            name, slash, rest = path.partition("/")
            if slash and not name.startswith("."):
                models[name][rest] = file
        if not models:
            raise InputError(f"{self.name}: no model below it. Put one at {self.name}/NAME/1/{MODEL}.")
        problems: dict[str, str] = {}
        offered: dict[str, list[Release]] = {}
        seen: dict[tuple[str, str], str] = {}
        for name, files in sorted(models.items()):
            try:
                offered[name] = self._offered(name, files, seen)
            except InputError as error:
                problems[name] = str(error)
                if self._last.get(name):  # a model.toml half written takes no model away
                    offered[name] = self._last[name]
        self._settled = {key: mark for key, mark in self._settled.items() if key in seen or key[0] in problems}
        self._seen, self._last, self.problems = seen, offered, problems
        return [release for name in sorted(offered) for release in offered[name]]

    def fetch(self, release: Release) -> ResolvedModel:
        """The files of a release, from the cache where it has them whole. Raises InputError, Unavailable."""
        key = "\n".join((self.name, release.name, release.version, release.fingerprint))
        cached = self.cache.get(key)
        if cached is None:
            cached = self.cache.put(key, lambda folder: self._download(release, folder))
        return opened(cached.folder, release)

    def _offered(self, name: str, files: Mapping[str, StoredFile], seen: dict[tuple[str, str], str]) -> list[Release]:
        """The releases of one model; `seen` gets the fingerprints of this look."""
        if reason := unservable(name):
            raise InputError(f"not served: {reason}.")
        versions = [version for version in {path.partition("/")[0] for path in files} if _holds_model(version, files)]
        if not versions:
            self._last.pop(name, None)
            raise InputError(f"no version here: put the model at {name}/1/{MODEL}.")
        settled = []
        for version in sorted(versions, key=int):
            key = (name, version)
            seen[key] = mark = _fingerprint(version, files)
            waits = self._seen is not None and self._seen.get(key) != mark
            if not waits or _at_rest(version, files):
                self._settled[key] = mark
            if key in self._settled:
                settled.append(version)
        served = chosen_versions(settled, self._policy(name, files.get(SETTINGS)))
        return [Release(name, version, self._settled[name, version]) for version in served]

    def _policy(self, name: str, settings: StoredFile | None) -> Policy:
        """Which versions its model.toml serves; read again when that file is another."""
        if settings is None:
            return "latest"
        if self._policies.get(name, ("",))[0] != settings.mark:
            with TemporaryDirectory(prefix="onnxplain.") as folder:
                self._copy_settings(settings, Path(folder))
                try:
                    policy = settings_of(Path(folder)).serving.versions
                except OnnxplainError as error:
                    raise InputError(str(error).replace(f"{folder}/", f"{name}/")) from error
            self._policies[name] = (settings.mark, policy)
        return self._policies[name][1]

    def _copy_settings(self, settings: StoredFile, folder: Path) -> None:
        if settings.size > SETTINGS_BYTES:
            raise InputError(f"{SETTINGS} has {settings.size} bytes; it may have {SETTINGS_BYTES}.")
        self._store.copy(settings, folder / SETTINGS)

    def _download(self, release: Release, folder: Path) -> About:
        """Fill `folder` with <name>/model.toml, <name>/<version>/… and the files that they name."""
        until = time.monotonic() + self._download_seconds
        files = self._current(release)
        home, version = folder / release.name, release.version
        wanted = {path: file for path, file in files.items() if path.startswith(f"{version}/")}
        check_sizes((file.size for file in wanted.values()), f"{release.name}/{version}")
        if SETTINGS in files:
            home.mkdir()
            self._copy_settings(files[SETTINGS], home)
        for path, file in wanted.items():
            if time.monotonic() > until:
                raise Unavailable(f"{self.name}: {release.name}/{version} took more than {self._download_seconds:g} s.")
            self._store.copy(file, home / relative_path(path), until)
        check_sums(home / version)
        for named in settings_of(home, home / version).named_files:
            self._copy_named(named, home, files)
        self._current(release)  # nothing changed meanwhile: what was copied belongs together
        opened(folder, release)
        return {}

    def _copy_named(self, named: Path, home: Path, files: Mapping[str, StoredFile]) -> None:
        """A file that the settings name, if it is one of the model's own; `opened` refuses others."""
        parts: list[str] = []
        for part in named.parts[len(home.parts) :] if named.is_relative_to(home) else ():
            parts = parts[:-1] if part == ".." else [*parts, part]
        path = "/".join(parts)
        if path in files and not (home / path).exists():
            self._store.copy(files[path], home / relative_path(path))

    def _current(self, release: Release) -> dict[str, StoredFile]:
        """The files of its model as they are now. Raises Unavailable where they are not those of the release."""
        found = self._store.list(release.name)
        files = {path.removeprefix(f"{release.name}/"): file for path, file in found.items()}
        if _fingerprint(release.version, files) != release.fingerprint:
            raise Unavailable(
                f"{self.name}: {release.name}/{release.version} changed meanwhile. It is looked at again."
            )
        return files


def _holds_model(version: str, files: Mapping[str, StoredFile]) -> bool:
    """Whether a folder is a version with the one file that is its model."""
    if not VERSION.fullmatch(version):
        return False
    models = [
        path for path in files if path.startswith(f"{version}/") and path.endswith(".onnx") and path.count("/") == 1
    ]
    return f"{version}/{MODEL}" in files or len(models) == 1


def _of(version: str, files: Mapping[str, StoredFile]) -> dict[str, StoredFile]:
    """What a version is made of: its own files, and those of the model that belong to no version."""
    return {
        path: file
        for path, file in files.items()
        if path.startswith(f"{version}/") or not VERSION.fullmatch(path.partition("/")[0])
    }


def _fingerprint(version: str, files: Mapping[str, StoredFile]) -> str:
    """Of the names and marks of what a version is made of. Raises InputError for a link or a device."""
    digest = hashlib.sha256()
    for path, file in sorted(_of(version, files).items()):
        if file.kind != "file":
            raise InputError(f"{path[:200]!r} is a {file.kind}; store the file itself.")
        if path != f"{version}/{COMPLETE}":
            digest.update(f"{path}\0{file.mark}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _at_rest(version: str, files: Mapping[str, StoredFile]) -> bool:
    """Whether its writer is done: said so last, or wrote nothing for a while."""
    own = _of(version, files)
    said = own.pop(f"{version}/{COMPLETE}", None)
    times = [file.modified for file in own.values()]
    known = [moment for moment in times if moment is not None]
    if len(known) < len(times):
        return False
    if said is not None and said.modified is not None and max(known) <= said.modified:
        return True
    return time.time() - max(known) > RESTED
