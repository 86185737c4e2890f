"""The folder of a bulk run: what it was begun with, its partitions, and for each that is complete an entry.

    dataset.json            model, recipe, options, rows: written first; another run in the same folder is refused
    part-00000.npz          rows 0 … (or .parquet)
    part-00000.json         its entry: rows, errors, sha256; written behind it, so what has an entry is whole
    manifest.json           the sum of all entries; written last, so what has one is complete

Every file is written under another name and renamed. A run that is killed leaves whole partitions, with entries.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from onnxplain.bulk.explaining import Partition
from onnxplain.bulk.partition import FORMATS, Row, decode
from onnxplain.errors import InputError, UsageError
from onnxplain.methods.notes import Notes

DATASET, MANIFEST = "dataset.json", "manifest.json"
SHOWN = 20  # of the errors, in the manifest; all are in the partitions


class Dataset:
    """A folder of explanations. about: the content of dataset.json."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.about = _read(self.folder / DATASET)

    @classmethod
    def begin(cls, folder: Path, about: Mapping[str, Any], resume: bool) -> Self:
        """The folder of a run, new or, with `resume`, as far as it got.

        about: what decides the numbers. Raises UsageError for a folder that holds a run without `resume`, or another
        one; InputError where it cannot be written.
        """
        plain = json.loads(json.dumps(about))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / DATASET).exists():
                if left := sorted(folder.glob("part-*")):
                    raise UsageError(f"{folder} holds {left[0].name} but no {DATASET}: choose another --out.")
                write(folder / DATASET, json.dumps(plain, indent=2, ensure_ascii=False).encode())
            elif not resume:
                raise UsageError(f"{folder} holds a run already: go on with it by --resume, or choose another --out.")
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror or error}.") from error
        found = cls(folder)
        if found.about != plain:
            name, then, now = _difference(found.about, plain)
            raise UsageError(
                f"--resume: {folder} was begun with {name} {_brief(then)}, not {_brief(now)}. Give what it was begun "
                "with, or choose another --out."
            )
        return found

    def path(self, number: int) -> Path:
        """Where a partition lies, or will."""
        return self.folder / f"part-{number:05d}{FORMATS[self.about['format']].suffix}"

    def entry(self, number: int) -> dict[str, Any] | None:
        """The entry of a partition that is complete; None for one that is to be made."""
        place = self.folder / f"part-{number:05d}.json"
        try:
            entry: dict[str, Any] = json.loads(place.read_bytes())
            whole = self.path(number).stat().st_size == entry["bytes"]
        except (OSError, ValueError, KeyError):
            return None
        return entry if whole else None

    def add(self, partition: Partition) -> None:
        """Write a partition, then its entry. Raises InputError where the folder cannot be written."""
        entry = {
            "partition": partition.number,
            "rows": partition.rows,
            "errors": partition.errors,
            "first_error": partition.first_error,
            "notes": list(partition.notes),
            "bytes": len(partition.content),
            "sha256": hashlib.sha256(partition.content).hexdigest(),
        }
        try:
            write(self.path(partition.number), partition.content)
            write(self.folder / f"part-{partition.number:05d}.json", json.dumps(entry, indent=2).encode())
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror or error}.") from error

    def finish(self, notes: Sequence[str] = ()) -> dict[str, Any]:
        """Write the manifest, once every partition has its entry; returns it. Raises InputError.

        notes: of all rows; behind them those of some, with how many.
        """
        entries = [self.entry(number) for number in range(self.about["partitions"])]
        missing = [number for number, entry in enumerate(entries) if entry is None]
        if missing:
            raise InputError(f"{self.folder}: partitions {missing[:5]} are missing; go on by --resume.")
        found = [entry for entry in entries if entry is not None]
        rows = sum(entry["rows"] for entry in found)
        of_rows = Notes.of(entry.get("notes", ()) for entry in found)  # a run begun by an older version has none
        manifest = {
            "rows": rows,
            "errors": sum(entry["errors"] for entry in found),
            "first_errors": [entry["first_error"] for entry in found if entry["errors"]][:SHOWN],
            "notes": [*notes, *of_rows.texts(rows, "rows", always=True)],
            "partitions": [{"file": self.path(entry["partition"]).name, **entry} for entry in found],
        }
        try:
            write(self.folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror or error}.") from error
        return manifest

    def rows(self) -> Iterator[Row]:
        """Every row of the partitions that are there, in order. Raises InputError for one that is damaged."""
        for number in range(self.about["partitions"]):
            if self.entry(number) is not None:
                path = self.path(number)
                yield from decode(self.about["format"], path.read_bytes(), str(path))


def write(path: Path, content: bytes) -> None:
    """The whole file or none, also when the power fails."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is not the folder of a bulk run: it has no {DATASET}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: not written by a bulk run.")
    return found


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """The first key with two values: its name (of inputs: that of their number, where that differs), and both."""
    keys = sorted({**now, **then}, key=lambda key: key == "inputs")
    name = next(key for key in keys if then.get(key) != now.get(key))
    before, after = then.get(name), now.get(name)
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        inner, before, after = _difference(before, after)
        return f"{name}.{inner}", before, after
    return name, before, after


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
