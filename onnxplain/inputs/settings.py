"""model.toml: how a model's inputs are prepared, what its output means, how it is explained by default."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxplain.errors import InputError, UnknownName, UsageError
from onnxplain.inputs.paths import read_text
from onnxplain.inputs.preparation import PictureSettings, picture_settings

KINDS = ("classification", "regression", "sigmoid", "dense")
LICENCE_KEYS = ("name", "source", "attribution", "url", "note")


@dataclass(frozen=True)
class OutputSettings:
    """What is explained, the names of its classes ("imagenet" or a path) and what its numbers are (see KINDS)."""

    explain: tuple[str, ...] = ()
    labels: str | None = None
    kind: str | None = None


@dataclass(frozen=True)
class ModelSettings:
    """One model's settings. `defaults` is a recipe, checked where recipes are read; `files` is where all came from."""

    input: PictureSettings | None = None
    inputs: Mapping[str, PictureSettings] = field(default_factory=dict)
    output: OutputSettings = OutputSettings()
    defaults: Mapping[str, object] = field(default_factory=dict)
    licence: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    files: tuple[Path, ...] = ()

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
    known = ("description", "input", "inputs", "output", "defaults", "licence")
    for key, value in table.items():
        if key not in known:
            raise UnknownName(f"table in {file}", key, known)
        if isinstance(value, dict) == (key == "description"):
            raise UsageError(f"{file}: {key} must be a {'text' if key == 'description' else 'table'}.")
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
    return ModelSettings(
        input=picture_settings(table["input"], f"[input] of {where}") if "input" in table else None,
        inputs={name: picture_settings(value, f"[inputs.{name}] of {where}") for name, value in named.items()},
        output=_output(table.get("output", {}), f"[output] of {where}"),
        defaults=table.get("defaults", {}),
        licence=_licence(table.get("licence", {}), f"[licence] of {where}"),
        description=table.get("description", ""),
        files=files,
    )


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


def _licence(table: Mapping[str, Any], where: str) -> dict[str, str]:
    for key, value in table.items():
        if key not in LICENCE_KEYS:
            raise UnknownName(f"key in {where}", key, LICENCE_KEYS)
        if not isinstance(value, str):
            raise UsageError(f"{where}: {key} must be a text.")
    return dict(table)
