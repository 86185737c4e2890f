"""The rows of any number of files, cut into blocks: the same files give the same blocks, in the same order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnxplain.bulk.counting import SUFFIXES, Counted, count
from onnxplain.bulk.locations import InputFile, find
from onnxplain.inputs import InputSpec


@dataclass(frozen=True)
class Piece:
    """Rows start to stop of one file. place: where they begin in it, in the words of its type (bytes of a csv)."""

    file: InputFile
    start: int
    stop: int
    place: int = 0


@dataclass(frozen=True)
class Block:
    """The rows of one partition. first: the number of its first row over all files."""

    number: int
    first: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclass(frozen=True)
class Plan:
    """All rows. columns: of tables, by input, as the first table has them where model.toml does not say."""

    blocks: tuple[Block, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(block.rows for block in self.blocks)

    @property
    def digest(self) -> str:
        """Another text whenever the files, their contents' times and sizes, or the cuts are others."""
        hashed = hashlib.sha256()
        for block in self.blocks:
            for p in block.pieces:
                hashed.update(f"{block.number}\0{p.file}\0{p.start}\0{p.stop}\0{p.place}\n".encode())
        return hashed.hexdigest()


def plan(
    names: Sequence[str],
    inputs: Sequence[InputSpec],
    columns: Mapping[str, tuple[str, ...]],
    rows_per_block: int,
) -> Plan:
    """Blocks of the files that the names mean, see `locations.find`. columns: of tables, by input, where known.

    Files are looked at, not read: the head of an array, the metadata of a Parquet file, the lines of a csv. One that
    cannot be read has one row, whose explanation is an error. Raises InputError, Unavailable, UsageError.
    """
    files, notes = find(names, SUFFIXES)
    known = dict(columns)
    blocks: list[Block] = []
    pieces: list[Piece] = []
    rows, first = 0, 0
    for file in files:
        counted = count(file, inputs)
        if counted.columns and len(inputs) == 1 and not known.get(inputs[0].name):
            known[inputs[0].name] = counted.columns
            notes.append(
                f"{file.name}: the names of the model's columns are not known ([input] features of model.toml), so "
                "these are taken in the first file's order"
            )
        for piece in _cut(file, counted, rows_per_block, rows):
            pieces.append(piece)
            rows += piece.stop - piece.start
            if rows == rows_per_block:
                blocks.append(Block(len(blocks), first, tuple(pieces)))
                pieces, first, rows = [], first + rows, 0
    if pieces:
        blocks.append(Block(len(blocks), first, tuple(pieces)))
    return Plan(tuple(blocks), known, tuple(notes))


def _cut(file: InputFile, counted: Counted, size: int, filled: int) -> Iterator[Piece]:
    """Its rows, cut where a block of `size` rows is full, of which `filled` are there."""
    start = 0
    while start < counted.rows:
        stop = min(counted.rows, start + size - filled)
        yield Piece(file, start, stop, counted.places[start] if counted.places else 0)
        filled, start = (filled + stop - start) % size, stop
