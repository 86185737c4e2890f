"""The names of classes: read from a file, found by a user's words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from onnxplain.errors import InputError, UnknownName, UsageError
from onnxplain.inputs.paths import read_text

Labels = Sequence[str]

LISTED = 12  # matches named in an error before "and N more"


def load_labels(source: str | Path) -> list[str]:
    """Class names in order of index. source: "imagenet", a text file (one a line), a JSON list or {index: name}."""
    if str(source) == "imagenet":
        text = resources.files("onnxplain.inputs").joinpath("imagenet1k.json").read_text("utf-8")
        return list(json.loads(text))
    path = Path(source)
    text = read_text(path)
    labels = _json(text, path) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
    while labels and not labels[-1]:
        labels.pop()  # a blank line at the end is no class
    if not labels:
        raise InputError(f"{path}: holds no labels.")
    return labels


def label(index: int, labels: Labels) -> str:
    """The name of a class, or "class 7" where there is none."""
    return labels[index] if index < len(labels) and labels[index] else f"class {index}"


def find(name: str, labels: Labels) -> int:
    """The index of the one class called `name`: a whole label, else the only one that holds it as whole words.

    Case is ignored. Several: a UsageError that lists their indices; none: UnknownName.
    """
    wanted = name.strip().casefold()
    whole = [i for i, text in enumerate(labels) if text.casefold() == wanted]
    words = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)")
    found = whole or [i for i, text in enumerate(labels) if wanted and words.search(text.casefold())]
    if not found:
        raise UnknownName("class", name, labels)
    if len(found) > 1:
        listed = ", ".join(f"{i} {labels[i]}" for i in found[:LISTED])
        more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
        raise UsageError(f"{name!r} is the name of {len(found)} classes: {listed}{more}. Give one index or whole name.")
    return found[0]


def _json(text: str, path: Path) -> list[str]:
    """A list of names, {"0": name} or Keras' {"0": [id, name]}."""
    try:
        data = json.loads(text)
        pairs = enumerate(data) if isinstance(data, list) else ((int(key), value) for key, value in data.items())
        names = {index: value[-1] if isinstance(value, list) else value for index, value in pairs}
        if not all(isinstance(name, str) for name in names.values()) or min(names, default=0) < 0:
            raise ValueError("a name is not a text, or an index below 0")
    except (ValueError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(f'{path}: expected a JSON list of names or {{"0": "name", …}} ({error}).') from error
    if max(names, default=0) > 10 * len(names) + 1000:
        raise InputError(f"{path}: index {max(names)} for {len(names)} names. Number the classes from 0.")
    return [names.get(index, "") for index in range(max(names, default=-1) + 1)]
