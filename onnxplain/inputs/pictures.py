"""A picture file becomes the array a model is fed, and the picture exactly as the model sees it."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from onnxplain.errors import InputError
from onnxplain.inputs.paths import read_bytes
from onnxplain.inputs.preparation import PictureSettings
from onnxplain.inputs.presets import Shape, guess_layout

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_METHODS = {
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
    "bicubic": Image.Resampling.BICUBIC,
}
Side = int | None


@dataclass(frozen=True)
class Prepared:
    """One picture, ready.

    array: float32 in the model's layout, batch 1. picture: uint8 (h, w, 3) RGB, cropped and resized, not normalised.
    """

    array: NDArray[np.float32]
    picture: NDArray[np.uint8]
    notes: tuple[str, ...] = ()


def prepare(path: str | Path, settings: PictureSettings, shape: Shape, name: str = "input") -> Prepared:
    """Read, turn upright, resize, crop and normalise one picture for an input declared as `shape`."""
    path = Path(path)
    layout = _layout(settings, shape, name)
    size = _size(settings, shape, layout, name)
    image, notes = open_rgb(path)
    image = _fit(image, settings, size, path)
    values, picture = _channels(image, settings, shape, layout, name)
    for key, per_channel in (("mean", settings.mean), ("std", settings.std)):
        if len(per_channel) not in (1, values.shape[-1]):
            raise InputError(
                f"input {name!r} has {values.shape[-1]} channels, but {key} has {len(per_channel)} numbers: "
                f"{', '.join(f'{number:g}' for number in per_channel)}. Give one, or one per channel."
            )
    scaled = values.astype(np.float32) * np.float32(settings.scale)
    fed = (scaled - np.asarray(settings.mean, np.float32)) / np.asarray(settings.std, np.float32)
    fed = fed if "C" in layout else fed[..., 0]
    axes = layout.replace("N", "")
    array = fed.transpose(["HWC".index(axis) for axis in axes])
    array = array[None] if "N" in layout else array
    return Prepared(np.ascontiguousarray(array, np.float32), picture, notes)


def open_rgb(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    """Any picture as upright 8-bit RGB: EXIF turned, palette resolved, alpha laid over white, 16 bits reduced to 8."""
    try:
        with Image.open(io.BytesIO(read_bytes(path))) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        why = "not a picture" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
        raise InputError(f"{path}: cannot be read as a picture ({why}). Give a png, jpg, bmp or webp file.") from error
    notes = []
    if upright.mode.startswith("I"):
        values = np.asarray(upright).astype(np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{path}: grey values {values.min():g}..{values.max():g}, beyond 16 bits. Save 8 bits.")
        upright = Image.fromarray(np.rint(values / 257).astype(np.uint8))
        notes.append(f"{path.name}: 16 bits per pixel reduced to 8.")
    elif upright.mode == "F":
        raise InputError(f"{path}: floating point pixels have no common scale. Save 8 bits, or give an .npy array.")
    if "A" in upright.mode or "a" in upright.mode or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        notes.append(f"{path.name}: transparent pixels are laid over white.")
    return upright.convert("RGB"), tuple(notes)


def _layout(settings: PictureSettings, shape: Shape, name: str) -> str:
    layout = settings.layout or guess_layout(shape, name)
    if len(layout) != len(shape):
        raise InputError(
            f"input {name!r} has {len(shape)} axes ({', '.join(map(str, shape))}), but layout {layout} names "
            f"{len(layout)}. Give the layout with one letter per axis."
        )
    return layout


def _size(settings: PictureSettings, shape: Shape, layout: str, name: str) -> tuple[Side, Side]:
    """(h, w) to feed; None where neither the model nor the settings say."""
    sides: list[Side] = []
    for axis, wanted in zip("HW", settings.size or (None, None), strict=True):
        declared = shape[layout.index(axis)]
        if isinstance(declared, int) and wanted not in (None, declared):
            raise InputError(
                f"input {name!r} is declared {axis} = {declared} ({layout}), but the settings say {wanted}. "
                f"Correct size or layout."
            )
        sides.append(declared if isinstance(declared, int) else wanted)
    return sides[0], sides[1]


def _fit(image: Image.Image, settings: PictureSettings, size: tuple[Side, Side], path: Path) -> Image.Image:
    """Resize, then crop; a box without a resize is cut first. Sides left open are rounded to `multiple`."""
    crop, resize = settings.crop, settings.resize
    if isinstance(crop, tuple) and resize is None:
        image = _cut(image, crop, path)
    image = _resized(image, _resize_to(image, settings, size), settings)
    if isinstance(crop, tuple) and resize is not None:
        image = _cut(image, crop, path)
    height, width = (
        side if side is not None else max(1, round(have / settings.multiple)) * settings.multiple
        for side, have in zip(size, (image.height, image.width), strict=True)
    )
    if crop == "center" and None not in size:
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)  # as torchvision rounds
        return _cut(image, (top, left, height, width), path)
    if resize is not None and None not in size and (image.height, image.width) != (height, width):
        raise InputError(
            f"{path}: resize and crop give {image.height}x{image.width}, the model takes {height}x{width}. "
            f"Correct resize or crop in the settings."
        )
    return _resized(image, (height, width), settings)


def _resize_to(image: Image.Image, settings: PictureSettings, size: tuple[Side, Side]) -> tuple[int, int]:
    """(h, w) before the crop."""
    height, width = image.height, image.width
    if isinstance(settings.resize, tuple):
        return settings.resize
    if isinstance(settings.resize, int):
        return _cover(height, width, settings.resize, settings.resize)
    match size:
        case (int(tall), int(wide)):
            return _cover(height, width, tall, wide) if settings.crop == "center" else (tall, wide)
        case (int(tall), None):
            return tall, max(1, round(width * tall / height))
        case (None, int(wide)):
            return max(1, round(height * wide / width)), wide
    return height, width


def _cover(height: int, width: int, least_height: int, least_width: int) -> tuple[int, int]:
    """The smallest size of this proportion with both sides at least as asked. torchvision rounds down instead."""
    if least_height * width >= least_width * height:
        return least_height, max(least_width, round(least_height * width / height))
    return max(least_height, round(least_width * height / width)), least_width


def _resized(image: Image.Image, size: tuple[int, int], settings: PictureSettings) -> Image.Image:
    if (image.height, image.width) == size:
        return image
    return image.resize((size[1], size[0]), _METHODS[settings.interpolation])


def _cut(image: Image.Image, box: tuple[int, int, int, int], path: Path) -> Image.Image:
    top, left, height, width = box
    if top < 0 or left < 0 or top + height > image.height or left + width > image.width:
        raise InputError(
            f"{path}: cannot cut {height}x{width} at ({top}, {left}) from {image.height}x{image.width}. "
            f"Correct crop, or give a larger resize."
        )
    return image.crop((left, top, left + width, top + height))


def _channels(
    image: Image.Image, settings: PictureSettings, shape: Shape, layout: str, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The values fed (h, w, c), in the order of `channels`, and the same as an RGB picture."""
    declared = shape[layout.index("C")] if "C" in layout else 1
    channels = settings.channels or ("GRAY" if declared == 1 else "RGB")
    count = 1 if channels == "GRAY" else 3
    if isinstance(declared, int) and declared != count:
        raise InputError(
            f"input {name!r} takes {declared} channel(s) in layout {layout}, but channels = {channels} gives {count}. "
            f"Correct layout or channels, or give an .npy array."
        )
    seen = image.convert("L").convert("RGB") if channels == "GRAY" else image
    picture = np.array(seen, np.uint8)
    values = {"GRAY": picture[..., :1], "RGB": picture, "BGR": picture[..., ::-1]}[channels]
    return values, picture
