"""Temporary folders whose owner may be killed: a lock says whether it lives, and the next one cleans up behind it."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment, unused-ignore]

LOCK = ".lock"  # what the name of the file beside the folder ends with


class OwnedFolder:
    """A new folder PARENT/PREFIX…, for this user alone, until `remove` or the end of the process."""

    def __init__(self, parent: Path, prefix: str):
        while True:
            self.path = parent / f"{prefix}{secrets.token_hex(3)}"  # short: sockets have short names
            try:
                self._lock = os.open(_lock_of(self.path), os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                continue
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            if os.fstat(self._lock).st_nlink:  # else somebody cleaned up between the two lines
                break
            os.close(self._lock)
        try:
            self.path.mkdir(mode=0o700)
        except OSError:
            self.remove()
            raise

    def remove(self) -> None:
        """Take it away with all that is in it. A second time without effect."""
        if self._lock < 0:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        _lock_of(self.path).unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1


def sweep(parent: Path, prefix: str) -> list[Path]:
    """Remove the folders PARENT/PREFIX… of processes that are gone; which they were. Others' are left alone."""
    removed: list[Path] = []
    if fcntl is None:
        return removed
    for lock in parent.glob(f".{prefix}*{LOCK}"):
        with suppress(OSError):  # somebody else's, or gone by now
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its owner lives
                folder = lock.with_name(lock.name[1:].removesuffix(LOCK))
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink()
                removed.append(folder)
            finally:
                os.close(descriptor)
    return removed


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{LOCK}")
