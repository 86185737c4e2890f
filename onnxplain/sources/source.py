"""What every source of models offers to the service: which releases there are now, and the files of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onnxplain.sources.resolved import ResolvedModel


@dataclass(frozen=True)
class Release:
    """One version of one model that is to be served.

    version: a whole number in decimal digits. fingerprint: another text whenever the files are others. aliases: names
    that point to this version now, without "@".
    """

    name: str
    version: str
    fingerprint: str
    aliases: tuple[str, ...] = ()


class ModelSource(Protocol):
    """A place that models come from. Both methods block; the service calls them from threads, never two at a time."""

    name: str  # as the repository index shows it

    @property
    def problems(self) -> dict[str, str]:
        """What is there but cannot be served -> why, as of the last look."""
        ...

    def releases(self) -> Sequence[Release]:
        """What is to be served now, after the source's version policy. Raises InputError or Unavailable."""
        ...

    def fetch(self, release: Release) -> ResolvedModel:
        """The files of a release on this machine. Raises InputError where they are missing, unsafe or corrupt."""
        ...
