"""Where the files of a bulk run lie: this machine, or whatever pyarrow reaches by a URI such as s3://bucket/folder."""

from __future__ import annotations

import glob
import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from onnxplain.errors import InputError, Unavailable, UsageError
from onnxplain.inputs.paths import expand

URI = re.compile(r"[a-z][a-z0-9+.-]+://")
FRESH = "what it needs is not installed: pip install 'onnxplain[parquet]'"


@dataclass(frozen=True)
class InputFile:
    """One file. name: as results call it. size: bytes; stamp: another number whenever it was written again.

    query: what pyarrow is told of the store, behind the `?` of an address: region=…, endpoint_override=….
    """

    name: str
    size: int
    stamp: int
    query: str = ""

    @property
    def suffix(self) -> str:
        """The end of its name, such as ".png"."""
        return os.path.splitext(self.name)[1].lower()

    @contextmanager
    def path(self) -> Iterator[Path]:
        """The file on this machine, fetched where it lies elsewhere. Raises InputError, Unavailable."""
        if not URI.match(self.name):
            yield Path(self.name)
            return
        system, inner = _system(self.name, self.query)
        with tempfile.TemporaryDirectory(prefix="onnxplain-") as folder:
            copy = Path(folder) / os.path.basename(inner)
            try:
                with system.open_input_stream(inner) as source, copy.open("wb") as target:
                    while piece := source.read(1 << 20):
                        target.write(piece)
            except FileNotFoundError as error:
                raise InputError(f"no file {self.name}: it was there when the run was planned.") from error
            except OSError as error:
                raise Unavailable(
                    f"{self.name} cannot be fetched: {_reason(error)}. Run again with --resume."
                ) from error
            try:
                yield copy
            except InputError as error:  # it names the copy, which nobody knows
                raise InputError(str(error).replace(str(copy), self.name)) from error

    def open(self) -> Any:
        """A stream of its bytes that can be moved in, for what reads parts of it."""
        if URI.match(self.name):
            system, inner = _system(self.name, self.query)
            return io.BufferedReader(_Stream(system.open_input_file(inner)))
        return open(self.name, "rb")


def find(names: Iterable[str], suffixes: Iterable[str]) -> tuple[list[InputFile], list[str]]:
    """Every file that the names mean, sorted within each: files, folders with all below them, glob patterns, URIs.

    suffixes: of files that are taken from folders; one that is named, or fits a pattern, is taken in any case. Also
    returns what was passed over, in sentences. Raises InputError where there is nothing.
    """
    taken, found, notes = tuple(suffixes), list[InputFile](), list[str]()
    for name in names:
        files, is_folder = _remote(name) if URI.match(name) else _local(name)
        if is_folder:
            kept = [file for file in files if file.suffix in taken]
            others = sorted({file.suffix or "(no suffix)" for file in files if file.suffix not in taken})
            if others:
                notes.append(
                    f"{name}: {len(files) - len(kept)} files of other types ({', '.join(others)}) are left out"
                )
            files = kept
        if not files:
            raise InputError(f"{name}: no file to explain. Files of these types are read: {', '.join(taken)}.")
        found += files
    twice = len(found) - len({file.name for file in found})
    if twice:
        raise InputError(f"{twice} files are named twice; name each once.")
    return found, notes


def _local(name: str) -> tuple[list[InputFile], bool]:
    if os.path.isdir(name) and not glob.has_magic(name):
        below = (os.path.join(folder, file) for folder, _, files in os.walk(name) for file in files)
        paths = sorted(path for path in below if not _hidden(os.path.relpath(path, name)))
        return [_stated(path) for path in paths], True
    return [_stated(str(path)) for path in expand([name])], False


def _stated(path: str) -> InputFile:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    return InputFile(path, status.st_size, status.st_mtime_ns)


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in Path(path).parts)


def _remote(name: str) -> tuple[list[InputFile], bool]:
    """A file, all below a folder, or what fits a pattern in a folder's names."""
    name, query = _parts(name)
    pattern = name if glob.has_magic(name) else ""
    base = name
    while glob.has_magic(base):
        base = base.rpartition("/")[0]
    system, inner = _system(base, query)
    inner = inner.rstrip("/")
    head = base.rstrip("/").removesuffix(inner)  # what stands before a path: s3://, file://
    from pyarrow import fs

    try:
        root = system.get_file_info(inner)
        if root.type == fs.FileType.NotFound:
            raise InputError(f"nothing at {name}.")
        if root.type == fs.FileType.File:
            entries = [root]
        else:
            entries = system.get_file_info(fs.FileSelector(inner, recursive=True))
    except OSError as error:
        raise Unavailable(f"{name} cannot be listed: {_reason(error)}.") from error
    files = [
        InputFile(head + entry.path, entry.size or 0, entry.mtime_ns or 0, query)
        for entry in sorted(entries, key=lambda entry: entry.path)
        if entry.type == fs.FileType.File and not (_hidden(os.path.relpath(entry.path, inner)) and entry is not root)
    ]
    if pattern:
        return [file for file in files if _fits(file.name.split("/"), pattern.split("/"))], False
    return files, root.type != fs.FileType.File


def _parts(name: str) -> tuple[str, str]:
    """An address and its query; a `?` without `=` behind it is of a pattern."""
    address, mark, query = name.rpartition("?")
    return (address, query) if mark and "=" in query else (name, "")


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """As glob does it: `*` stays within a folder, `**` is any number of folders."""
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or _fits(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


class _Stream(io.RawIOBase):
    """pyarrow's file with Python's manners: lines, and ends that are seen."""

    def __init__(self, file: Any):
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


@lru_cache(maxsize=64)
def _system(address: str, query: str) -> tuple[Any, str]:
    """pyarrow's file system of an address, and the path in it."""
    scheme, uri = address.split("://")[0], f"{address}?{query}" if query else address
    try:
        from pyarrow import fs
    except ImportError as error:
        raise UsageError(f"{scheme}:// is read by pyarrow; {FRESH}.") from error
    try:
        system, inner = fs.FileSystem.from_uri(uri)
    except (ValueError, NotImplementedError, OSError) as error:
        raise UsageError(f"{uri}: pyarrow cannot open it ({_reason(error)}).") from error
    return system, str(inner)


def _reason(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split()).rstrip(".")
