"""Folders and files as sources of the service: what is offered now, and the files of one release."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from onnxplain.errors import InputError, NotFound, OnnxplainError, Unavailable, UsageError
from onnxplain.inputs.settings import VERSION, ModelSettings
from onnxplain.sources.directory import (
    COMPLETE,
    MODEL,
    SETTINGS,
    TRITON,
    check_safe,
    from_file,
    holds_model,
    only_model,
    require_inside,
    settings_of,
)
from onnxplain.sources.resolved import ResolvedModel
from onnxplain.sources.source import Release

LOG = logging.getLogger(__name__)
SERVED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of a model that clients may ask for
RESERVED = re.compile(r"\.explain(\.|$)")  # M.explain and M.explain.RECIPE are the explanations of M
MODES = ("none", "poll", "explicit")
GRAPHS = ".graphs"  # beside the models: compiled graphs, as `onnxplain export --bundle` writes them
FILES = 10_000  # of one version: a model with each weight in its own file has hundreds


class DirectorySource:
    """The releases of one folder: <name>/<N>/model.onnx with N = 1, 2, …, after `[serving] versions` of model.toml.

    root: the folder. mode: "poll" holds files back that changed since the last look, until two looks agree or
    <N>/.complete is younger than all of them; "none" and "explicit" take what they find. problems: folder -> why it is
    not served, as of the last look. Nothing that a link leads to outside `root` is served, and no file with a second
    hard link: its other name may be anywhere.
    """

    def __init__(self, root: str | Path, mode: str = "none"):
        if mode not in MODES:
            raise UsageError(f"mode {mode!r} of the folder {root}; expected one of {', '.join(MODES)}.")
        self.root, self.mode = Path(root), mode
        self.name = self.root.absolute().name or "models"
        self.problems: dict[str, str] = {}
        self._seen: dict[tuple[str, str], str] | None = None  # fingerprints at the last look; None: never looked
        self._settled: dict[tuple[str, str], str] = {}  # fingerprints that may be reported
        self._last: dict[str, list[Release]] = {}  # what was reported, by model
        self._warned: set[str] = set()

    def releases(self) -> list[Release]:
        """What is to be served now, by name, oldest version first. Raises InputError, Unavailable."""
        try:
            folders = sorted(entry for entry in self.root.iterdir() if entry.is_dir() and entry.name[0] != ".")
        except FileNotFoundError as error:
            raise InputError(f"the model folder {self.name!r} does not exist. Make it, or name another.") from error
        except OSError as error:
            raise Unavailable(f"the model folder {self.name!r} cannot be listed: {error.strerror}.") from error
        self.problems = {}
        offered: dict[str, list[Release]] = {}
        seen: dict[tuple[str, str], str] = {}
        for folder in folders:
            try:
                offered[folder.name] = self._offered(folder, seen)
            except (OnnxplainError, OSError) as error:
                self.problems[folder.name] = self._public(error)
                if self._last.get(folder.name):  # a model.toml half written takes no model away
                    offered[folder.name] = self._last[folder.name]
        self._settled = {key: mark for key, mark in self._settled.items() if key in seen or key[0] in self.problems}
        self._seen, self._last = seen, offered
        return [release for name in sorted(offered) for release in offered[name]]

    def fetch(self, release: Release) -> ResolvedModel:
        """The files of a release: they are here already, so they are only checked. Raises InputError, NotFound."""
        name, version = release.name, release.version
        if reason := unservable(name):
            raise NotFound(f"no model {name[:200]!r}: {reason}.")
        if not VERSION.fullmatch(version):
            raise NotFound(f"no version {version[:100]!r} of model {name!r}: versions are 1, 2, ….")
        folder = self.root / name
        place = folder / version
        try:
            if not holds_model(place):
                raise NotFound(f"model {name!r} has no version {version!r} here any more.")
            home = self._inside(folder, self.root)
            for path in (place, *_entries(place)):
                check_safe(path, self._inside(path, self.root))
            settings = settings_of(folder, place)
            for path in settings.files:
                check_safe(path, self._inside(path, self.root))
            require_inside(settings, home)
            graphs = self.root / GRAPHS
            return ResolvedModel(only_model(place), name, version, settings, graphs if _folder(graphs) else None)
        except NotFound:
            raise
        except (OnnxplainError, OSError) as error:
            raise InputError(self._public(error)) from error

    def _offered(self, folder: Path, seen: dict[tuple[str, str], str]) -> list[Release]:
        """The releases of one model; `seen` gets the fingerprints of this look."""
        name = folder.name
        if reason := unservable(name):
            raise InputError(f"not served: {reason}.")
        self._inside(folder, self.root)
        versions = [v.name for v in folder.iterdir() if VERSION.fullmatch(v.name) and holds_model(v)]
        if not versions:
            self._last.pop(name, None)
            raise InputError(f"no version here: put the model at {name}/1/{MODEL}.")
        if (folder / TRITON).exists() and name not in self._warned:
            self._warned.add(name)
            LOG.warning("%s/%s is not read: write [serving] of %s/%s instead", name, TRITON, name, SETTINGS)
        settled = []
        for version in sorted(versions, key=int):
            key, place = (name, version), folder / version
            seen[key] = mark = _fingerprint(place, settings_of(folder, place))
            waits = self.mode == "poll" and self._seen is not None and self._seen.get(key) != mark
            if not waits or _complete(place):
                self._settled[key] = mark
            if key in self._settled:
                settled.append(version)
        served = chosen_versions(settled, settings_of(folder).serving.versions)
        return [Release(name, version, self._settled[name, version]) for version in served]

    def _inside(self, path: Path, base: Path) -> Path:
        """Where a path leads, links followed; it must be below `base`."""
        target = path.resolve(strict=True)
        if not target.is_relative_to(base.resolve(strict=True)):
            raise InputError(f"{path} is a link that leads outside the model folder; copy the files there.")
        return target

    def _public(self, error: Exception) -> str:
        """What an error says, without paths of this machine."""
        if isinstance(error, OSError):
            return f"cannot be read: {error.strerror or type(error).__name__}."
        text = str(error)
        for root in {str(self.root), str(self.root.absolute()), str(self.root.resolve())} - {".", "/"}:
            text = text.replace(f"{root}/", "")
        return text


class FileSource:
    """One model file, served under the name of its stem as version 1; in a repository, under the names it has there."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = self.path.name
        self.problems: dict[str, str] = {}  # what is wrong with the one file is raised
        folder = self.path.absolute().parent
        stored = self.path.name == MODEL and VERSION.fullmatch(folder.name) and not unservable(folder.parent.name)
        self._as = (folder.parent.name, folder.name) if stored else (_servable(self.path.stem), "1")

    def releases(self) -> list[Release]:
        """The one release. Raises InputError."""
        resolved = self._resolved()
        beside = [entry for entry in self.path.absolute().parent.iterdir() if entry.name.startswith(self.path.name)]
        digest = hashlib.sha256()
        for path in sorted([*beside, *resolved.settings.files, *resolved.settings.named_files]):  # beside: M.onnx.data
            digest.update(_mark(path, path.name))
        return [Release(*self._as, digest.hexdigest())]

    def fetch(self, release: Release) -> ResolvedModel:
        """The file with its settings. Raises InputError, NotFound."""
        if (release.name, release.version) != self._as:
            raise NotFound(f"no model {release.name[:200]!r} with version {release.version[:100]!r} here.")
        return self._resolved()

    def _resolved(self) -> ResolvedModel:
        try:
            if not self.path.is_file():
                raise InputError(f"no model file {self.path}.")
            model = from_file(self.path)
        except (OSError, ValueError) as error:
            raise InputError(f"{str(self.path)[:80]!r} cannot be read as a path ({error}).") from error
        return ResolvedModel(model.path, *self._as, model.settings)


def _entries(folder: Path) -> Iterator[Path]:
    """Everything below a folder; links are not followed."""
    count = 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            count += 1
            if count > FILES:
                raise InputError(f"{folder} holds more than {FILES} files. A version has a model and its weights.")
            yield Path(place, name)


def _fingerprint(version: Path, settings: ModelSettings) -> str:
    """Of the names, times, sizes and inodes of a version's files, its settings and its labels."""
    digest = hashlib.sha256()
    for path in sorted(_entries(version)):
        if path.name != COMPLETE and not (path.is_dir() and not path.is_symlink()):
            digest.update(_mark(path, str(path.relative_to(version))))
    for path in (*settings.files, *settings.named_files):
        digest.update(_mark(path, f"../{path.name}"))
    return digest.hexdigest()


def _mark(path: Path, name: str) -> bytes:
    """A line that is another one when the file is."""
    try:
        status = path.stat()
        state = f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"
    except (OSError, ValueError):
        state = "missing"  # a file that goes while we look, a dangling link
    return f"{name}\0{state}\n".encode(errors="surrogateescape")


def _complete(version: Path) -> bool:
    """Whether the writer said that it is done, after the last file."""
    try:
        said = (version / COMPLETE).stat().st_mtime_ns
        return all(path.stat().st_mtime_ns <= said for path in _entries(version) if not path.is_dir())
    except OSError:
        return False


def chosen_versions(versions: Sequence[str], policy: str | int | Iterable[str]) -> list[str]:
    """The versions that a policy serves; `versions` are sorted."""
    if policy == "all":
        return list(versions)
    if isinstance(policy, (str, int)):
        return list(versions[-(1 if isinstance(policy, str) else policy) :])
    wanted = set(policy)
    return [version for version in versions if version in wanted]


def unservable(name: str) -> str:
    """Why clients could not ask for a model of this name; "" where they can."""
    if not SERVED.fullmatch(name):
        return "a name has letters, digits, '.', '_' and '-', begins with a letter or digit, and has 128 at most"
    return "names with .explain belong to the explanations of a model" if RESERVED.search(name) else ""


def _servable(stem: str) -> str:
    """A stem as a name that clients can ask for."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).lstrip("._-")[:128].replace(".explain", "_explain")
    return name or "model"


def _folder(path: Path) -> bool:
    """Whether it is a folder of its own, and no link to one."""
    return path.is_dir() and not path.is_symlink()
