"""Files the user named: glob patterns expanded, and each one there, a file and not empty."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Iterable
from pathlib import Path

from onnxplain.errors import InputError


def existing_file(path: str | Path) -> Path:
    """The path of a non-empty file, or an error that says what is there instead."""
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a directory. Name its files, for example '{path}/*.png'.")
        if not path.exists():
            raise InputError(f"no file {path}. {_near(path)}")
        if path.stat().st_size == 0 and path.is_file():
            raise InputError(f"{path} is empty (0 bytes). Give a file with an input in it.")
    except (OSError, ValueError) as error:  # no permission on the folder, a name too long, a NUL in it
        raise InputError(f"{path}: cannot be read ({_reason(error)}).") from error
    return path


def read_bytes(path: Path) -> bytes:
    """The file's bytes; every operating system error is an InputError."""
    try:
        return existing_file(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)}).") from error


def read_text(path: Path) -> str:
    """The file as UTF-8 (a byte order mark is dropped)."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 (byte {error.start}). Save it as UTF-8.") from error


def expand(patterns: Iterable[str | Path]) -> list[Path]:
    """Every file the patterns name, in the order given; the files of one glob pattern sorted by name."""
    paths: list[Path] = []
    for pattern in patterns:
        text = str(pattern)
        if glob.has_magic(text) and not Path(text).exists():
            found = [Path(name) for name in sorted(glob.glob(text, recursive=True))]
            files = [path for path in found if path.is_file()]
            if not files:
                raise InputError(f"no file matches {text!r}. {_near(Path(text))}")
            paths += [existing_file(path) for path in files]
        else:
            paths.append(existing_file(text))
    return paths


def _near(path: Path) -> str:
    """What else is in the folder, nearest name first."""
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either: check the path."
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:5]
    return f"In {path.parent} there is {', '.join(near)}." if near else f"{path.parent} holds no files."


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
