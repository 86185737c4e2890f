"""Put finished files where another program looks for them: all of it or nothing, and nobody else's work is lost."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from onnxplain.errors import InputError
from onnxplain.exports.registry import ExportOption

FORCE = ExportOption("force", "Replace what another export wrote.", bool)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """An empty folder inside `folder`, which is made where it is missing; gone afterwards. Raises InputError."""
    made = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".onnxplain.", dir=folder))
        yield made
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}.") from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def place(stage: Path, folder: Path, force: bool) -> list[Path]:
    """Move everything in `stage` to `folder`; returns what is new there. Equal files and folders are left alone.

    Raises InputError where something else has a name already; with `force` it is replaced, but a folder only if every
    file in it is one of those that are written.
    """
    drafts = sorted(stage.iterdir())
    fresh = [draft for draft in drafts if not _same(draft, folder / draft.name)]
    for draft in fresh:
        _check(draft, folder / draft.name, force)
    with tempfile.TemporaryDirectory(prefix=".onnxplain.", dir=folder) as old:
        _swap(fresh, folder, Path(old))
    return [folder / draft.name for draft in fresh]


def write_texts(files: Mapping[str, str], folder: Path, force: bool) -> str:
    """Texts by file name into a folder, all or nothing: see `place`. Returns a line for each file or folder there."""
    with staging(folder) as stage:
        for file, content in files.items():
            (stage / file).parent.mkdir(parents=True, exist_ok=True)
            (stage / file).write_text(content, encoding="utf-8")
        fresh = place(stage, folder, force)
    places = [folder / name for name in dict.fromkeys(file.partition("/")[0] for file in files)]
    return "\n".join(f"{path}{'' if path in fresh else '  as it was'}" for path in places)


def _swap(drafts: Sequence[Path], folder: Path, old: Path) -> None:
    """All of them, or after a failure none."""
    moved: list[tuple[Path, Path]] = []
    try:
        for draft in drafts:
            target = folder / draft.name
            if os.path.lexists(target):
                os.replace(target, old / draft.name)
                moved.append((old / draft.name, target))
            os.replace(draft, target)
            moved.append((target, draft))
    except OSError:
        for source, back in reversed(moved):
            os.replace(source, back)
        raise


def _check(draft: Path, target: Path, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink() or target.is_dir() != draft.is_dir():
        raise InputError(
            f"cannot write {target}: something of another kind has that name. Remove it, or export elsewhere."
        )
    if not force:
        raise InputError(f"{target} holds something else already. Give --force to replace it, or export elsewhere.")
    if target.is_dir():
        known = _files(draft) | {Path(f"{path}.data") for path in _files(draft)}
        other = sorted(str(path) for path in _files(target) - known)
        if other:
            raise InputError(
                f"{target} also holds {', '.join(other[:3])}, which export does not write and would delete. "
                "Remove the folder yourself, or export elsewhere."
            )


def _same(draft: Path, target: Path) -> bool:
    if target.is_symlink() or not target.exists() or draft.is_dir() != target.is_dir():
        return False
    if draft.is_file():
        return filecmp.cmp(draft, target, shallow=False)
    return _files(draft) == _files(target) and all(
        filecmp.cmp(draft / path, target / path, shallow=False) for path in _files(draft)
    )


def _files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
