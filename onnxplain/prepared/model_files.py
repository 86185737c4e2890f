"""A model's files in memory as they were when they were read: nobody can change them under what is served."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxplain.frontend.load import MAX_BYTES, external_tensors
from onnxplain.graph.weight_files import Content
from onnxplain.graph.weightless import weightless
from onnxplain.prepared.entry import DamagedEntry

INSIDE = "onnxplain.inside"  # where large weights of a parsed model lie: in its own file
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


@dataclass(frozen=True)
class OtherFiles:
    """The files beside a model that its weights lie in. listed: size and sha256 by location, for `ModelFile.beside`.

    weights: where each lies, by its name: location, offset, bytes.
    """

    listed: dict[str, tuple[int, str]]
    weights: dict[str, tuple[str, int, memoryview]]

    @classmethod
    def of(cls, file: ModelFile, model: ir.Model) -> OtherFiles:
        """Of a model that was loaded from this file. Raises ValueError where its weights are not theirs any more."""
        proto = onnx.ModelProto()
        proto.ParseFromString(weightless(file.content, INSIDE))
        listed, weights, contents = dict[str, tuple[int, str]](), dict[str, tuple[str, int, memoryview]](), {}
        for tensor in external_tensors(proto):
            entry = {item.key: item.value for item in tensor.external_data}
            location = entry["location"]
            if location == INSIDE:
                continue
            if location not in contents:
                contents[location] = Content(content := _content(file.path.parent / location))
                listed[location] = (len(content), hashlib.sha256(content).hexdigest())
            held = (
                model.graph.initializers[tensor.name].const_value if tensor.name in model.graph.initializers else None
            )
            if held is None:
                raise ValueError(f"{tensor.name} lies in {location} and inside a node")
            offset = int(entry.get("offset", 0))
            found = contents[location].view(offset, held.nbytes)
            if found != held.tobytes():
                raise ValueError(f"the weights in {location} were changed meanwhile")
            weights[tensor.name] = (location, offset, found)
        return cls(listed, weights)


def locations(file: ModelFile) -> list[str]:
    """The other files that a model's weights lie in, from its folder."""
    proto = onnx.ModelProto()
    proto.ParseFromString(weightless(file.content, INSIDE))
    found = {item.value for t in external_tensors(proto) for item in t.external_data if item.key == "location"}
    return sorted(found - {INSIDE})


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
