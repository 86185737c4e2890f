"""A model's files in memory as they were when they were read: nobody can change them under what is served."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxplain.frontend.load import MAX_BYTES
from onnxplain.graph.weight_files import Content
from onnxplain.prepared.entry import DamagedEntry

MODEL, BESIDE = "model", "beside:"  # stores: the model's file; files of weights by their location from there


@dataclass(frozen=True)
class ModelFile:
    """The file a model lies in. sha256: in hex."""

    path: Path
    content: Content
    sha256: str

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Raises OSError where it is no file that could be a model: `frontend.load` says why."""
        content = _content(path, most=MAX_BYTES)
        return cls(path, Content(content), hashlib.sha256(content).hexdigest())

    def beside(self, listed: Mapping[str, tuple[int, str]]) -> dict[str, Content]:
        """Files of weights by store; listed: size and sha256 by location. Raises DamagedEntry where one is another."""
        found = {}
        for location, (size, sha256) in listed.items():
            try:
                content = _content(self.path.parent / location, size)
            except OSError as error:
                raise DamagedEntry(f"the weights in {location} are not there") from error
            if hashlib.sha256(content).hexdigest() != sha256:
                raise DamagedEntry(f"the weights in {location} are others now")
            found[BESIDE + location] = Content(content)
        return found


def external_files(path: Path, tensors: Iterable[ir.ExternalTensor]) -> dict[str, tuple[int, str]]:
    """Size and sha256 of every file that holds some of these weights, by location from the model's folder."""
    found = {}
    for location in dict.fromkeys(str(tensor.location) for tensor in tensors):
        content = _content(path.parent / location)
        found[location] = (len(content), hashlib.sha256(content).hexdigest())
    return found


def _content(path: Path, size: int | None = None, most: int = sys.maxsize) -> bytes:
    """A file's bytes, so many of them. Raises OSError for anything else."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > most or size not in (None, status.st_size):
            raise OSError(f"{path.name} is no file, or of another size")
        content = file.readall()
    if len(content) != status.st_size:
        raise OSError(f"{path.name} is being written")
    return content
