"""model.toml: how a model's inputs are prepared, what its output means, how it is explained by default."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from onnxplain.errors import InputError, UnknownName, UsageError
from onnxplain.inputs.paths import read_text
from onnxplain.inputs.preparation import PictureSettings, picture_settings

KINDS = ("classification", "regression", "sigmoid", "dense")
VERSION = re.compile(r"[1-9][0-9]{0,17}")  # of a model that can be served: a whole number, one way to write it
TEXTS = ("description", "background")  # what model.toml says outside its tables
LICENCE_KEYS = ("name", "source", "attribution", "url", "note")


@dataclass(frozen=True)
class OutputSettings:
    """What is explained, the names of its classes ("imagenet" or a path) and what its numbers are (see KINDS)."""

    explain: tuple[str, ...] = ()
    labels: str | None = None
    kind: str | None = None


@dataclass(frozen=True)
class ServingSettings:
    """How the service treats a model; None: as the server's own options say.

    versions: what a folder offers: "latest" (the highest number), "all", a whole number n (the n highest) or a list of
    versions such as ["1", "3"]. max_batch_rows: rows of one run. queue_rows: rows that may wait before callers are
    refused. recipes: names of recipes to load at start. dynamic_batching: whether requests may share a run.
    """

    versions: str | int | tuple[str, ...] = "latest"
    max_batch_rows: int | None = None
    queue_rows: int | None = None
    recipes: tuple[str, ...] = ()
    dynamic_batching: bool | None = None


@dataclass(frozen=True)
class ModelSettings:
    """One model's settings. `defaults` is a recipe, checked where recipes are read; `files` is where all came from.

    features: names of a table's columns in the model's order, by input; "" for [input]. background: path of a file with
    rows of the inputs, for methods that compare with them.
    """

    input: PictureSettings | None = None
    inputs: Mapping[str, PictureSettings] = field(default_factory=dict)
    features: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    output: OutputSettings = OutputSettings()
    serving: ServingSettings = ServingSettings()
    defaults: Mapping[str, object] = field(default_factory=dict)
    licence: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    background: str | None = None
    files: tuple[Path, ...] = ()

    def columns(self, name: str, position: int = 0) -> tuple[str, ...]:
        """Names of the columns of one input: [inputs.NAME], else [input] for the first; () where they are not known."""
        return self.features.get(name, self.features.get("", ()) if position == 0 else ())

    @property
    def named_files(self) -> list[Path]:
        """The files that it names: the class names, the background."""
        labels = self.output.labels if self.output.labels != "imagenet" else None
        return [Path(name) for name in (labels, self.background) if name]

    def picture(self, name: str, position: int = 0) -> PictureSettings | None:
        """The settings of one input: [inputs.NAME], else [input] for the first."""
        return self.inputs.get(name, self.input if position == 0 else None)


def load_settings(path: Path, *overrides: Path) -> ModelSettings:
    """Read model.toml; each further file overrides it key by key, as a version's model.toml does its model's."""
    merged: dict[str, Any] = {}
    for file in (path, *overrides):
        merged = _merge(merged, _read(file))
    return _build(merged, (path, *overrides))


def _read(file: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file}: not valid TOML: {error}.") from error
    known = (*TEXTS, "input", "inputs", "output", "serving", "defaults", "licence")
    for key, value in table.items():
        if key not in known:
            raise UnknownName(f"table in {file}", key, known)
        if not isinstance(value, str if key in TEXTS else dict):
            raise UsageError(f"{file}: {key} must be a {'text' if key in TEXTS else 'table'}.")
    if "background" in table:
        table["background"] = str(file.parent / table["background"])
    labels = table.get("output", {}).get("labels")
    if isinstance(labels, str) and labels != "imagenet":
        table["output"]["labels"] = str(file.parent / labels)
    return table


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` wins, key by key; tables are merged, everything else replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _build(table: Mapping[str, Any], files: tuple[Path, ...]) -> ModelSettings:
    where = str(files[-1])
    named = table.get("inputs", {})
    for name, value in named.items():
        if not isinstance(value, dict):
            raise UsageError(f"{where}: write [inputs.NAME] for one input, [input] for the only one; found {name!r}.")
    tables = {"": table["input"]} if "input" in table else {}
    tables |= named
    places = {name: f"[{f'inputs.{name}' if name else 'input'}] of {where}" for name in tables}
    features = {name: _features(t["features"], places[name]) for name, t in tables.items() if "features" in t}
    keys = {name: {key: v for key, v in t.items() if key != "features"} for name, t in tables.items()}
    pictures = {n: picture_settings(t, places[n]) for n, t in keys.items() if t or n not in features}
    return ModelSettings(
        input=pictures.pop("", None),
        inputs=pictures,
        features=features,
        output=_output(table.get("output", {}), f"[output] of {where}"),
        serving=_serving(table.get("serving", {}), f"[serving] of {where}"),
        defaults=table.get("defaults", {}),
        licence=_licence(table.get("licence", {}), f"[licence] of {where}"),
        description=table.get("description", ""),
        background=table.get("background"),
        files=files,
    )


def _features(value: object, where: str) -> tuple[str, ...]:
    names = value if isinstance(value, list) and all(isinstance(name, str) and name for name in value) else []
    if not names or len(set(names)) < len(names):
        raise UsageError(f"{where}: features = {_shown(value)}; expected a list of column names, each once.")
    return tuple(names)


def _output(table: Mapping[str, Any], where: str) -> OutputSettings:
    for key in table:
        if key not in ("explain", "labels", "kind"):
            raise UnknownName(f"key in {where}", key, ("explain", "labels", "kind"))
    explain = table.get("explain", [])
    explain = [explain] if isinstance(explain, str) else explain
    if not isinstance(explain, list) or not all(isinstance(name, str) for name in explain):
        raise UsageError(f"{where}: explain = {explain!r}; expected the name of a tensor or a list of names.")
    labels, kind = table.get("labels"), table.get("kind")
    if labels is not None and not isinstance(labels, str):
        raise UsageError(f'{where}: labels = {labels!r}; expected a file name or "imagenet".')
    if kind is not None and kind not in KINDS:
        raise UnknownName(f"kind in {where}", str(kind), KINDS)
    return OutputSettings(tuple(explain), labels, kind)


def _serving(table: Mapping[str, Any], where: str) -> ServingSettings:
    known = [entry.name for entry in fields(ServingSettings)]
    for key in table:
        if key not in known:
            raise UnknownName(f"key in {where}", key, known)
    rows = {key: _rows(key, table[key], where) for key in ("max_batch_rows", "queue_rows") if key in table}
    recipes, together = table.get("recipes", []), table.get("dynamic_batching")
    if not isinstance(recipes, list) or not all(isinstance(name, str) and name for name in recipes):
        raise UsageError(f'{where}: recipes = {_shown(recipes)}; expected a list of names, such as ["lrp"].')
    if together is not None and not isinstance(together, bool):
        raise UsageError(f"{where}: dynamic_batching = {_shown(together)}; expected true or false.")
    return ServingSettings(
        _versions(table.get("versions", "latest"), where), recipes=tuple(recipes), dynamic_batching=together, **rows
    )


def _rows(key: str, value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{where}: {key} = {_shown(value)}; expected a whole number of rows, 1 or more.")
    return value


def _versions(value: object, where: str) -> str | int | tuple[str, ...]:
    if value in ("latest", "all"):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, list) and value and all(isinstance(v, str) and VERSION.fullmatch(v) for v in value):
        return tuple(value)
    raise UsageError(
        f'{where}: versions = {_shown(value)}; expected "latest", "all", how many of the newest (1 or more), or a list '
        f'of versions such as ["1", "3"].'
    )


def _shown(value: object) -> str:
    """A value as it stands in an error's line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _licence(table: Mapping[str, Any], where: str) -> dict[str, str]:
    for key, value in table.items():
        if key not in LICENCE_KEYS:
            raise UnknownName(f"key in {where}", key, LICENCE_KEYS)
        if not isinstance(value, str):
            raise UsageError(f"{where}: {key} must be a text.")
    return dict(table)
