"""How a photograph becomes a model's input: the keys of an [input] table, each checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from onnxplain.errors import UnknownName, UsageError

Channels = Literal["RGB", "BGR", "GRAY"]
Bounds = tuple[tuple[float, ...], tuple[float, ...]]

LAYOUT = re.compile(r"N?(C?(HW|WH)|(HW|WH)C)")  # N first if at all, C before or behind the sides, never between
INTERPOLATIONS = ("bilinear", "box", "nearest", "bicubic")


@dataclass(frozen=True)
class PictureSettings:
    """How a photograph becomes the model's input. The value fed is (value · scale − mean) / std, value in 0..255.

    layout: axes of the input in order, such as NCHW, NHWC, NWHC or NHW (grey, no channel axis). None: from the shape.
    size: (h, w) fed to the model. None: as declared by the model, and the picture's own where that is symbolic.
    resize: int: the shorter side, the longer in proportion, rounded; (h, w): exactly. None: so that `crop` fits.
    crop: "center" cuts `size` from the middle, "none" keeps all, (top, left, h, w) cuts that box: after `resize`,
        or, without it, from the original picture.
    mean, std: one number, or one per channel in the order of `channels`; unit: value · scale.
    bounds: lowest and highest value fed, per channel. None: what 0 and 255 become.
    multiple: sides the model leaves open are rounded to it.
    """

    layout: str | None = None
    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    crop: str | tuple[int, int, int, int] = "center"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: Channels | None = None
    bounds: Bounds | None = None
    multiple: int = 1

    def low_high(self) -> Bounds:
        """Lowest and highest value the model can be fed, one number per channel (or one for all of them)."""
        if self.bounds is not None:
            return self.bounds
        count = max(len(self.mean), len(self.std))
        means, stds = (values * (count // len(values)) for values in (self.mean, self.std))
        ends = [[(value * self.scale - m) / s for m, s in zip(means, stds, strict=True)] for value in (0, 255)]
        return tuple(map(min, *ends)), tuple(map(max, *ends))


def number(value: object) -> float:
    """3, 0.5 or the text "1/255"."""
    if isinstance(value, str) and "/" in value:
        above, _, below = value.partition("/")
        return float(above) / float(below)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    return float(value)


def numbers(value: object) -> tuple[float, ...]:
    """A number or a list of them, not empty."""
    values = tuple(number(entry) for entry in value) if isinstance(value, list | tuple) else (number(value),)
    if not values:
        raise ValueError
    return values


def picture_settings(table: Mapping[str, object], where: str) -> PictureSettings:
    """Check every key and value of an [input] table; `where` names it in errors."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _PICTURE:
            raise UnknownName(f"key in {where}", key, _PICTURE)
        parse, expected = _PICTURE[key]
        try:
            values[key] = parse(value)
        except (ValueError, TypeError, ZeroDivisionError):
            raise UsageError(f"{where}: {key} = {value!r}; expected {expected}.") from None
    settings = PictureSettings(**values)
    lengths = {len(settings.mean), len(settings.std)} - {1}
    if len(lengths) > 1 or 0.0 in settings.std:
        raise UsageError(f"{where}: mean {settings.mean} and std {settings.std} must have one length, std no zero.")
    return settings


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError
    return value


def _pair(value: object) -> tuple[int, int]:
    height, width = value if isinstance(value, list | tuple) else (value, value)
    return _whole(height), _whole(width)


def _resize(value: object) -> int | tuple[int, int]:
    return _pair(value) if isinstance(value, list | tuple) else _whole(value)


def _crop(value: object) -> str | tuple[int, int, int, int]:
    if isinstance(value, str):
        return _one_of("center", "none")(value)
    if not isinstance(value, list | tuple) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
        raise ValueError
    top, left, height, width = value
    if min(top, left) < 0:
        raise ValueError
    return top, left, _whole(height), _whole(width)


def _bounds(value: object) -> Bounds:
    if not isinstance(value, list | tuple):
        raise ValueError
    low, high = (numbers(end) for end in value)
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise ValueError
    return low, high


def _layout(value: object) -> str:
    if not isinstance(value, str) or not LAYOUT.fullmatch(value.upper()):
        raise ValueError
    return value.upper()


def _one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return parse


_PICTURE: dict[str, tuple[Callable[[object], Any], str]] = {
    "layout": (
        _layout,
        "the letters of the input's axes in order, N first, C before or behind H and W: NCHW, NHWC, CHW, NHW …",
    ),
    "size": (_pair, "a whole number or [height, width]"),
    "resize": (_resize, "a whole number (the shorter side) or [height, width]"),
    "interpolation": (_one_of(*INTERPOLATIONS), "one of " + ", ".join(INTERPOLATIONS)),
    "crop": (_crop, '"center", "none" or [top, left, height, width]'),
    "scale": (number, 'a number or a fraction such as "1/255"'),
    "mean": (numbers, "a number or one per channel"),
    "std": (numbers, "a number or one per channel"),
    "channels": (_one_of("RGB", "BGR", "GRAY"), "RGB, BGR or GRAY"),
    "bounds": (_bounds, "[low, high], each a number or one per channel, low below high"),
    "multiple": (_whole, "a whole number"),
}
