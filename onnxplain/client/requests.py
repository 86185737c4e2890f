"""What a user gives becomes the tensors a model takes, by what the server tells of the model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from google.protobuf import json_format
from PIL import Image, ImageOps

from onnxplain.errors import InputError
from onnxplain.inputs import InputSpec, Loaded, ModelSettings, OutputSettings, Preprocessing, bind, load
from onnxplain.inputs.preparation import picture_settings
from onnxplain.inputs.tables import from_table, is_table
from onnxplain.runtime.session import Array
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.tensors import DATATYPES

X: TypeAlias = (
    Array | Sequence[Any] | Mapping[str, Any] | str | Path | Image.Image | Loaded
)  # a sequence: numbers, or paths
PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # modes of a picture that a PNG file holds without loss


@dataclass(frozen=True)
class ModelInfo:
    """What GetExplainability said, in the words of the rest of the package."""

    reply: v1.GetExplainabilityResponse

    @property
    def version(self) -> str:
        """The number."""
        return self.reply.model.version

    @cached_property
    def specs(self) -> list[InputSpec]:
        """The model's inputs."""
        return [spec_of(entry) for entry in self.reply.inputs]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.reply.labels)

    @property
    def method(self) -> str:
        """The method of the model's default recipe; what stands behind it is a composite."""
        return self.reply.default_recipe.partition("-")[0]

    @cached_property
    def pictures(self) -> Preprocessing:
        """How pictures become inputs. Raises UsageError or UnknownName for settings that a newer server made."""
        tables = json_format.MessageToDict(self.reply.input_settings)
        where = f"the server's input settings of {self.reply.model.name}"
        columns = {name: tuple(map(str, t.pop("features"))) for name, t in tables.items() if "features" in t}
        inputs = {name: picture_settings(_whole(table), where) for name, table in tables.items() if table}
        output = OutputSettings(kind=self.reply.kind or None)
        return Preprocessing(ModelSettings(inputs=inputs, features=columns, output=output))

    def asks_as(self, other: ModelInfo) -> bool:
        """Whether a request that was made ready for one version means the same to the other."""
        mine, theirs = self.reply, other.reply
        same = list(mine.inputs) == list(theirs.inputs) and mine.input_settings == theirs.input_settings
        return same and self.method == other.method

    def loaded(self, x: X) -> Loaded:
        """Feeds from arrays, files or a picture. Raises InputError."""
        if isinstance(x, Loaded):
            return x
        if isinstance(x, Image.Image):
            return self._picture(x)
        if is_table(x):
            return Loaded(feeds=from_table(x, self.specs, self.pictures.columns(self.specs)))
        files = _files(x)
        if files:
            return load(files, self.specs, self.pictures.of_input, self.pictures.columns(self.specs))
        return Loaded(feeds=bind(_arrays(x), self.specs))

    def _picture(self, image: Image.Image) -> Loaded:
        """A picture in memory, by way of a file: they are read in one place only."""
        upright = ImageOps.exif_transpose(image)
        with tempfile.TemporaryDirectory(prefix="onnxplain-") as folder:
            path = Path(folder, "picture.png")
            (upright if upright.mode in PNG else upright.convert("RGB")).save(path)
            loaded = load([path], self.specs, self.pictures.of_input)
        loaded.files.clear()
        return loaded


def spec_of(entry: Any) -> InputSpec:
    """An input as either protocol describes it: name, datatype, shape with -1 for any length."""
    if entry.datatype not in DATATYPES:
        raise InputError(f"input {entry.name!r}: the server says {entry.datatype}, which this client does not know.")
    shape = tuple(int(side) if side >= 0 else "?" for side in entry.shape)
    any_rank = getattr(entry, "any_rank", not shape)  # the Open Inference Protocol says [] for a scalar and for any
    return InputSpec(entry.name, DATATYPES[entry.datatype].name, None if any_rank else shape)


def bound(x: X, specs: Sequence[InputSpec]) -> dict[str, Array]:
    """Arrays for `infer`, which may leave inputs out: those that a server fills in, such as a seed."""
    arrays = _arrays(x)
    if not isinstance(x, Mapping):
        specs = [spec for spec in specs if not spec.name.endswith((".seed", ".target"))]
        return bind(arrays, specs)
    known = {spec.name: spec for spec in specs}
    return {
        name: bind({name: a}, [known[name]], "the input")[name] if name in known else a for name, a in arrays.items()
    }


def is_file(x: X) -> bool:
    """Whether it names files, or is a picture or a table: what only the model's settings can prepare."""
    return isinstance(x, Image.Image | Loaded) or is_table(x) or bool(_files(x))


def _files(x: Any) -> list[str | Path]:
    """The paths in what was given; [] where it holds numbers."""
    if isinstance(x, str | Path):
        return [x]
    if isinstance(x, list | tuple) and x and all(isinstance(entry, str | Path) for entry in x):
        return list(x)
    return []


def _arrays(x: Any) -> dict[str, Array]:
    if isinstance(x, Mapping):
        return {str(name): np.asarray(value) for name, value in x.items()}
    return {"": np.asarray(x)}


def _whole(value: Any) -> Any:
    """Whole numbers as such: google.protobuf.Struct has only doubles."""
    if isinstance(value, dict):
        return {key: _whole(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_whole(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
