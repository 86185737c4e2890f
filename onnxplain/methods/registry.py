"""The registry of methods: a name users know, what it is made of, who says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onnxplain.errors import UnknownName
from onnxplain.registry import Registry


@dataclass(frozen=True)
class Form:
    """One way of running a one-pass method.

    start, finish: names in `rules.endpoints`. passes: for each pass over the graph, what it does to the rule of the
    last linear node ("" leaves it alone).
    """

    start: str
    finish: str
    passes: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Method:
    """A method that is wholly in the compiled graph.

    composite: the one it takes unless told otherwise. forms: the first is the default. channels: how a picture's
    channels are reduced to a map. signed: whether the map has two signs.
    """

    name: str
    doc: str
    cite: str
    composite: str
    forms: Mapping[str, Form]
    channels: Literal["sum", "max"] = "sum"
    signed: bool = True

    def form(self, name: str | None = None) -> Form:
        """A form by name; the default one for None."""
        if name is None:
            return next(iter(self.forms.values()))
        if name not in self.forms:
            raise UnknownName(f"form of {self.name}", name, self.forms)
        return self.forms[name]


METHODS: Registry[Method] = Registry("method")
