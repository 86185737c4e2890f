"""Preprocessing by name, by command-line options, and, with neither, by the shape of the model's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from onnxplain.errors import InputError
from onnxplain.inputs.preparation import PictureSettings, picture_settings
from onnxplain.registry import Registry

Shape = Sequence[int | str | None]

PRESETS: Registry[PictureSettings] = Registry("preprocessing")
PRESETS.add(
    "imagenet",
    PictureSettings(
        size=(224, 224),
        resize=256,
        scale=1 / 255,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        channels="RGB",
    ),
)
PRESETS.add(
    "imagenet_bgr_caffe",
    PictureSettings(size=(224, 224), resize=256, mean=(104.0, 117.0, 123.0), channels="BGR"),
)
PRESETS.add("unit", PictureSettings(scale=1 / 255))
PRESETS.add("symmetric", PictureSettings(mean=(127.5,), std=(127.5,)))
PRESETS.add("none", PictureSettings())


def guess(shape: Shape, dtype: str = "float32", name: str = "input") -> tuple[PictureSettings, str]:
    """Layout and size from the input's declared shape, values 0..1 (0..255 for integers), and a sentence saying so."""
    layout = guess_layout(shape, name)
    scale = 1.0 if "int" in dtype else 1 / 255
    height, width = (shape[layout.index(axis)] for axis in "HW")
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    fed = f"{height}x{width}" if size else "the picture's own size where the model leaves it open"
    note = (
        f"{name}: no preprocessing given, so guessed from shape ({', '.join(map(str, shape))}): {layout}, {fed}, "
        f"values 0..{'1' if scale < 1 else '255'}. Say otherwise with --preprocess, --mean/--std or a model.toml."
    )
    return PictureSettings(layout=layout, size=size, scale=scale), note


def guess_layout(shape: Shape, name: str = "input") -> str:
    """NCHW if axis 1 has 1, 3 or 4 channels, NHWC if the last has; without a batch axis CHW or HWC (3 or 4)."""
    if len(shape) == 4:
        if shape[1] in (1, 3, 4):
            return "NCHW"
        if shape[3] in (1, 3, 4):
            return "NHWC"
        if not any(isinstance(side, int) for side in shape[1:]):
            return "NCHW"
    if len(shape) == 3:
        if shape[0] in (3, 4):
            return "CHW"
        if shape[2] in (3, 4):
            return "HWC"
    raise InputError(
        f"input {name!r} of shape ({', '.join(map(str, shape))}) does not look like a picture. "
        f"Give an array (.npy, .npz, .csv), or say how with --layout or a model.toml."
    )


def from_options(
    shape: Shape,
    *,
    preprocess: str | None = None,
    layout: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scale: float | str | None = None,
    base: PictureSettings | None = None,
    dtype: str = "float32",
    name: str = "input",
) -> tuple[PictureSettings, str | None]:
    """The settings the command line asks for, on top of `preprocess`, else of `base` (model.toml), else of a guess.

    Without a scale, --mean and --std below or at 1 in size are taken to mean values 0..1, larger ones 0..255.
    Returns the settings and, where something was guessed, the sentence that says so.
    """
    given: dict[str, object] = {"layout": layout, "mean": mean, "std": std, "scale": scale}
    options = {key: value for key, value in given.items() if value is not None}
    if preprocess is not None:
        start, note = _fitted(PRESETS[preprocess], shape, layout, name), None
    elif base is not None:
        start, note = base, None
    elif {"mean", "std"} & options.keys() or layout is not None:
        largest = max(map(abs, (*(mean or ()), *(std or ()))), default=1.0)
        start = PictureSettings(scale=1 / 255 if largest <= 1 and "int" not in dtype else 1.0)
        note = f"{name}: no --scale given, so values are 0..{'1' if start.scale < 1 else '255'} before mean and std."
        note = None if scale is not None else note
    else:
        start, note = guess(shape, dtype, name)
        note = None if scale is not None else note
    return replace(start, **_checked(options)), note


def _checked(options: dict[str, object]) -> dict[str, Any]:
    """The options as PictureSettings has them: text parsed, lengths compared."""
    settings = picture_settings(options, "the options")
    return {key: getattr(settings, key) for key in options}


def _fitted(preset: PictureSettings, shape: Shape, layout: str | None, name: str) -> PictureSettings:
    """The preset for a model that declares another size: 256 and 224 keep their proportion, 299 gets 342."""
    if preset.size is None:
        return preset
    layout = (layout or guess_layout(shape, name)).upper()
    height, width = (shape[layout.index(axis)] if axis in layout[: len(shape)] else None for axis in "HW")
    if not isinstance(height, int) or not isinstance(width, int):
        return preset
    if not isinstance(preset.resize, int):
        return replace(preset, size=(height, width))
    shorter = round(preset.resize * min(height, width) / min(preset.size))
    return replace(preset, size=(height, width), resize=shorter if height == width else None)
