"""A registry: name -> entry. Duplicates fail at import, unknown names fail with near matches."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from onnxplain.errors import UnknownName

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """What is registered under which name, in order of registration.

    what: the noun used in messages, e.g. "method".
    """

    def __init__(self, what: str):
        self.what = what
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> Entry:
        """Register `entry`; a second entry of the same name is a programming error."""
        if name in self._entries:
            raise ValueError(f"{self.what} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise UnknownName(self.what, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def import_modules(package: str) -> None:
    """Import every module of a package and of those in it, so that what they register is found by lying there."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        name = f"{package}.{module.name}"
        importlib.import_module(name)
        if module.ispkg:
            import_modules(name)
