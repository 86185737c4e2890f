"""What of a registry was last served well, on disk: a server that starts while the registry is down begins with it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from onnxplain.errors import InputError
from onnxplain.inputs.settings import VERSION
from onnxplain.sources.cache import write_whole
from onnxplain.sources.folder import unservable
from onnxplain.sources.resolved import ResolvedModel
from onnxplain.sources.source import ModelSource, Release

LOG = logging.getLogger(__name__)
FOLDER = "served"  # in the cache
MOST = 1 << 24  # bytes of a record: some hundred thousand releases


class RememberingSource:
    """A registry's source, and its record `<cache>/served/<sha256 of the address>.json`.

    The files themselves are in the source's own cache: `fetch` finds them by the release's fingerprint, without asking
    the registry.
    """

    def __init__(self, source: ModelSource, address: str, cache: Path):
        self.source, self.address = source, address
        self.file = Path(cache) / FOLDER / f"{hashlib.sha256(address.encode()).hexdigest()}.json"

    @property
    def name(self) -> str:
        """The source's."""
        return self.source.name

    @name.setter
    def name(self, name: str) -> None:
        self.source.name = name

    @property
    def problems(self) -> dict[str, str]:
        """The source's."""
        return self.source.problems

    def releases(self) -> Sequence[Release]:
        """What the registry says now."""
        return self.source.releases()

    def fetch(self, release: Release) -> ResolvedModel:
        """The files of a release."""
        return self.source.fetch(release)

    def remembered(self) -> list[Release]:
        """What was last served well from this address; nothing where there is no record, or none that can be read."""
        try:
            if self.file.stat().st_size > MOST:
                raise ValueError("too large")
            content = json.loads(self.file.read_text("utf-8"))
            if content["address"] != self.address:
                raise ValueError("of another address")
            return [_release(entry) for entry in content["releases"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            LOG.warning("the record of what %s last served cannot be read: %s", self.name, error)
            return []

    def remember(self, releases: Sequence[Release]) -> None:
        """Keep them for the next start, all or nothing. Raises InputError where the cache cannot be written."""
        content = {"address": self.address, "releases": [asdict(release) for release in releases]}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(self.file, json.dumps(content, sort_keys=True))
        except OSError as error:
            raise InputError(
                f"the model cache cannot be written: {error.strerror or type(error).__name__}. "
                "Make room there, or name another folder for it."
            ) from error

    def close(self) -> None:
        """End what the source keeps open."""
        end = getattr(self.source, "close", None)
        if end is not None:
            end()


def _release(entry: dict[str, object]) -> Release:
    name, version, fingerprint = (entry[key] for key in ("name", "version", "fingerprint"))
    aliases = entry["aliases"]
    texts = (name, version, fingerprint, *(aliases if isinstance(aliases, list) else [None]))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not a list of releases")
    if unservable(str(name)) or not VERSION.fullmatch(str(version)):
        raise ValueError(f"{str(name)[:100]!r} cannot be served")
    return Release(str(name), str(version), str(fingerprint), tuple(aliases))  # type: ignore[arg-type]
