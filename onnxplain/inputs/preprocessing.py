"""What a model's settings and the user's options say together of its inputs and classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxplain.errors import UnknownName, UsageError
from onnxplain.inputs.background import Background
from onnxplain.inputs.labels import load_labels
from onnxplain.inputs.loading import load
from onnxplain.inputs.preparation import PictureSettings
from onnxplain.inputs.presets import from_options
from onnxplain.inputs.settings import ModelSettings
from onnxplain.inputs.specs import InputSpec


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become inputs and classes get names: model.toml, under what the command line says."""

    settings: ModelSettings
    options: dict[str, Any] = field(default_factory=dict)
    labels_option: str | None = None
    background_files: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        settings: ModelSettings,
        preprocess: str | None = None,
        layout: str | None = None,
        mean: str | None = None,
        std: str | None = None,
        scale: str | None = None,
        labels: str | None = None,
        background: Sequence[str] = (),
    ) -> Preprocessing:
        """From the command line's words: numbers are separated by commas."""
        options = {
            "preprocess": preprocess,
            "layout": layout,
            "mean": _numbers("mean", mean),
            "std": _numbers("std", std),
            "scale": scale,
        }
        return cls(settings, options, labels, tuple(background))

    def of_input(self, spec: InputSpec, position: int) -> tuple[PictureSettings | None, str | None]:
        """Settings of one input, and what was guessed."""
        base = self.settings.picture(spec.name, position)
        if spec.shape is None:
            return base, None
        return from_options(spec.shape, base=base, dtype=spec.dtype, name=spec.name, **self.options)

    def columns(self, specs: Sequence[InputSpec]) -> dict[str, tuple[str, ...]]:
        """Names of the columns of inputs that are tables, where model.toml says them."""
        found = {spec.name: self.settings.columns(spec.name, n) for n, spec in enumerate(specs)}
        return {name: columns for name, columns in found.items() if columns}

    def background(self, specs: Sequence[InputSpec]) -> Background | None:
        """The rows that methods compare with, read from their files; None where none are named. Raises InputError."""
        files = self.background_files or ((self.settings.background,) if self.settings.background else ())
        if not files:
            return None
        columns = self.columns(specs)
        return Background.of(load(files, specs, self.of_input, columns).feeds, specs, columns)

    def bounds(self, specs: Sequence[InputSpec]) -> tuple[list[float], list[float]] | None:
        """(lows, highs) of a single picture input in model units, where model.toml or the options say them.

        Raises UsageError for bounds that nothing can be told of, UnknownName for tables of inputs that there are not.
        """
        for name in {*self.settings.inputs, *self.settings.features} - {"", *(spec.name for spec in specs)}:
            raise UnknownName("input ([inputs.…] of model.toml)", name, [spec.name for spec in specs])
        pictures = {spec.name: self.settings.picture(spec.name, n) for n, spec in enumerate(specs)}
        bounded = [name for name, picture in pictures.items() if picture is not None and picture.bounds is not None]
        if bounded and len(specs) != 1:
            raise UsageError(
                f"model.toml gives bounds for {bounded[0]!r}, and box takes those of an only input; this model has "
                f"{len(specs)}: {', '.join(pictures)}. Leave them out, and give --rule first=box(low=…,high=…)."
            )
        if len(specs) != 1 or not (self.settings.picture(specs[0].name) or any(self.options.values())):
            return None
        settings, _ = self.of_input(specs[0], 0)
        if settings is None:
            return None
        lows, highs = settings.low_high()
        return list(lows), list(highs)

    def labels(self) -> list[str]:
        """Class names, [] where none are known."""
        source = self.labels_option or self.settings.output.labels
        return list(load_labels(source)) if source else []


def _numbers(name: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--{name} {text}: numbers separated by commas are wanted, such as 0.485,0.456,0.406."
        ) from None
