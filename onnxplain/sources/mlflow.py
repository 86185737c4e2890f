"""Models from an MLflow registry: `mlflow+http://host:5000?model=clf@champion&model=other/3`.

MLflow itself runs in a process of its own (`mlflow_agent.py` says why); here is what to serve, and where its files are.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from onnxplain.errors import InputError, NotFound, OnnxplainError, Unavailable, UnknownName, UsageError
from onnxplain.inputs.settings import ModelSettings, ServingSettings, load_settings
from onnxplain.recipes import Recipe
from onnxplain.sources.cache import BYTES, FILES, ContentCache
from onnxplain.sources.directory import NAME
from onnxplain.sources.download import DOWNLOAD_SECONDS
from onnxplain.sources.mlflow_agent import AgentError, member
from onnxplain.sources.mlflow_process import MlflowProcess
from onnxplain.sources.registry import model_registry
from onnxplain.sources.resolved import ResolvedModel
from onnxplain.sources.source import Release

NUMBER = re.compile(r"[1-9][0-9]{0,17}")
ALIAS = re.compile(r"[A-Za-z0-9_.-]{1,255}")
EXAMPLE = "mlflow+http://HOST:5000?model=NAME@ALIAS"
INSTALL = "pip install 'onnxplain[mlflow]'"


@dataclass(frozen=True)
class Wanted:
    """One model=: a version, or what an alias points to, or the newest version where both are ""."""

    name: str
    version: str = ""
    alias: str = ""

    @classmethod
    def of(cls, text: str, alias: str = "") -> Wanted:
        """From `clf@champion`, `clf/3`, `clf/latest`, `clf`, each perhaps behind `models:/`. alias: of a bare name."""
        spec = text.removeprefix("models:/").strip("/")
        name, at, after = spec.partition("@")
        wanted = cls(name, alias=after)
        if not at:
            name, slash, version = spec.partition("/")
            wanted = cls(name, "" if version == "latest" else version, "" if slash else alias)
        valid = (not wanted.version or NUMBER.fullmatch(wanted.version)) and (
            not (at or wanted.alias) or ALIAS.fullmatch(wanted.alias)
        )
        if not NAME.fullmatch(wanted.name) or not valid:
            raise UsageError(
                f"model={text[:100]}: write model=NAME@ALIAS, NAME/VERSION or NAME/latest; a name has letters, digits, "
                "'.', '_' and '-' only."
            )
        return wanted

    def __str__(self) -> str:
        return f"models:/{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version or 'latest'}")


@model_registry("mlflow+http", "mlflow+https", example="mlflow+http://HOST:PORT?model=NAME@ALIAS")
class MlflowSource:
    """The wanted models of one registry. Credentials come from MLflow's own variables, MLFLOW_TRACKING_TOKEN and such.

    uri: `mlflow+http://HOST:PORT[/PREFIX]?model=…&model=…`, or `?alias=champion` for every model that has the alias.
    cache: folder for downloaded files. seconds: the longest wait for one answer of the registry. `problems`: entries
    that could not be resolved last time and stay what they were; one line each.
    """

    def __init__(self, uri: str, cache: Path, seconds: float = 5.0, download_seconds: float = DOWNLOAD_SECONDS):
        parts = urlsplit(uri)
        scheme = parts.scheme.removeprefix("mlflow+")
        if not parts.scheme.startswith("mlflow+") or scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{parts.scheme or uri[:40]!r} is no MLflow registry: write {EXAMPLE}.")
        if parts.username or parts.password:
            raise UsageError(
                "credentials in the registry's address would end up in logs; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
            )
        self.base = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.name = f"mlflow+{self.base}"
        query: dict[str, list[str]] = {"model": [], "alias": []}
        for key, value in parse_qsl(parts.query, keep_blank_values=True):
            if key not in query:
                raise UnknownName("key of the registry's address", key, query)
            query[key].append(value)
        if len(query["alias"]) > 1 or any(not ALIAS.fullmatch(alias) for alias in query["alias"]):
            raise UsageError("alias= is one name of letters, digits, '_', '.' and '-', such as alias=champion.")
        self.alias = "".join(query["alias"])
        self.wanted = tuple(dict.fromkeys(Wanted.of(text, self.alias) for text in query["model"]))
        if not self.wanted and not self.alias:
            raise UsageError(
                f"which models of {self.name}? Write {EXAMPLE}, or ?alias=champion for all that have that alias."
            )
        self.cache = ContentCache(Path(cache))
        self.problems: dict[str, str] = {}
        self._seconds, self._download_seconds = seconds, download_seconds
        self._process = MlflowProcess(self.base, seconds)
        self._known: dict[Wanted, tuple[str, str]] = {}  # version and fingerprint, when it last resolved

    def releases(self) -> Sequence[Release]:
        """What the aliases point to now. Raises Unavailable, and InputError for an entry that never resolved."""
        problems: dict[str, str] = {}
        releases: dict[tuple[str, str], Release] = {}
        aliases: dict[str, Mapping[str, str]] = {}
        for wanted in self.wanted or self._all(problems):
            try:
                if wanted.name not in aliases:
                    aliases[wanted.name] = self._ask("model", str(wanted), name=wanted.name)["aliases"]
                self._known[wanted] = self._version(wanted, aliases[wanted.name])
            except InputError as error:
                if wanted not in self._known:
                    raise
                problems[str(wanted)] = f"{error} Version {self._known[wanted][0]} stays."
            version, fingerprint = self._known[wanted]
            names = sorted(alias for alias, at in aliases.get(wanted.name, {}).items() if at == version)
            releases[wanted.name, version] = Release(wanted.name, version, fingerprint, tuple(names))
        self.problems = problems
        return [releases[key] for key in sorted(releases, key=lambda key: (key[0], int(key[1])))]

    def fetch(self, release: Release) -> ResolvedModel:
        """The files of a release, from the cache where it has them whole. Raises InputError, Unavailable."""
        spec = f"models:/{release.name}/{release.version}"
        key = "\n".join((self.base, spec, release.fingerprint))
        cached = self.cache.get(key)
        if cached is None:
            cached = self.cache.put(key, lambda folder: self._download(release, spec, folder))
        return opened(cached.folder, cached.about, release.name, release.version)

    def close(self) -> None:
        """End MLflow's process; it starts again when it is needed."""
        self._process.stop()

    def _all(self, problems: dict[str, str]) -> list[Wanted]:
        """Every registered model that has the alias now."""
        names: list[str] = self._ask("names", f"models with the alias {self.alias}", alias=self.alias)
        problems |= {
            name[:100]: f"the registered model {name[:100]!r} is left out: such a name cannot be asked for; rename it."
            for name in names
            if not NAME.fullmatch(name)
        }
        return [Wanted(name, alias=self.alias) for name in sorted(names) if NAME.fullmatch(name)]

    def _version(self, wanted: Wanted, aliases: Mapping[str, str]) -> tuple[str, str]:
        """(version, fingerprint) of an entry."""
        if wanted.alias and wanted.alias not in aliases:
            known = f"It has {', '.join(sorted(aliases)[:10])}." if aliases else "It has none."
            raise NotFound(
                f"{wanted} at {self.base}: no alias {wanted.alias!r}. {known} Set it, or write NAME/VERSION."
            )
        version = aliases[wanted.alias] if wanted.alias else wanted.version
        version_info = self._ask("version", str(wanted), name=wanted.name, version=version)
        if not NUMBER.fullmatch(version_info["version"]) or version_info["status"] != "READY":
            raise NotFound(
                f"{wanted} at {self.base}: version {version_info['version'][:20]} is {version_info['status'].lower()}."
            )
        return version_info["version"], f"{version_info['version']} {version_info['identity']}"

    def _download(self, release: Release, spec: str, folder: Path) -> Mapping[str, Any]:
        request = {"name": release.name, "version": release.version, "folder": str(folder)}
        about: Mapping[str, Any] = self._ask("download", spec, watch=folder, files=FILES, total=BYTES, **request)
        opened(folder, about, release.name, release.version)
        return about

    def _ask(self, do: str, what: str, watch: Path | None = None, **request: Any) -> Any:
        """One request to the registry; its errors are ours."""
        seconds = self._seconds if watch is None else self._download_seconds
        answer = self._process.ask({"do": do, **request}, seconds, watch)
        if "ok" in answer:
            return answer["ok"]
        kind, text = answer.get("kind"), answer.get("text", "")
        where = f"{what} at {self.base}: {text}"
        if kind == "import":
            raise UsageError(f"models from MLflow need its client ({text}): {INSTALL}.")
        if kind == "missing":
            raise NotFound(f"{where}. Look at the name and the version in the registry.")
        if kind == "unsafe":
            raise InputError(f"{where}.")
        if kind == "denied":
            raise Unavailable(f"{where}. Set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD.")
        if kind == "disk":
            raise InputError(f"{where}. Make room in the folder of the model cache.")
        raise Unavailable(f"{where}. Is the registry running? It is asked again.")


def opened(folder: Path, about: Mapping[str, Any], name: str, version: str) -> ResolvedModel:
    """The model, the settings and the recipe in an MLflow artifact, by what its MLmodel says (`mlflow_agent.about`)."""
    settings = ModelSettings()
    try:
        path = member(folder, about["onnx"])
        if about.get("settings"):
            settings = load_settings(member(folder, about["settings"]))
            for named in settings.named_files:  # class names elsewhere would be read out to clients
                member(folder, os.path.relpath(named, folder))
        if about.get("recipe"):
            recipe = Recipe.read(member(folder, about["recipe"]))
            recipe.check()
            settings = dataclasses.replace(settings, defaults=recipe.content())
        # Who may register a model does not decide on the server's queues and memory.
        settings = dataclasses.replace(settings, serving=ServingSettings())
    except (OnnxplainError, AgentError) as error:
        text = str(error).replace(f"{folder}{os.sep}", "").rstrip(".")
        raise InputError(f"models:/{name}/{version}: {text}. Log the version again.") from error
    return ResolvedModel(path, name, version, settings)
