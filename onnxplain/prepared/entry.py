"""One entry of the graph cache as bytes: a digest of the rest, what it is and what is known, then sections of bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxplain.errors import OnnxplainError

MAGIC = b"onnxplain-graphs 1 "
HEAD = len(MAGIC) + 64 + 1  # with the digest in hex and a line break
LENGTH = 8  # bytes that say how long the header is
ALIGNED = 64  # bytes: sections begin at multiples, so that weights can be read where they lie

Buffer = bytes | memoryview


class DamagedEntry(OnnxplainError):
    """Not an entry, or not the one that was asked for; it is made anew."""


@dataclass(frozen=True)
class CacheEntry:
    """key: all that it depends on. about: JSON. sections: bytes by name, each a list of parts while it is written."""

    key: Mapping[str, Any]
    about: Mapping[str, Any]
    sections: Mapping[str, list[Buffer]]

    @property
    def name(self) -> str:
        """Its name in a cache."""
        return entry_name(self.key)

    def encode(self) -> list[Buffer]:
        """The parts of its bytes, one behind the other."""
        places, at = {}, 0
        for name, parts in self.sections.items():
            size = sum(map(len, parts))
            places[name] = [at, size]
            at += size + -size % ALIGNED
        header = json.dumps({"key": self.key, "about": self.about, "sections": places}, sort_keys=True).encode()
        header += b" " * (-(HEAD + LENGTH + len(header)) % ALIGNED)
        body: list[Buffer] = [len(header).to_bytes(LENGTH, "little"), header]
        for parts in self.sections.values():
            body += [*parts, bytes(-sum(map(len, parts)) % ALIGNED)]
        return [MAGIC + _sha256(body).encode() + b"\n", *body]

    @classmethod
    def decode(cls, content: bytes, key: Mapping[str, Any]) -> CacheEntry:
        """What `encode` made for this key. Raises DamagedEntry, whatever the bytes are."""
        if len(content) < HEAD + LENGTH or not content.startswith(MAGIC):
            raise DamagedEntry("it is no entry of this form")
        if content[len(MAGIC) : HEAD] != _sha256([memoryview(content)[HEAD:]]).encode() + b"\n":
            raise DamagedEntry("its bytes are not those that were written")
        start = HEAD + LENGTH + int.from_bytes(content[HEAD : HEAD + LENGTH], "little")
        header = json.loads(content[HEAD + LENGTH : start])
        if json.dumps(header["key"], sort_keys=True) != json.dumps(key, sort_keys=True):
            raise DamagedEntry("it is of another model, recipe or version")
        view = memoryview(content)[start:]
        return cls(key, header["about"], {name: [view[at : at + n]] for name, (at, n) in header["sections"].items()})

    def section(self, name: str) -> bytes:
        """A section's bytes."""
        return b"".join(self.sections[name])

    def view(self, name: str) -> memoryview:
        """The same of an entry that was decoded, without a copy."""
        (part,) = self.sections[name]
        return memoryview(part)


def entry_name(key: Mapping[str, Any]) -> str:
    """The name of the entry of a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _sha256(parts: Iterable[Buffer]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
