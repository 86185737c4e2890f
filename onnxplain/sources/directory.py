"""A model repository in a folder: <name>/model.toml, <name>/<version>/model.onnx, and perhaps a model.toml there.

`resolve_model` and `DirectoryRepository` answer for the command line, `DirectorySource` and `FileSource` for a server.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path

from onnxplain.errors import InputError, NotFound, UsageError
from onnxplain.inputs.settings import ModelSettings, load_settings
from onnxplain.sources.resolved import ResolvedModel

VARIABLE = "ONNXPLAIN_MODELS"  # folders, separated as in PATH, searched before ./models
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")  # of a model or a version: never "..", never absolute
MODEL, SETTINGS, COMPLETE, TRITON = "model.onnx", "model.toml", ".complete", "config.pbtxt"
SETTINGS_BYTES = 1 << 20  # a model.toml is a page; what is longer was not written by a person
LABELS_BYTES = 1 << 24  # a million class names
BACKGROUND_BYTES = 1 << 26  # a hundred pictures of 224 x 224 in float32


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
        versions = (
            [entry.name for entry in folder.iterdir() if NAME.fullmatch(entry.name) and holds_model(entry)]
            if folder.is_dir()
            else []
        )
        return sorted(
            versions, key=lambda version: (version.isdecimal(), int(version) if version.isdecimal() else 0, version)
        )

    def get(self, name: str, version: str | None = None) -> ResolvedModel:
        """One version of one model; None: the highest."""
        versions = self.versions(name)
        if not versions:
            raise NotFound(f"no model {name!r} in {self.root}. {_near(name, self.names())}")
        if version is None:
            version = versions[-1]
        if _checked(version) not in versions:
            raise NotFound(f"model {name!r} in {self.root} has no version {version!r}. It has {', '.join(versions)}.")
        folder = self.root / name
        settings = settings_of(folder, folder / version)
        require_inside(settings, folder)
        return ResolvedModel(only_model(folder / version), name, version, settings)


def default_repositories() -> list[Path]:
    """The folders of $ONNXPLAIN_MODELS, then ./models."""
    named = [Path(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    return [*named, Path("models")]


def resolve_model(spec: str | Path, repositories: Sequence[str | Path] | None = None) -> ResolvedModel:
    """The model a user means: a file, a folder that holds one, or a repository's name, such as `digits_cnn/1`.

    repositories: folders searched in order; None: `default_repositories()`.
    """
    path, text = Path(spec), str(spec)
    try:
        if path.is_file():
            return from_file(path)
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


def from_file(path: Path) -> ResolvedModel:
    """A plain file; a model.toml beside it counts, and so do the ones above a version folder."""
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes). Give an ONNX model.")
    folder = path.absolute().parent
    if path.name == MODEL and folder.name.isdecimal():
        return ResolvedModel(path, folder.parent.name, folder.name, settings_of(folder.parent, folder))
    return ResolvedModel(path, path.stem if path.name != MODEL else folder.name, "", settings_of(folder))


def _from_folder(path: Path) -> ResolvedModel:
    """A model's folder, one of its versions, or any folder with exactly one .onnx file."""
    folder = path.absolute()
    if not holds_model(folder) and NAME.fullmatch(folder.name):
        store = DirectoryRepository(folder.parent)
        if store.versions(folder.name):
            return store.get(folder.name)
    path_of_model = only_model(path)
    return from_file(path_of_model)


def _is_model_folder(path: Path) -> bool:
    """Holds a model itself, or a version that does."""
    return any(path.glob("*.onnx")) or any(holds_model(entry) for entry in path.iterdir())


def holds_model(folder: Path) -> bool:
    """Whether a version folder has the one file that is its model."""
    return folder.is_dir() and ((folder / MODEL).is_file() or len(list(folder.glob("*.onnx"))) == 1)


def only_model(folder: Path) -> Path:
    """The model file of a version folder. Raises InputError."""
    if (folder / MODEL).is_file():
        return folder / MODEL
    names = sorted(entry.name for entry in folder.glob("*.onnx"))
    if len(names) == 1:
        return folder / names[0]
    if names:
        raise InputError(f"{folder} holds {len(names)} models: {', '.join(names[:10])}. Name one of them.")
    raise InputError(f"{folder} holds no .onnx file, and no version folder with one. Name a model file.")


def settings_of(*folders: Path) -> ModelSettings:
    """model.toml of every folder that has one, later ones over earlier ones."""
    files = [folder / SETTINGS for folder in folders if (folder / SETTINGS).is_file()]
    for file in files:
        if file.stat().st_size > SETTINGS_BYTES:
            raise InputError(f"{file} has {file.stat().st_size} bytes; {SETTINGS} may have {SETTINGS_BYTES}.")
    try:
        return load_settings(*files) if files else ModelSettings()
    except RecursionError as error:
        raise InputError(f"{files[-1]}: not valid TOML: nested too deeply.") from error


def require_inside(settings: ModelSettings, folder: Path) -> None:
    """What clients are shown, class names, or can infer, a background, must lie in a file of the model's own."""
    for path in settings.named_files:
        if "\0" in str(path) or not path.resolve().is_relative_to(folder.resolve()):
            named = f"{path.name[:80]!r}, which {SETTINGS} of {folder.name} names,"
            raise InputError(f"{named} lies outside the model's folder. Put it in there.")
        if path.exists():
            check_safe(path, path.resolve())
            limit = BACKGROUND_BYTES if str(path) == settings.background else LABELS_BYTES
            if (size := _unpacked(path)) > limit:
                raise InputError(f"{path} has {size} bytes; it may have {limit}.")


def _unpacked(path: Path) -> int:
    """The size of a file, or of what an archive (.npz) says that it holds: no more of it is read."""
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return max(path.stat().st_size, sum(entry.file_size for entry in archive.infolist()))
    return path.stat().st_size


def check_safe(path: Path, target: Path) -> None:
    """A folder, or a file with one name only."""
    status = target.stat()
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is a device, a pipe or a socket. Only files are served.")
    if status.st_nlink > 1:
        raise InputError(f"{path} has several hard links; copy it, so that it is one file.")


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
