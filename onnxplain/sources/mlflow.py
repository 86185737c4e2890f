"""Models from an MLflow registry: `mlflow+http://host:5000?model=clf@champion&model=other/3`.

MLflow itself runs in a process of its own (`mlflow_agent.py` says why); here is what to serve, and where its files are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import queue
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, urlsplit

from onnxplain.errors import InputError, NotFound, OnnxplainError, Unavailable, UnknownName, UsageError
from onnxplain.inputs.settings import ModelSettings, ServingSettings, load_settings
from onnxplain.recipes import Recipe
from onnxplain.sources.cache import BYTES, FILES, ContentCache, measured
from onnxplain.sources.directory import NAME
from onnxplain.sources.mlflow_agent import Refused, member
from onnxplain.sources.resolved import ResolvedModel
from onnxplain.sources.source import Release

START_SECONDS = 60.0  # importing MLflow: 2 s on an idle core
DOWNLOAD_SECONDS = 900.0  # for all files of one version
WATCH_SECONDS = 0.25  # how often a running download is measured
NUMBER = re.compile(r"[1-9][0-9]{0,17}")
ALIAS = re.compile(r"[A-Za-z0-9_.-]{1,255}")
EXAMPLE = "mlflow+http://HOST:5000?model=NAME@ALIAS"
AGENT = Path(__file__).with_name("mlflow_agent.py")
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
        given: dict[str, list[str]] = {"model": [], "alias": []}
        for key, value in parse_qsl(parts.query, keep_blank_values=True):
            if key not in given:
                raise UnknownName("key of the registry's address", key, given)
            given[key].append(value)
        if len(given["alias"]) > 1 or any(not ALIAS.fullmatch(alias) for alias in given["alias"]):
            raise UsageError("alias= is one name of letters, digits, '_', '.' and '-', such as alias=champion.")
        self.alias = "".join(given["alias"])
        self.wanted = tuple(dict.fromkeys(Wanted.of(text, self.alias) for text in given["model"]))
        if not self.wanted and not self.alias:
            raise UsageError(
                f"which models of {self.name}? Write {EXAMPLE}, or ?alias=champion for all that have that alias."
            )
        self.cache = ContentCache(Path(cache))
        self.problems: dict[str, str] = {}
        self._seconds, self._download_seconds = seconds, download_seconds
        self._agent = _Agent(self.base, seconds)
        self._known: dict[Wanted, tuple[str, str]] = {}  # version and fingerprint, when it last resolved

    def releases(self) -> Sequence[Release]:
        """What the aliases point to now. Raises Unavailable, and InputError for an entry that never resolved."""
        problems: dict[str, str] = {}
        found: dict[tuple[str, str], Release] = {}
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
            found[wanted.name, version] = Release(wanted.name, version, fingerprint, tuple(names))
        self.problems = problems
        return [found[key] for key in sorted(found, key=lambda key: (key[0], int(key[1])))]

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
        self._agent.stop()

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
        found = self._ask("version", str(wanted), name=wanted.name, version=version)
        if not NUMBER.fullmatch(found["version"]) or found["status"] != "READY":
            raise NotFound(f"{wanted} at {self.base}: version {found['version'][:20]} is {found['status'].lower()}.")
        return found["version"], f"{found['version']} {found['identity']}"

    def _download(self, release: Release, spec: str, folder: Path) -> Mapping[str, Any]:
        request = {"name": release.name, "version": release.version, "folder": str(folder)}
        about: Mapping[str, Any] = self._ask("download", spec, watch=folder, files=FILES, total=BYTES, **request)
        opened(folder, about, release.name, release.version)
        return about

    def _ask(self, do: str, what: str, watch: Path | None = None, **request: Any) -> Any:
        """One question to the registry; its errors are ours."""
        seconds = self._seconds if watch is None else self._download_seconds
        answer = self._agent.ask({"do": do, **request}, seconds, watch)
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
            labels = settings.output.labels
            if labels is not None and labels != "imagenet":
                member(folder, os.path.relpath(labels, folder))  # a labels file elsewhere would be read out to clients
        if about.get("recipe"):
            recipe = Recipe.read(member(folder, about["recipe"]))
            recipe.passes()
            chosen = {key: value for key, value in dataclasses.asdict(recipe).items() if value}
            settings = dataclasses.replace(settings, defaults=chosen)
        # Who may register a model does not decide on the server's queues and memory.
        settings = dataclasses.replace(settings, serving=ServingSettings())
    except (OnnxplainError, Refused) as error:
        text = str(error).replace(f"{folder}{os.sep}", "").rstrip(".")
        raise InputError(f"models:/{name}/{version}: {text}. Log the version again.") from error
    return ResolvedModel(path, name, version, settings)


class _Agent:
    """The process that speaks to MLflow: started when first asked, killed when it does not answer in time."""

    def __init__(self, base: str, seconds: float):
        self._base, self._seconds = base, seconds
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._end: weakref.finalize[Any, Any] | None = None

    def ask(self, request: Mapping[str, Any], seconds: float, watch: Path | None) -> Mapping[str, Any]:
        """Its answer, or one of the kind `down` when the time is over. watch: a folder that must not grow too large."""
        with self._lock:
            started = self._start()
            if "ok" not in started:
                return started
            try:
                assert self._process is not None and self._process.stdin is not None
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            except OSError:
                self.stop()
                return {"kind": "down", "text": "its client ended"}
            return self._answer(seconds, watch)

    def stop(self) -> None:
        """Kill the process, if there is one."""
        if self._end is not None:
            self._end()
        self._process = None

    def _start(self) -> Mapping[str, Any]:
        if self._process is not None and self._process.poll() is None:
            return {"ok": True}
        self.stop()
        root = str(Path(__file__).parents[2])  # of onnxplain itself, which the agent's last check reads the model with
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "MLFLOW_TRACKING_URI": self._base,
            "MLFLOW_REGISTRY_URI": self._base,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, math.ceil(self._seconds))),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the next poll is the retry
            "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        process = subprocess.Popen(
            [sys.executable, "-P", str(AGENT), self._base],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._process, self._answers = process, queue.SimpleQueue()
        self._end = weakref.finalize(self, _kill, process)
        threading.Thread(target=_read, args=(process.stdout, self._answers), daemon=True, name="mlflow").start()
        return self._answer(START_SECONDS, None)

    def _answer(self, seconds: float, watch: Path | None) -> Mapping[str, Any]:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                line = self._answers.get(timeout=left if watch is None else min(left, WATCH_SECONDS))
            except queue.Empty:
                if problem := _too_large(watch):
                    self.stop()
                    return {"kind": "unsafe", "text": problem}
                continue
            if not line:
                self.stop()
                return {"kind": "down", "text": "its client ended"}
            answer: Mapping[str, Any] = json.loads(line)
            return answer
        self.stop()
        return {"kind": "down", "text": f"no answer within {seconds:g} s"}


def _too_large(folder: Path | None) -> str:
    if folder is not None:
        try:
            measured(folder, FILES, BYTES)
        except InputError as error:
            return str(error).rstrip(".")
        except OSError:
            pass  # a file was renamed while we looked
    return ""


def _read(stream: IO[str], answers: queue.SimpleQueue[str]) -> None:
    """Lines into the queue; "" where they end."""
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            answers.put(line)
    answers.put("")


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
