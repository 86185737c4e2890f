"""The server's log on stderr: one record per line, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

from onnxplain.server.telemetry.log_writer import LogWriter

NAME = "onnxplain.server"
LONGEST = 256  # characters of a value: names and ids come from clients
TRACE = 16_000  # characters of a stack trace
LISTENED = ("onnxplain", "grpc")  # grpc's own complaints belong into the same log


def set_up(form: str = "text", level: int | str = logging.INFO, stream: TextIO | None = None) -> logging.Handler:
    """Send what the server and gRPC say to `stream`, None: to stderr by a thread of its own.

    Calling it again replaces what was set up.
    """
    formatter = JsonLines() if form == "json" else TextLines()
    handler = _handler(stream, formatter)
    handler.setFormatter(formatter)
    handler.set_name(NAME)
    for name in LISTENED:
        logger = logging.getLogger(name)
        logger.handlers = [other for other in logger.handlers if other.get_name() != NAME]
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("onnxplain").setLevel(level)
    return handler


def _handler(stream: TextIO | None, formatter: logging.Formatter) -> logging.Handler:
    if stream is None:
        with suppress(OSError, ValueError, AttributeError):  # no file: something that catches what is printed
            return LogWriter(sys.stderr.fileno(), formatter)
    return logging.StreamHandler(stream or sys.stderr)


def flush() -> None:
    """Wait a moment until what was logged is written."""
    for handler in logging.getLogger("onnxplain").handlers:
        handler.flush()


def dropped_lines() -> int:
    """Lines of the log that could not be written so far."""
    return sum(h.dropped for h in logging.getLogger("onnxplain").handlers if isinstance(h, LogWriter))


def event(logger: logging.Logger, level: int, name: str, /, **fields: object) -> None:
    """Log one event with its fields; None stands for a field that is not known."""
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """One JSON object per record. Whatever does not print is escaped, so a value cannot start a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        record_fields: dict[str, object] = {key: _plain(value) for key, value in _fields(record)}
        if record.exc_info and record.exc_info[1] is not None:
            record_fields["trace"] = "".join(traceback.format_exception(record.exc_info[1]))[-TRACE:]
        return json.dumps(record_fields)


class TextLines(logging.Formatter):
    """`time LEVEL event key=value …`; stack traces follow, indented, so no line of them reads as a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        (_, moment), (_, level), (_, name), *rest = _fields(record)
        line = f"{moment} {level:<7} {_escaped(str(name))}"
        line += "".join(f" {key}={_quoted(value)}" for key, value in rest)
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(record.exc_info[1]))[-TRACE:]
            line += "".join(f"\n    | {_escaped(part)}" for part in trace.splitlines())
        return line


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    """Time, level and event of a record, then the fields that are known."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    yield "time", f"{seconds}.{int(record.created % 1 * 1000):03d}Z"  # RFC 3339, UTC
    yield "level", record.levelname
    yield "event", _bounded(record.getMessage(), 4 * LONGEST)
    if record.name != NAME and not record.name.startswith(NAME + "."):
        yield "logger", record.name
    for key, value in getattr(record, "fields", {}).items():
        if value is not None:
            yield key, value


def _plain(value: object) -> object:
    """A number as it is, anything else as a bounded text."""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)  # JSON has no NaN and no infinities
    return _bounded(str(value))


def _quoted(value: object) -> str:
    """A value of the text form: bare where it is one plain word."""
    text = _bounded(str(value))
    if text and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _escaped(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)[1:-1]


def _bounded(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
