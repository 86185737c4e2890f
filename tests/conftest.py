"""Tests run side by side; long forms only where they are asked for, alone: pytest -m soak, zoo or guard."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator

import pytest

os.environ.setdefault("ONNXPLAIN_GRAPH_CACHE_BYTES", "0")  # servers under test start cold, and leave nothing behind
LONG = ("soak", "zoo", "guard")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [marker for marker in LONG if marker not in config.option.markexpr]
    long = [item for item in items if any(item.get_closest_marker(marker) for marker in left_out)]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker a core, up to 8; one process for markers asked for by name: those runs fill the machine themselves."""
    asked = re.sub(r"not \w+", "", config.option.markexpr)
    alone = any(marker in asked for marker in (*LONG, "oracle", "clients"))
    return 0 if alone else min(os.cpu_count() or 1, 8)


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A command that sets up the log of a server must not leave it to the tests behind it."""
    loggers = [logging.getLogger(name) for name in ("onnxplain", "grpc")]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, propagate, handlers in before:
        if logger.handlers != handlers:
            logger.propagate, logger.handlers = propagate, handlers
            logger.setLevel(level)
