"""Files that somebody else named and sized, written below a folder of ours: each within it, whole and no larger."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from onnxplain.errors import InputError, Unavailable
from onnxplain.sources.cache import BYTES, FILES
from onnxplain.sources.folder import DirectorySource
from onnxplain.sources.resolved import ResolvedModel
from onnxplain.sources.source import Release

DOWNLOAD_SECONDS = 900.0  # for all files of one release
PART = re.compile(r"[^\x00-\x1f\x7f/\\]{1,255}")  # of a path; all systems can write it
SUMS = "SHA256SUMS"  # as sha256sum writes it: what the files of a version must be
SUMS_BYTES = 2**20
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def relative_path(name: str) -> str:
    """A name as a path below a folder, parts joined by "/". Raises InputError for one that leads elsewhere."""
    parts = name.split("/")
    if any(not PART.fullmatch(part) or part in (".", "..") for part in parts) or len(name) > 1024:
        raise InputError(f"{name[:200]!r} is no name of a file within a model. Store it under another.")
    return name


def check_sizes(sizes: Iterable[int], what: str) -> None:
    """Raise InputError for more files or bytes than a model has."""
    sizes = list(sizes)
    if len(sizes) > FILES:
        raise InputError(f"{what} has {len(sizes)} files; a model has {FILES} at most.")
    if sum(sizes) > BYTES:
        raise InputError(f"{what} has {sum(sizes)} bytes; a model has {BYTES} at most.")


def write(target: Path, pieces: Iterable[bytes], size: int, algorithm: str = "", digest: str = "") -> None:
    """A new file of `size` bytes. algorithm, digest: of hashlib, in hex; "" where there is none to compare with.

    Raises InputError where there are fewer bytes, more, or others.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    content = hashlib.new(algorithm, usedforsecurity=False) if algorithm else None
    written = 0
    with target.open("xb") as stream:  # never over another file, whatever the names' case
        for piece in pieces:
            written += len(piece)
            if written > size:
                break
            stream.write(piece)
            if content is not None:
                content.update(piece)
    if written != size:
        raise InputError(
            f"{target.name}: {'more' if written > size else 'fewer'} bytes came than the {size} announced."
        )
    if content is not None and content.hexdigest() != digest:
        raise InputError(f"{target.name}: its {algorithm} is not {digest}, as it should be. Upload it again.")


def check_sums(folder: Path) -> None:
    """Compare a version's files with its SHA256SUMS, if it has one. Raises InputError."""
    sums = folder / SUMS
    if not sums.is_file():
        return
    if sums.stat().st_size > SUMS_BYTES:
        raise InputError(f"{SUMS} has {sums.stat().st_size} bytes; it may have {SUMS_BYTES}.")
    wanted: dict[str, str] = {}
    for line in sums.read_text("utf-8", errors="replace").splitlines():
        match = LINE.fullmatch(line)
        if match is None:
            raise InputError(f"{SUMS}: {line[:80]!r} is no line of sha256sum's.")
        wanted[match[2].removeprefix("./")] = match[1]
    found = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    for name in sorted(found.keys() - wanted.keys() - {SUMS, ".complete"}):
        raise InputError(f"{SUMS} does not name {name!r}. Make it again: sha256sum * > {SUMS}.")
    for name, digest in wanted.items():
        if name not in found:
            raise InputError(f"{name!r} of {SUMS} is not there. Upload it.")
        with found[name].open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise InputError(f"{name!r} is not what {SUMS} says. Upload it again.")


def pieces_of(read: Callable[[int], bytes], size: int) -> Iterable[bytes]:
    """The content of a stream until it ends. size: bytes of a piece."""
    while piece := read(size):
        yield piece


def in_time(pieces: Iterable[bytes], until: float, what: str) -> Iterator[bytes]:
    """The pieces, until time.monotonic() says so; then Unavailable. what: the name of the file."""
    for piece in pieces:
        if time.monotonic() > until:
            raise Unavailable(f"{what} is not here in time. It is asked again.")
        yield piece


def opened(folder: Path, release: Release) -> ResolvedModel:
    """A release that lies in `folder` as it would in a model repository: <name>/<version>/…. Raises InputError."""
    return DirectorySource(folder).fetch(release)


def one_line(error: BaseException) -> str:
    """What a library's error says, in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(os.path.expanduser("~"), "~")[:200].rstrip(".")
