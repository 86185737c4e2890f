"""Files: names that every file system takes, and a folder that gets all of a run's results or none."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from onnxplain.errors import InputError

LONGEST = 180  # bytes of a safe name: file systems take 255, suffixes and temporary names need some


def safe_name(tensor_name: str) -> str:
    """The name with every character outside [A-Za-z0-9._-] replaced by `_`: "/conv1/Conv:0" -> "_conv1_Conv_0".

    Names made of dots alone (".", "..") become underscores; overlong ones are cut and end in a digest of the whole.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", tensor_name)
    if not name.strip("."):
        return "_" * max(1, len(name))
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{hashlib.sha256(tensor_name.encode()).hexdigest()[:8]}"
    return name


class OutputFolder:
    """A folder that is written as a whole: `with OutputFolder("out") as out: out.write("report.html", text)`.

    Files are written to a temporary folder inside `path` and renamed into place when the block ends. When the block or
    a write fails, nothing of this run remains and files from before are as they were; every OSError becomes one
    InputError. Only if the renaming itself fails half-way may files from before be replaced, by complete new ones.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._made: list[Path] = []  # folders that did not exist, outermost first
        self._staging: Path | None = None
        self._names: list[str] = []

    def __enter__(self) -> Self:
        try:
            missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            for folder in reversed(missing):
                folder.mkdir()
                self._made.append(folder)
            self._staging = Path(tempfile.mkdtemp(prefix=".onnxplain-", dir=self.path))
        except OSError as error:
            self._remove()
            raise self._failure(error) from error
        return self

    def new(self, name: str) -> Path:
        """Where to write `name` by other means (np.save, onnx.save); it appears in the folder when the block ends."""
        if self._staging is None:
            raise RuntimeError("OutputFolder is used in a with statement")
        if name != safe_name(name):
            raise InputError(f"{name!r} is not a plain file name; safe_name makes it {safe_name(name)!r}.")
        if name in self._names:
            raise InputError(f"two results of one run would both be written to {self.path / name}.")
        if (self.path / name).is_dir():
            raise InputError(f"cannot write {self.path / name}: it is a folder. Choose another output folder.")
        self._names.append(name)
        return self._staging / name

    def write(self, name: str, content: bytes | str) -> Path:
        """Write a whole file, text as UTF-8; returns the path it will have."""
        data = content.encode("utf-8") if isinstance(content, str) else content
        staged = self.new(name)
        try:
            with staged.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # a full disk shows here, not after the renaming
        except OSError as error:
            raise self._failure(error) from error
        return self.path / name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        placed: list[Path] = []
        try:
            if error is None and self._staging is not None:
                for staged in sorted(self._staging.iterdir()):
                    target = self.path / staged.name
                    fresh = not target.exists()
                    os.replace(staged, target)
                    if fresh:
                        placed.append(target)
                self._made = []
        except OSError as failure:
            for target in placed:
                target.unlink(missing_ok=True)
            raise self._failure(failure) from failure
        finally:
            self._remove()
        if isinstance(error, OSError):
            raise self._failure(error) from error

    def _remove(self) -> None:
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._staging, self._made = None, []

    def _failure(self, error: OSError) -> InputError:
        reason = error.strerror or str(error) or type(error).__name__
        name = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else self.path
        if name == self.path or self.path in name.parents or name in self.path.parents:
            return InputError(f"cannot write to {self.path}: {reason}. Nothing of this run was kept.")
        return InputError(f"{name}: {reason}. Nothing was written to {self.path}.")
