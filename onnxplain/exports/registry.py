"""The registry of export targets: the option of `onnxplain export` that chooses one, its own options, what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnxplain.explainer import Explainer
from onnxplain.registry import Registry
from onnxplain.sources import ResolvedModel

Taken = Literal["recipe", "request"]


@dataclass(frozen=True)
class ExportOption:
    """An option of the command, by its Python name. kind: str, bool for a flag, Path for a folder."""

    name: str
    help: str
    kind: type[str] | type[bool] | type[Path] = str
    metavar: str | None = None
    default: str | None = None

    @property
    def flag(self) -> str:
        """As it is written."""
        return f"--{self.name.replace('_', '-')}"

    def __str__(self) -> str:
        return f"{self.flag} {self.metavar}" if self.metavar else self.flag


@dataclass(frozen=True)
class ExportJob:
    """What is exported: the model with its explanation, and where it lay, with its name and settings."""

    explainer: Explainer
    resolved: ResolvedModel


@dataclass(frozen=True)
class Exported:
    """What is to be said of it: text is the command's output, notes are remarks beside it."""

    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportTarget:
    """Another system.

    option: chooses it. options: its own. takes: which of the command's other options say something to it, those of the
    recipe and those of the request; otherwise: why, where one is given that does not. check: called with `options`
    before the model is loaded. write: (job, value of option, options by name) -> Exported. places: it takes any number
    of models, and in place of a job what the user called them.
    """

    option: ExportOption
    write: Callable[..., Exported]
    options: tuple[ExportOption, ...] = ()
    takes: frozenset[Taken] = frozenset()
    otherwise: str = ""
    check: Callable[..., None] | None = None
    places: bool = False


EXPORTS: Registry[ExportTarget] = Registry("export target")


def export_target(
    option: ExportOption,
    *,
    options: Iterable[ExportOption] = (),
    takes: Iterable[Taken] = (),
    otherwise: str = "",
    check: Callable[..., None] | None = None,
    places: bool = False,
) -> Callable[[Callable[..., Exported]], Callable[..., Exported]]:
    """Register what writes for a system: `function(job, value, *, option=…) -> Exported`, see `ExportTarget`."""

    def register(function: Callable[..., Exported]) -> Callable[..., Exported]:
        about = (tuple(options), frozenset(takes), otherwise, check, places)
        EXPORTS.add(option.name, ExportTarget(option, function, *about))
        return function

    return register


def own_options() -> dict[str, ExportOption]:
    """The options of all targets by name; those who share one say the same of it."""
    found: dict[str, ExportOption] = {}
    for target in EXPORTS.values():
        for option in target.options:
            if found.setdefault(option.name, option) != option:
                raise ValueError(f"{target.option.flag} and another target each have their own {option.flag}")
    return found


def values_of(target: ExportTarget, given: dict[str, Any]) -> dict[str, Any]:
    """The values of a target's own options."""
    return {option.name: given[option.name] for option in target.options}
