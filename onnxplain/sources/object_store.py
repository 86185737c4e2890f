"""An object store, a share or a folder as fsspec reads it: what lies below an address, and copies of it."""

from __future__ import annotations

import base64
import contextlib
import datetime
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from onnxplain.errors import InputError, OnnxplainError, Unavailable, UsageError
from onnxplain.sources.deadline import within
from onnxplain.sources.download import in_time, one_line, pieces_of, write

Answer = TypeVar("Answer")
LISTED = 200_000  # files below one address
PIECE = 16 * 2**20  # bytes of one request
SECONDS = 60.0  # for one listing, and for each piece
PACKAGES = {"s3": "onnxplain[s3]", "gs": "onnxplain[gs]", "az": "onnxplain[az]", "abfs": "onnxplain[az]"}
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL where it is not Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and _KEY",
    "abfs": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and _KEY",
}
TAGS = ("generation", "ETag", "etag")  # say that an object is another one; else its time, size and inode do
TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class StoredFile:
    """One file. path: below the store's address. mark: another text when the file is another. md5: in hex, or "".

    modified: seconds since 1970 by the store's clock; None where it does not say. kind: "file", or what is no file.
    """

    path: str
    size: int
    mark: str
    modified: float | None
    md5: str = ""
    kind: str = "file"


class ObjectStore:
    """What lies below an address. Every error is ours, in one line, and every call ends in bounded time."""

    def __init__(self, address: str, seconds: float = SECONDS):
        self.address, self.scheme = address.rstrip("/"), address.partition(":")[0]
        self._seconds = seconds
        self._system: Any = None
        self._root = ""

    def list(self, below: str = "") -> dict[str, StoredFile]:
        """Every file by its path, or those of one folder. Raises InputError for too many."""
        found: Mapping[str, Mapping[str, Any]] = self._call(lambda: self._find(below))
        if len(found) > LISTED:
            raise InputError(f"{self.address}: {len(found)} files; a model repository has {LISTED} at most.")
        prefix = f"{self._root}/"
        files = {}
        for key, info in found.items():
            name = key.removeprefix(prefix)
            if info.get("type") == "directory" or key.endswith("/") or name == key:
                continue  # a "folder" is an empty object in some stores
            files[name] = _stored(name, info)
        return files

    def copy(self, file: StoredFile, target: Path, until: float = math.inf) -> None:
        """Its content into a new file, until time.monotonic() says so; then Unavailable.

        Raises InputError where its size or sum is another than was listed.
        """
        stream = self._call(lambda: self._system.open(f"{self._root}/{file.path}", "rb", block_size=PIECE))
        try:
            pieces = pieces_of(lambda size: self._call(lambda: stream.read(size)), PIECE)
            pieces = in_time(pieces, until, f"{self.address}: {file.path}")
            write(target, pieces, file.size, "md5" if file.md5 else "", file.md5)
        finally:
            with contextlib.suppress(OnnxplainError):
                self._call(stream.close)

    def read(self, path: str) -> bytes | None:
        """A small file's bytes; None where there is none."""

        def content() -> bytes | None:
            try:
                found: bytes = self._opened().cat_file(f"{self._root}/{path}")
            except FileNotFoundError:
                return None
            return found

        return self._call(content)

    def write(self, path: str, content: bytes) -> bool:
        """A file of these bytes, in place of one of that name."""

        def put() -> bool:
            system = self._opened()
            system.makedirs(self._root, exist_ok=True)
            system.pipe_file(f"{self._root}/{path}", content)
            return True

        return self._call(put)

    def remove(self, path: str) -> None:
        """Take a file away; one that is not there is no error."""
        self._call(
            lambda: self._opened().exists(f"{self._root}/{path}") and self._system.rm_file(f"{self._root}/{path}")
        )

    def _opened(self) -> Any:
        if self._system is None:
            fsspec = importlib.import_module("fsspec")
            system = fsspec.filesystem(self.scheme, skip_instance_cache=True, use_listings_cache=False)
            self._root = str(system._strip_protocol(self.address)).rstrip("/")
            self._system = system  # last: another thread that sees it has the root too
        return self._system

    def _find(self, below: str) -> Mapping[str, Mapping[str, Any]]:
        system = self._opened()
        system.invalidate_cache()
        found: Mapping[str, Mapping[str, Any]] = system.find("/".join(filter(None, (self._root, below))), detail=True)
        return found

    def _call(self, call: Callable[[], Answer]) -> Answer:
        try:
            return within(self._seconds, call, self.address)
        except OnnxplainError:
            raise
        except ImportError as error:
            package = PACKAGES.get(self.scheme, "fsspec")
            raise UsageError(
                f"{self.scheme}:// needs a library ({one_line(error)}): pip install '{package}'."
            ) from error
        except FileNotFoundError as error:
            raise InputError(f"{self.address}: no such bucket, folder or file ({one_line(error)}).") from error
        except Exception as error:  # botocore's, aiohttp's, google's, azure's: each store has its own
            access = f" Set {CREDENTIALS[self.scheme]}." if self.scheme in CREDENTIALS else ""
            raise Unavailable(f"{self.address}: {type(error).__name__}: {one_line(error)}.{access}") from error


def _stored(name: str, info: Mapping[str, Any]) -> StoredFile:
    kind = "link" if info.get("islink") else str(info.get("type"))
    size, modified = int(info.get("size") or 0), _time(next((info[key] for key in TIMES if info.get(key)), None))
    tag = next((str(info[key]) for key in TAGS if info.get(key)), "")
    mark = f"{size} {tag or (modified, info.get('ino'))}"
    return StoredFile(name, size, mark, modified, _md5(info), kind)


def _time(value: Any) -> float | None:
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
    return float(value) if isinstance(value, (int, float)) else None


def _md5(info: Mapping[str, Any]) -> str:
    """As Google's and Azure's stores say it. Amazon's ETag is one only for some objects, so it is no sum here."""
    told = info.get("md5Hash") or (info.get("content_settings") or {}).get("content_md5")
    if not told:
        return ""
    return base64.b64decode(told).hex() if isinstance(told, str) else bytes(told).hex()
