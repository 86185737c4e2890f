"""Files from a registry, kept on this machine under the hash of their content: `<root>/<sha256>/` and its index."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxplain.errors import InputError
from onnxplain.sources.owned_folder import OwnedFolder, sweep

About = Mapping[str, Any]  # what the filler found out about the files; kept with them as JSON
FILES, BYTES = 1000, 16 * 2**30  # of one entry
KEPT = 64 * 2**30  # bytes of all entries together
STALE = 24 * 3600  # seconds after which another process's unfinished download is rubbish
KEYS, STAGED, GONE = "keys", ".staged-", ".gone-"
PIECE = 2**20


@dataclass(frozen=True)
class Cached:
    """One entry. `folder` holds the files, `about` is what was said about them when they were put there."""

    folder: Path
    about: About


@dataclass
class ContentCache:
    """Folders of files by a key, each stored once under the SHA-256 of names and contents.

    An entry appears whole or not at all: it is filled in a folder beside, flushed to disk, then renamed. It is hashed
    again whenever it is taken out; one that does not match its index is thrown away. files, total: caps of one entry;
    kept: bytes of all, above which the ones longest unused go, except those this process took out.
    """

    root: Path
    files: int = FILES
    total: int = BYTES
    kept: int = KEPT
    _taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        with contextlib.suppress(OSError):
            self._sweep()

    def get(self, key: str) -> Cached | None:
        """The entry of a key; None where there is none or it is damaged."""
        try:
            digest = (self.root / KEYS / _name(key)).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            return None
        about = self._verified(digest)
        if about is None:
            self._remove(digest)
            return None
        return self._take(digest, about)

    def put(self, key: str, fill: Callable[[Path], About]) -> Cached:
        """Have `fill` write into an empty folder and keep that; whatever it raises leaves the cache as it was.

        Raises InputError for links, special files, too many or too large ones, and where the disk is full.
        """
        staged: OwnedFolder | None = None
        try:
            (self.root / KEYS).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sweep()
            staged = OwnedFolder(self.root, STAGED)
            folder = staged.path
            about = dict(fill(folder))
            sizes = measured(folder, self.files, self.total)
            listing = {name: [size, _sha256(folder / name)] for name, size in sizes.items()}
            index = {"files": listing, "about": about}
            digest = _digest(index)
            self._keep(folder, digest, index)
            write_whole(self.root / KEYS / _name(key), digest)
        except OSError as error:
            raise InputError(
                f"the model cache cannot be written: {error.strerror or type(error).__name__}. "
                "Make room there, or name another folder for it."
            ) from error
        finally:
            if staged is not None:
                staged.remove()
        cached = self._take(digest, about)
        self._trim()
        return cached

    def _keep(self, staged: Path, digest: str, index: Mapping[str, Any]) -> None:
        """Flush, then rename. Where another process was faster, its copy stays, if it is whole."""
        for file in staged.rglob("*"):
            _flush(file)
        _flush(staged)
        if self._verified(digest) is not None:
            return
        self._remove(digest)
        write_whole(self.root / f"{digest}.json", json.dumps(index, sort_keys=True))
        try:
            staged.rename(self.root / digest)
        except OSError:
            if self._verified(digest) is None:
                raise
        _flush(self.root)

    def _verified(self, digest: str) -> About | None:
        """What is known about an entry, if its files are those of its index and the index is the one of its name."""
        folder = self.root / digest
        try:
            index = json.loads((self.root / f"{digest}.json").read_text("utf-8"))
            if _digest(index) != digest:
                return None
            sizes = measured(folder, self.files, self.total)
            if {name: size for name, (size, _) in index["files"].items()} != sizes:
                return None
            same = all(_sha256(folder / name) == sha for name, (_, sha) in index["files"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
            return None
        about: About = index["about"]
        return about if same else None

    def _take(self, digest: str, about: About) -> Cached:
        self._taken.add(digest)
        with contextlib.suppress(OSError):
            os.utime(self.root / f"{digest}.json")  # used now: `_trim` goes by it
        return Cached(self.root / digest, about)

    def _remove(self, digest: str) -> None:
        """The index first, so that nobody takes an entry that is being deleted."""
        (self.root / f"{digest}.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            gone = Path(tempfile.mkdtemp(prefix=GONE, dir=self.root))
            with contextlib.suppress(FileNotFoundError):
                (self.root / digest).rename(gone / digest)
            shutil.rmtree(gone, ignore_errors=True)

    def _trim(self) -> None:
        """Drop what was longest unused until the rest fits."""
        sizes: dict[str, int] = {}
        for index in sorted(self.root.glob("*.json"), key=_used):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                sizes[index.stem] = sum(size for size, _ in json.loads(index.read_text("utf-8"))["files"].values())
        for digest, size in list(sizes.items()):
            if sum(sizes.values()) <= self.kept:
                return
            if digest not in self._taken:
                self._remove(digest)
                sizes[digest] -= size

    def _sweep(self) -> None:
        """Remove what a killed process left behind: downloads by their lock, what has none by its age."""
        sweep(self.root, STAGED)
        for place in (self.root, self.root / KEYS):
            for rubbish in (*place.glob(f"{STAGED}*"), *place.glob(f"{GONE}*")):
                if time.time() - _used(rubbish) <= STALE:
                    continue
                if rubbish.is_dir():
                    shutil.rmtree(rubbish, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        rubbish.unlink()


def measured(folder: Path, files: int, total: int) -> dict[str, int]:
    """Size of every file below a folder by its relative name. Raises InputError for links and where a cap is passed."""
    sizes: dict[str, int] = {}
    waiting, entries = [folder], 0
    while waiting:
        with os.scandir(waiting.pop()) as listing:
            entries_here = list(listing)
        for entry in entries_here:
            status = entry.stat(follow_symlinks=False)
            name = Path(entry.path).relative_to(folder).as_posix()
            entries += 1
            if stat.S_ISLNK(status.st_mode):
                raise InputError(f"the file {name[:200]!r} is a symbolic link; store the file itself.")
            if stat.S_ISDIR(status.st_mode):
                waiting.append(Path(entry.path))
            elif not stat.S_ISREG(status.st_mode):
                raise InputError(f"{name[:200]!r} is neither a file nor a folder.")
            elif status.st_nlink > 1:
                raise InputError(f"the file {name[:200]!r} has several hard links; store a copy of its own.")
            else:
                sizes[name] = status.st_size
            if entries > files:
                raise InputError(f"more than {files} files and folders; a model needs a few.")
        if sum(sizes.values()) > total:
            raise InputError(f"the files take more than {total} bytes, the limit of one model.")
    return dict(sorted(sizes.items()))


def _digest(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _name(key: str) -> str:
    """Of the file that says which content a key has; keys may hold any characters."""
    return hashlib.sha256(key.encode()).hexdigest()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while piece := content.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def write_whole(file: Path, text: str) -> None:
    """All of the text or the old content, whatever happens."""
    descriptor, name = tempfile.mkstemp(prefix=STAGED, dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    """To the disk, so that a name never stands for less than its content after a power cut."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return  # Windows opens no folders
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()
