"""Who may do what: bearer tokens from a file, and the scope each method needs."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from onnxplain.errors import Denied, InputError, OnnxplainError, Unauthenticated, UsageError
from onnxplain.server.row_rate import RowRate

LOG = logging.getLogger(__name__)
SCOPES = ("infer", "explain", "compile", "admin", "export")
PRIORITIES = range(1, 11)  # of runs: 1 is the most urgent, as Triton counts
DEFAULT_PRIORITY = 5
KEYS = ("sha256", "token", "scopes", "rows_per_second", "burst", "share", "priority")
LOOK_SECONDS = 1.0  # between looks at the file: the longest that a withdrawn token still works
LARGEST = 1e9  # rate, burst or share
SHORTEST = 16  # characters of a token; shorter ones can be guessed
DIGEST = re.compile(r"[0-9a-f]{64}")

_INFERENCE = "/inference.GRPCInferenceService/"
_EXPLAINER = "/onnxplain.v1.ExplainerService/"
_OPEN = None
# Open are the questions that probes and generic tools ask without a token; none of them tells which models there are.
METHOD_SCOPES: Mapping[str, str | None] = {
    "/grpc.health.v1.Health/Check": _OPEN,
    "/grpc.health.v1.Health/Watch": _OPEN,
    "/grpc.health.v1.Health/List": "infer",  # names every model
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _OPEN,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _OPEN,
    _INFERENCE + "ServerLive": _OPEN,
    _INFERENCE + "ServerReady": _OPEN,
    _INFERENCE + "ServerMetadata": _OPEN,
    _INFERENCE + "ModelReady": "infer",
    _INFERENCE + "ModelMetadata": "infer",
    _INFERENCE + "ModelInfer": "infer",  # the service asks for explain as well where the model is NAME.explain
    _INFERENCE + "ModelStreamInfer": "infer",
    _INFERENCE + "ModelConfig": "infer",
    _INFERENCE + "ModelStatistics": "infer",
    _INFERENCE + "RepositoryIndex": "infer",
    _INFERENCE + "RepositoryModelLoad": "admin",
    _INFERENCE + "RepositoryModelUnload": "admin",
    _EXPLAINER + "Explain": "explain",
    _EXPLAINER + "ExplainStream": "explain",
    _EXPLAINER + "GetExplainability": "explain",
    _EXPLAINER + "ListRecipes": "explain",
    _EXPLAINER + "CompileGraph": "export",
}


def scope_of(method: str) -> str | None:
    """The scope a method needs, None: none. A method that is not listed needs the most."""
    return METHOD_SCOPES.get(method, "admin")


@dataclass(frozen=True)
class Caller:
    """Who asks: the name of a token, or of a client's certificate; "" where nobody was asked for one.

    share: of the time in slots, against the others' that want some. rate: of its rows, None: any. most_urgent: the
    priority it may ask for.
    """

    name: str
    scopes: frozenset[str]
    share: float = 1.0
    rate: RowRate | None = field(default=None, compare=False)
    most_urgent: int = PRIORITIES[0]

    @property
    def usual_priority(self) -> int:
        """Of runs for which none is asked."""
        return max(DEFAULT_PRIORITY, self.most_urgent)

    def require_priority(self, priority: int) -> None:
        """Raise UsageError for a priority that there is not, Denied for one above the caller's. 0: the usual one."""
        if priority and priority not in PRIORITIES:
            raise UsageError(
                f"priority {priority}: 1 is the most urgent, {PRIORITIES[-1]} the least, 0 as urgent as usual."
            )
        if 0 < priority < self.most_urgent:
            raise Denied(
                f"token {self.name!r} may ask for priority {self.most_urgent} or less urgent ones, not for {priority}."
            )

    def require(self, scope: str, what: str = "") -> None:
        """Raise Denied unless the caller has `scope`. what: it lets one do, where the method does not say it."""
        if scope not in self.scopes:
            held = ", ".join(name for name in SCOPES if name in self.scopes) or "none"
            scope = f"{scope!r}, {what}" if what else repr(scope)
            raise Denied(f"token {self.name!r} lacks the scope {scope}; it has: {held}. Ask for one that has it.")


# Without a token file. Compiled graphs and loading stay behind flags of their own, whatever the caller's scopes.
ANYONE = Caller("", frozenset(SCOPES))


class Callers(Protocol):
    """Who tells callers by their `authorization`."""

    def caller(self, authorization: Iterable[str | bytes]) -> Caller:
        """Whose it is. Raises Unauthenticated."""
        ...


class Tokens:
    """The tokens of a file, read again when it changes; the last good ones stay where the new file is wrong.

    [tokens.NAME] with sha256 = "hex digest of the token" or token = "the token itself", and scopes = ["infer", ...];
    if wanted rows_per_second and burst (rows at once), share, and priority, the most urgent that it may ask for.
    """

    def __init__(self, path: Path):
        self.path = path
        self._stamp = _stamp(path)
        self._callers = read_tokens(path)
        self._looked = time.monotonic()

    def caller(self, authorization: Iterable[str | bytes]) -> Caller:
        """Whose token the `authorization` metadata holds. Raises Unauthenticated."""
        self._look()
        values = list(authorization)
        if not values:
            raise Unauthenticated("this server wants a token: send metadata `authorization: Bearer TOKEN`.")
        token = _bearer(values)
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        matched = None
        for known, caller in self._callers.items():  # all of them: the time taken tells nothing
            if hmac.compare_digest(known, digest):
                matched = caller
        if matched is None:
            raise Unauthenticated("this token is not known here. It may have been withdrawn; ask for a new one.")
        return matched

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        try:
            stamp = _stamp(self.path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._callers = _with_rates_of(self._callers, read_tokens(self.path))
        except OnnxplainError as error:
            LOG.warning("the tokens stay as they were: %s", error)
        else:
            LOG.info("%d tokens read again from %s", len(self._callers), self.path)


def read_tokens(path: Path) -> dict[bytes, Caller]:
    """SHA-256 of each token -> its caller. Raises InputError for a file that is missing, wrong or open to others."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            table = tomllib.load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the token file cannot be read ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}.") from error
    entries = table.get("tokens")
    if set(table) != {"tokens"} or not isinstance(entries, dict) or not entries:
        raise InputError(f"{path}: a token file holds tables [tokens.NAME] and nothing else.")
    callers: dict[bytes, Caller] = {}
    for name, entry in entries.items():
        where = f"{path}: [tokens.{name}]"
        if not isinstance(entry, dict) or not set(entry) <= set(KEYS):
            raise InputError(f"{where}: known keys are sha256 or token, and {', '.join(KEYS[2:])}.")
        if "token" in entry and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InputError(
                f"{where} holds the token itself in a file that others can read: run `chmod 600 {path}`, "
                "or store its sha256."
            )
        digest = _digest(where, entry)
        if digest in callers:
            raise InputError(f"{where}: the same token as [tokens.{callers[digest].name}]. Give each name its own.")
        share = _number(where, entry, "share", 1.0)
        callers[digest] = Caller(name, _scopes(where, entry), share, _rate(where, entry, name), _urgency(where, entry))
    return callers


def _number(where: str, entry: dict[str, Any], key: str, otherwise: float) -> float:
    value = entry.get(key, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST:
        raise InputError(f"{where}: {key} must be a number above 0, not {value!r}.")
    return float(value)


def _rate(where: str, entry: dict[str, Any], name: str) -> RowRate | None:
    if "rows_per_second" not in entry:
        if "burst" in entry:
            raise InputError(f"{where}: burst says nothing without rows_per_second.")
        return None
    rate = _number(where, entry, "rows_per_second", 0)
    return RowRate(name, rate, max(1.0, _number(where, entry, "burst", rate)))


def _urgency(where: str, entry: dict[str, Any]) -> int:
    value = entry.get("priority", DEFAULT_PRIORITY)
    if isinstance(value, bool) or not isinstance(value, int) or value not in PRIORITIES:
        raise InputError(f"{where}: priority is the most urgent one, from 1 to {PRIORITIES[-1]}, not {value!r}.")
    return value


def _with_rates_of(before: Mapping[bytes, Caller], after: dict[bytes, Caller]) -> dict[bytes, Caller]:
    """Reading a file again fills no bucket: who has the same rate as before goes on with what is left of it."""
    old = {caller.name: caller.rate for caller in before.values()}
    return {
        digest: replace(caller, rate=old[caller.name]) if old.get(caller.name) == caller.rate is not None else caller
        for digest, caller in after.items()
    }


def _digest(where: str, entry: dict[str, Any]) -> bytes:
    token, digest = entry.get("token"), entry.get("sha256")
    if (token is None) == (digest is None):
        raise InputError(f"{where}: give either sha256 or token.")
    if token is not None:
        if not isinstance(token, str) or len(token) < SHORTEST or not token.isascii() or token.split() != [token]:
            raise InputError(
                f"{where}: token must be {SHORTEST} or more ASCII characters without spaces, "
                "such as `openssl rand -hex 32` prints."
            )
        return hashlib.sha256(token.encode()).digest()
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest.lower()):
        raise InputError(f"{where}: sha256 must be 64 hex digits, as `printf %s TOKEN | sha256sum` prints.")
    return bytes.fromhex(digest)


def _scopes(where: str, entry: dict[str, Any]) -> frozenset[str]:
    scopes = entry.get("scopes")
    if not isinstance(scopes, list) or not scopes or not all(scope in SCOPES for scope in scopes):
        raise InputError(f"{where}: scopes must be a list of one or more of {', '.join(SCOPES)}.")
    return frozenset(scopes)


def _bearer(values: list[str | bytes]) -> str:
    scheme, _, token = str(values[0]).partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("the `authorization` metadata must be one `Bearer TOKEN`.")
    return token.strip()


def _stamp(path: Path) -> tuple[int, int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: the token file cannot be read ({error}).") from error
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode
