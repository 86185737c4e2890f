"""A model repository in a folder: <name>/model.toml, <name>/<version>/model.onnx, and perhaps a model.toml there.

`resolve` and `DirectoryRepository` answer for the command line, `DirectorySource` and `FileSource` for the service.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from onnxplain.errors import InputError, NotFound, OnnxplainError, Unavailable, UsageError
from onnxplain.inputs.settings import VERSION, ModelSettings, load_settings
from onnxplain.sources.resolved import Resolved
from onnxplain.sources.source import Release

LOG = logging.getLogger(__name__)

VARIABLE = "ONNXPLAIN_MODELS"  # folders, separated as in PATH, searched before ./models
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")  # of a model or a version: never "..", never absolute
SERVED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of a model that clients may ask for
RESERVED = re.compile(r"\.explain(\.|$)")  # M.explain and M.explain.RECIPE are the explanations of M
MODEL, SETTINGS, COMPLETE, TRITON = "model.onnx", "model.toml", ".complete", "config.pbtxt"
MODES = ("none", "poll", "explicit")
SETTINGS_BYTES = 1 << 20  # a model.toml is a page; what is longer was not written by a person
LABELS_BYTES = 1 << 24  # a million class names
FILES = 10_000  # of one version: a model with each weight in its own file has hundreds


class DirectoryRepository:
    """The models of one folder. Only names are taken, never paths, so a client cannot reach outside it."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def names(self) -> list[str]:
        """Models that have at least one version."""
        if not self.root.is_dir():
            return []
        entries = sorted(entry.name for entry in self.root.iterdir() if entry.is_dir() and NAME.fullmatch(entry.name))
        return [name for name in entries if self.versions(name)]

    def versions(self, name: str) -> list[str]:
        """Versions of one model, oldest first: numbers in order, after any other names."""
        folder = self.root / _checked(name)
        found = (
            [entry.name for entry in folder.iterdir() if NAME.fullmatch(entry.name) and _holds_model(entry)]
            if folder.is_dir()
            else []
        )
        return sorted(
            found, key=lambda version: (version.isdecimal(), int(version) if version.isdecimal() else 0, version)
        )

    def get(self, name: str, version: str | None = None) -> Resolved:
        """One version of one model; None: the highest."""
        versions = self.versions(name)
        if not versions:
            raise NotFound(f"no model {name!r} in {self.root}. {_near(name, self.names())}")
        if version is None:
            version = versions[-1]
        if _checked(version) not in versions:
            raise NotFound(f"model {name!r} in {self.root} has no version {version!r}. It has {', '.join(versions)}.")
        folder = self.root / name
        settings = _settings(folder, folder / version)
        _labels_inside(settings, folder)
        return Resolved(_only_model(folder / version), name, version, settings)


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
        found: dict[str, list[Release]] = {}
        seen: dict[tuple[str, str], str] = {}
        for folder in folders:
            try:
                found[folder.name] = self._offered(folder, seen)
            except (OnnxplainError, OSError) as error:
                self.problems[folder.name] = self._public(error)
                if self._last.get(folder.name):  # a model.toml half written takes no model away
                    found[folder.name] = self._last[folder.name]
        self._settled = {key: mark for key, mark in self._settled.items() if key in seen or key[0] in self.problems}
        self._seen, self._last = seen, found
        return [release for name in sorted(found) for release in found[name]]

    def fetch(self, release: Release) -> Resolved:
        """The files of a release: they are here already, so they are only checked. Raises InputError, NotFound."""
        name, version = release.name, release.version
        if reason := _unservable(name):
            raise NotFound(f"no model {name[:200]!r}: {reason}.")
        if not VERSION.fullmatch(version):
            raise NotFound(f"no version {version[:100]!r} of model {name!r}: versions are 1, 2, ….")
        folder = self.root / name
        place = folder / version
        try:
            if not _holds_model(place):
                raise NotFound(f"model {name!r} has no version {version!r} here any more.")
            home = self._inside(folder, self.root)
            for path in (place, *_entries(place)):
                _safe(path, self._inside(path, self.root))
            settings = _settings(folder, place)
            for path in settings.files:
                _safe(path, self._inside(path, self.root))
            _labels_inside(settings, home)
            return Resolved(_only_model(place), name, version, settings)
        except NotFound:
            raise
        except (OnnxplainError, OSError) as error:
            raise InputError(self._public(error)) from error

    def _offered(self, folder: Path, seen: dict[tuple[str, str], str]) -> list[Release]:
        """The releases of one model; `seen` gets the fingerprints of this look."""
        name = folder.name
        if reason := _unservable(name):
            raise InputError(f"not served: {reason}.")
        self._inside(folder, self.root)
        versions = [v.name for v in folder.iterdir() if VERSION.fullmatch(v.name) and _holds_model(v)]
        if not versions:
            self._last.pop(name, None)
            raise InputError(f"no version here: put the model at {name}/1/{MODEL}.")
        if (folder / TRITON).exists() and name not in self._warned:
            self._warned.add(name)
            LOG.warning("%s/%s is not read: write [serving] of %s/%s instead", name, TRITON, name, SETTINGS)
        settled = []
        for version in sorted(versions, key=int):
            key, place = (name, version), folder / version
            seen[key] = mark = _fingerprint(place, _settings(folder, place))
            waits = self.mode == "poll" and self._seen is not None and self._seen.get(key) != mark
            if not waits or _complete(place):
                self._settled[key] = mark
            if key in self._settled:
                settled.append(version)
        chosen = _chosen(settled, _settings(folder).serving.versions)
        return [Release(name, version, self._settled[name, version]) for version in chosen]

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
        stored = self.path.name == MODEL and VERSION.fullmatch(folder.name) and not _unservable(folder.parent.name)
        self._as = (folder.parent.name, folder.name) if stored else (_servable(self.path.stem), "1")

    def releases(self) -> list[Release]:
        """The one release. Raises InputError."""
        resolved = self._resolved()
        beside = [entry for entry in self.path.absolute().parent.iterdir() if entry.name.startswith(self.path.name)]
        digest = hashlib.sha256()
        for path in sorted([*beside, *resolved.settings.files, *_labels(resolved.settings)]):  # beside: M.onnx.data
            digest.update(_mark(path, path.name))
        return [Release(*self._as, digest.hexdigest())]

    def fetch(self, release: Release) -> Resolved:
        """The file with its settings. Raises InputError, NotFound."""
        if (release.name, release.version) != self._as:
            raise NotFound(f"no model {release.name[:200]!r} with version {release.version[:100]!r} here.")
        return self._resolved()

    def _resolved(self) -> Resolved:
        try:
            if not self.path.is_file():
                raise InputError(f"no model file {self.path}.")
            found = _from_file(self.path)
        except (OSError, ValueError) as error:
            raise InputError(f"{str(self.path)[:80]!r} cannot be read as a path ({error}).") from error
        return Resolved(found.path, *self._as, found.settings)


def default_repositories() -> list[Path]:
    """The folders of $ONNXPLAIN_MODELS, then ./models."""
    named = [Path(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    return [*named, Path("models")]


def resolve(spec: str | Path, repositories: Sequence[str | Path] | None = None) -> Resolved:
    """The model a user means: a file, a folder that holds one, or a repository's name, such as `digits_cnn/1`.

    repositories: folders searched in order; None: `default_repositories()`.
    """
    path, text = Path(spec), str(spec)
    try:
        if path.is_file():
            return _from_file(path)
        if path.is_dir() and _is_model_folder(path):
            return _from_folder(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{text[:80]!r} cannot be read as a path ({error}).") from error
    folders = [Path(folder) for folder in (default_repositories() if repositories is None else repositories)]
    name, _, version = text.partition("/")
    stores = [DirectoryRepository(folder) for folder in folders]
    if NAME.fullmatch(name) and (not version or NAME.fullmatch(version)):
        for store in stores:
            if store.versions(name):
                return store.get(name, version or None)
    if path.is_dir():
        return _from_folder(path)
    known = sorted({known for store in stores for known in store.names()})
    beside = [entry.name for entry in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
    searched = ", ".join(map(str, folders)) or "no repository"
    raise InputError(f"no model {text!r}: no such file, and no such name in {searched}. {_near(text, known + beside)}")


def _from_file(path: Path) -> Resolved:
    """A plain file; a model.toml beside it counts, and so do the ones above a version folder."""
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes). Give an ONNX model.")
    folder = path.absolute().parent
    if path.name == MODEL and folder.name.isdecimal():
        return Resolved(path, folder.parent.name, folder.name, _settings(folder.parent, folder))
    return Resolved(path, path.stem if path.name != MODEL else folder.name, "", _settings(folder))


def _from_folder(path: Path) -> Resolved:
    """A model's folder, one of its versions, or any folder with exactly one .onnx file."""
    folder = path.absolute()
    if not _holds_model(folder) and NAME.fullmatch(folder.name):
        store = DirectoryRepository(folder.parent)
        if store.versions(folder.name):
            return store.get(folder.name)
    found = _only_model(path)
    return _from_file(found)


def _is_model_folder(path: Path) -> bool:
    """Holds a model itself, or a version that does."""
    return any(path.glob("*.onnx")) or any(_holds_model(entry) for entry in path.iterdir())


def _holds_model(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MODEL).is_file() or len(list(folder.glob("*.onnx"))) == 1)


def _only_model(folder: Path) -> Path:
    if (folder / MODEL).is_file():
        return folder / MODEL
    found = sorted(entry.name for entry in folder.glob("*.onnx"))
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise InputError(f"{folder} holds {len(found)} models: {', '.join(found[:10])}. Name one of them.")
    raise InputError(f"{folder} holds no .onnx file, and no version folder with one. Name a model file.")


def _settings(*folders: Path) -> ModelSettings:
    """model.toml of every folder that has one, later ones over earlier ones."""
    files = [folder / SETTINGS for folder in folders if (folder / SETTINGS).is_file()]
    for file in files:
        if file.stat().st_size > SETTINGS_BYTES:
            raise InputError(f"{file} has {file.stat().st_size} bytes; {SETTINGS} may have {SETTINGS_BYTES}.")
    try:
        return load_settings(*files) if files else ModelSettings()
    except RecursionError as error:
        raise InputError(f"{files[-1]}: not valid TOML: nested too deeply.") from error


def _labels(settings: ModelSettings) -> list[Path]:
    """The file of the class names, if they have one."""
    return [Path(settings.output.labels)] if settings.output.labels not in (None, "", "imagenet") else []


def _labels_inside(settings: ModelSettings, folder: Path) -> None:
    """Class names are shown to clients: their file must be one of the model's own."""
    for path in _labels(settings):
        if "\0" in str(path) or not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{SETTINGS} of {folder.name}: labels lie outside the model's folder. Put them in it.")
        if path.exists():
            _safe(path, path.resolve())
            if path.stat().st_size > LABELS_BYTES:
                raise InputError(f"{path} has {path.stat().st_size} bytes; labels may have {LABELS_BYTES}.")


def _safe(path: Path, target: Path) -> None:
    """A folder, or a file with one name only."""
    found = target.stat()
    if stat.S_ISDIR(found.st_mode):
        return
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is a device, a pipe or a socket. Only files are served.")
    if found.st_nlink > 1:
        raise InputError(f"{path} has several hard links; copy it, so that it is one file.")


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
    for path in (*settings.files, *_labels(settings)):
        digest.update(_mark(path, f"../{path.name}"))
    return digest.hexdigest()


def _mark(path: Path, name: str) -> bytes:
    """A line that is another one when the file is."""
    try:
        found = path.stat()
        state = f"{found.st_mtime_ns} {found.st_size} {found.st_ino}"
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


def _chosen(versions: Sequence[str], policy: str | int | Iterable[str]) -> list[str]:
    """The versions that a policy serves; `versions` are sorted."""
    if policy == "all":
        return list(versions)
    if isinstance(policy, (str, int)):
        return list(versions[-(1 if isinstance(policy, str) else policy) :])
    wanted = set(policy)
    return [version for version in versions if version in wanted]


def _unservable(name: str) -> str:
    """Why clients could not ask for a model of this name; "" where they can."""
    if not SERVED.fullmatch(name):
        return "a name has letters, digits, '.', '_' and '-', begins with a letter or digit, and has 128 at most"
    return "names with .explain belong to the explanations of a model" if RESERVED.search(name) else ""


def _servable(stem: str) -> str:
    """A stem as a name that clients can ask for."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).lstrip("._-")[:128].replace(".explain", "_explain")
    return name or "model"


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(f"{name[:80]!r} is no name of a model or version: letters, digits, '.', '_' and '-' only.")
    return name


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.split("/")[0], known, n=3, cutoff=0.5)
    near = near or difflib.get_close_matches(Path(name).name, known, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {', '.join(near)}?"
    return f"There is {', '.join(known[:10])}." if known else f"Give a path to an .onnx file, or set ${VARIABLE}."
