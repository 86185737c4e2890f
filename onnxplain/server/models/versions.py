"""The versions of one model that are here, and the aliases that point to them."""

from __future__ import annotations

from collections.abc import Collection

from onnxplain.errors import NotFound, Unavailable
from onnxplain.server.models.entry import LOADING, UNAVAILABLE, ModelEntry
from onnxplain.sources import ModelSource, Release


class ModelVersions:
    """entries: by version; aliases: alias -> version, of releases that answer."""

    def __init__(self, name: str):
        self.name = name
        self.entries: dict[str, ModelEntry] = {}
        self.aliases: dict[str, str] = {}

    @property
    def answers(self) -> bool:
        """Whether any version does."""
        return any(entry.answers for entry in self.entries.values())

    @property
    def good(self) -> bool:
        """Whether any version was ever loaded well here, or loads when it is first asked for."""
        return any(entry.good or entry.cold for entry in self.entries.values())

    @property
    def problems(self) -> dict[str, str]:
        """Version -> why it does not answer as it should, whether or not an older build of it does."""
        return {
            version: entry.reason or "loading"
            for version, entry in self.entries.items()
            if entry.state == UNAVAILABLE or not entry.answers
        }

    def entry(self, version: str = "") -> ModelEntry:
        """What answers for a version, perhaps after loading. Raises NotFound, Unavailable."""
        entry = self.chosen(version)
        if not entry.answers:
            if entry.state == LOADING:
                raise Unavailable(f"model {self.name!r} is loading; try again shortly.")
            raise Unavailable(f"model {self.name!r} could not be loaded: {entry.reason}")
        return entry

    def chosen(self, version: str = "") -> ModelEntry:
        """What is meant by a version ("": the newest that is ready, "@alias", "7"). Raises NotFound."""
        if version.startswith("@"):
            alias = version[1:]
            if alias not in self.aliases:
                known = ", ".join("@" + a for a in self.aliases) or "none"
                raise NotFound(f"model {self.name!r} has no alias {version[:100]!r}; it has {known}.").at(
                    "model.version"
                )
            version = self.aliases[alias]
        if version and version not in self.entries:
            known = ", ".join(self.entries)
            raise NotFound(f"model {self.name!r} has no version {version[:100]!r} here; it has {known}.").at(
                "model.version"
            )
        return self.entries[version] if version else self._newest()

    def owned_by(self, source: ModelSource) -> bool:
        """Whether every version came from this source."""
        return all(entry.source is source for entry in self.entries.values())

    def has_any_of(self, source: ModelSource) -> bool:
        """Whether some version came from this source."""
        return any(entry.source is source for entry in self.entries.values())

    def any_answers(self, versions: Collection[str]) -> bool:
        """Whether one of these versions does."""
        return any(version in versions and entry.answers for version, entry in self.entries.items())

    def set_aliases(self, release: Release) -> None:
        """Aliases of a release that answers, in place of those it had."""
        self.aliases = {alias: version for alias, version in self.aliases.items() if version != release.version}
        self.aliases.update(dict.fromkeys(release.aliases, release.version))

    def take_others(self, wanted: Collection[str]) -> list[ModelEntry]:
        """Take out and return every version that is not wanted any more, and its aliases."""
        self.aliases = {alias: version for alias, version in self.aliases.items() if version in wanted}
        return [self.entries.pop(version) for version in list(self.entries) if version not in wanted]

    def _newest(self) -> ModelEntry:
        ready = [entry for entry in self.entries.values() if entry.answers and not entry.retired]
        return max(ready or self.entries.values(), key=lambda entry: int(entry.release.version))
