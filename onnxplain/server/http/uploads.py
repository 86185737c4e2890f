"""What a client sends to be explained, made ready as the command line makes its files ready: pictures and arrays."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from onnxplain.client.requests import ModelInfo
from onnxplain.errors import InputError
from onnxplain.inputs import Loaded
from onnxplain.render import safe_name
from onnxplain.server.http.body import JSON_GROWTH, JSON_SHARE
from onnxplain.server.http.errors import TooLarge, UnknownMediaType

PIXELS = 50_000_000  # of a picture
PIXEL_BYTES = 8  # of memory while it is read: as it is, and turned, with or without transparency
NUMBER_BYTES = 12  # of memory for each number of an array: as it is, and made ready
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # and none of those whose readers start other programs, as EPS does
STARTS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"BM": ".bmp", b"RIFF": ".webp", b"\x93NUMPY": ".npy"}


@dataclass(frozen=True)
class Upload:
    """A file's content. suffix: of its type; name: as the client calls it, "" where it does not."""

    content: bytes
    suffix: str
    name: str = ""

    def nbytes_open(self) -> int:
        """Memory that reading it takes, about. Raises InputError for a picture beyond the limit, or none."""
        if self.suffix == ".csv":
            return JSON_GROWTH * len(self.content)
        if self.suffix == ".npy":
            return len(self.content) + NUMBER_BYTES * _numbers(self.content)
        return PIXEL_BYTES * _pixels(self.content)

    def loaded(self, info: ModelInfo, most: int) -> Loaded:
        """The model's feeds; blocks. Raises InputError for what is no picture or table of this model."""
        if self.suffix == ".csv" and len(self.content) > most // JSON_SHARE:
            raise TooLarge(f"{len(self.content)} bytes of csv, at most {most // JSON_SHARE} are taken. Send .npy.")
        with tempfile.TemporaryDirectory(prefix="onnxplain-") as folder:  # files are read in one place only
            stem = safe_name(Path(self.name).stem)[:80] if self.name else "upload"
            path = Path(folder, f"{stem or 'upload'}{self.suffix}")
            path.write_bytes(self.content)
            loaded = info.loaded(path)
        loaded.files[:] = [Path(path.name)]
        return loaded


def upload(content: bytes, media_type: str = "", name: str = "") -> Upload:
    """A file by what it begins with; of a table, which has no such mark, by its type or name."""
    if not content:
        raise InputError("the body is empty: send a picture, or JSON.")
    suffix = next((found for start, found in STARTS.items() if content.startswith(start)), "")
    if not suffix and (media_type == "text/csv" or name.lower().endswith(".csv")):
        suffix = ".csv"
    if not suffix:
        raise UnknownMediaType(
            f"the body ({media_type[:60] or 'of no type'}) is no picture (png, jpg, bmp, webp), .npy, text/csv, "
            "application/json or multipart/form-data."
        ).at("content-type")
    return Upload(content, suffix, name)


def _numbers(content: bytes) -> int:
    """Of an array, by its head; one that says nothing has as many as bytes."""
    head = io.BytesIO(content)
    try:
        major, _ = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        return len(content) // max(1, read(head)[2].itemsize)
    except (ValueError, EOFError, SyntaxError, TypeError):
        return len(content)  # whoever reads it says what is wrong


def _pixels(content: bytes) -> int:
    """Of a picture, by its head. Raises InputError for too many, or for what is no picture."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = "not a picture" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
        raise InputError(f"the body cannot be read as a picture ({why}). Send png, jpg, bmp or webp.") from error
    if width * height > PIXELS:
        raise TooLarge(f"the picture has {width} x {height} pixels, at most {PIXELS} are taken. Send a smaller one.")
    return width * height
