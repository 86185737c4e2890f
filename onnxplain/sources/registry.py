"""The registry of model registries: the scheme of a `--registry` address -> the source that answers for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from onnxplain.errors import UsageError
from onnxplain.registry import Registry
from onnxplain.sources.remembered import RememberingSource
from onnxplain.sources.source import ModelSource

Opening = TypeVar("Opening", bound=Callable[[str, Path], ModelSource])


@dataclass(frozen=True)
class RegistryKind:
    """open: (address, folder for downloads) -> its source. example: an address as help and errors write it."""

    open: Callable[[str, Path], ModelSource]
    example: str


REGISTRIES: Registry[RegistryKind] = Registry("scheme of a registry's address")


def model_registry(*schemes: str, example: str) -> Callable[[Opening], Opening]:
    """Register a class or function that opens addresses of these schemes. It raises UsageError for a wrong one."""

    def register(opening: Opening) -> Opening:
        for scheme in schemes:
            REGISTRIES.add(scheme, RegistryKind(opening, example))
        return opening

    return register


def examples() -> list[str]:
    """An address of each kind."""
    return list(dict.fromkeys(kind.example for kind in REGISTRIES.values()))


def from_address(address: str, cache: Path) -> RememberingSource:
    """The source of a registry's address. cache: folder for downloads. Raises UsageError."""
    scheme = urlsplit(address).scheme
    if scheme not in REGISTRIES:
        raise UsageError(f"{scheme or address[:40]!r} is no registry: write {' or '.join(examples())}.")
    return RememberingSource(REGISTRIES[scheme].open(address, cache), address, cache)
