"""What a client sends to be explained, made ready as the command line makes its files ready: pictures and arrays."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from onnxplain.client.requests import ModelInfo
from onnxplain.errors import InputError
from onnxplain.inputs import Loaded
from onnxplain.render import safe_name
from onnxplain.server.http.body import JSON_SHARE
from onnxplain.server.http.errors import TooLarge, UnknownMediaType

PIXELS = 50_000_000  # of a picture: 150 MB of memory while it is read
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # and none of those whose readers start other programs, as EPS does
STARTS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"BM": ".bmp", b"RIFF": ".webp", b"\x93NUMPY": ".npy"}


@dataclass(frozen=True)
class Upload:
    """A file's content. suffix: of its type; name: as the client calls it, "" where it does not."""

    content: bytes
    suffix: str
    name: str = ""

    def loaded(self, info: ModelInfo, most: int) -> Loaded:
        """The model's feeds; blocks. Raises InputError for what is no picture or table of this model."""
        if self.suffix == ".csv" and len(self.content) > most // JSON_SHARE:
            raise TooLarge(f"{len(self.content)} bytes of csv, at most {most // JSON_SHARE} are taken. Send .npy.")
        if self.suffix not in (".csv", ".npy"):
            _require_small(self.content)
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


def _require_small(content: bytes) -> None:
    """Look at a picture's head only. Raises InputError for one that would fill the memory, or is none."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = "not a picture" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
        raise InputError(f"the body cannot be read as a picture ({why}). Send png, jpg, bmp or webp.") from error
    if width * height > PIXELS:
        raise TooLarge(f"the picture has {width} x {height} pixels, at most {PIXELS} are taken. Send a smaller one.")
