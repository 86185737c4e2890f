"""A cache of entries in a folder, which several processes and machines may share."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from onnxplain.errors import InputError, UsageError
from onnxplain.prepared.entry import Buffer

LOG = logging.getLogger("onnxplain.graphs")
SUFFIX = ".graph"
STAGED = ".staged-"
STALE = 3600.0  # seconds after which what a process began to write is left over from one that was killed


class GraphCache(Protocol):
    """Entries by name, whole or not at all. Who can write to it decides what is answered: it is trusted."""

    def get(self, name: str) -> bytes | None:
        """The bytes of an entry; None where there is none, or it cannot be read."""
        ...

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Keep an entry, in place of one of that name; whether that was possible."""
        ...

    def drop(self, name: str) -> None:
        """Forget an entry that turned out to be of no use."""
        ...


class FolderCache:
    """A file an entry, written beside and renamed: readers see all of it or nothing, and the last writer stays.

    limit: bytes of all entries, above which those not read for longest go; what somebody has open stays readable to
    them. read_only: nothing is written, as in a bundle. Raises UsageError for a folder that others can write to.
    """

    def __init__(self, root: Path, limit: int = sys.maxsize, read_only: bool = False):
        self.root, self.limit, self.read_only = root, limit, read_only
        if not read_only:
            try:
                root.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise InputError(f"the graph cache {root} cannot be made: {error.strerror or error}.") from error
        try:
            mode = root.stat().st_mode
        except OSError as error:
            raise InputError(f"the graph cache {root} cannot be read: {error.strerror or error}.") from error
        if not stat.S_ISDIR(mode):
            raise InputError(f"the graph cache {root} is no folder.")
        if mode & stat.S_IWOTH:
            raise UsageError(
                f"the graph cache {root} can be written by everybody on this machine, and what lies there is served: "
                f"chmod o-w it, or name another folder."
            )

    def get(self, name: str) -> bytes | None:
        """As in `GraphCache`; a file that others can write to, a link or anything but a file is not read."""
        path = self._path(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            return None
        except OSError as error:
            _say(path, f"it cannot be read: {error.strerror or error}")
            return None
        try:
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode) or found.st_mode & stat.S_IWOTH:
                    _say(path, "it is no file, or one that everybody can write to")
                    return None
                content = file.read()
        except OSError as error:
            _say(path, f"it cannot be read: {error.strerror or error}")
            return None
        if not self.read_only:
            with contextlib.suppress(OSError):
                os.utime(path)  # read now: `_trim` goes by it
        return content

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """As in `GraphCache`; what cannot be written is said in the log, and work goes on without."""
        if self.read_only:
            return False
        size = sum(map(len, parts))
        if size > self.limit:
            _say(self._path(name), f"it has {size} bytes, and all may have {self.limit}; it is not kept")
            return False
        staged = None
        try:
            descriptor, staged = tempfile.mkstemp(prefix=STAGED, dir=self.root)
            with os.fdopen(descriptor, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            os.replace(staged, self._path(name))
            _flush(self.root)
            self._trim(self._path(name))
        except OSError as error:
            if staged is not None:
                Path(staged).unlink(missing_ok=True)
            _say(self._path(name), f"it cannot be written: {error.strerror or error}")
            return False
        return True

    def drop(self, name: str) -> None:
        """As in `GraphCache`."""
        if not self.read_only:
            with contextlib.suppress(OSError):
                self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.root / f"{name}{SUFFIX}"

    def _trim(self, newest: Path) -> None:
        """Let go of what was not read for longest until the rest fits; what was written just now stays."""
        entries = []
        for entry in os.scandir(self.root):
            with contextlib.suppress(OSError):  # another process took it away
                found = entry.stat(follow_symlinks=False)
                if entry.name.startswith(STAGED) and time.time() - found.st_mtime > STALE:
                    os.unlink(entry.path)
                elif entry.name.endswith(SUFFIX):
                    entries.append((found.st_mtime_ns, found.st_size, entry.path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                return
            if path != str(newest):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                    total -= size


def _say(path: Path, why: str) -> None:
    LOG.warning("graph cache: %s: %s", path.name, why)


def _flush(folder: Path) -> None:
    """The name of a file to the disk too."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
