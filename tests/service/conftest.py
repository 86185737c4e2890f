"""Servers and models that the tests of the service share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Running, running_server

from .nets import repository


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of small models, those of nets.py and two of the checkout."""
    return repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[Running]:
    """A server over `models` that the tests of one worker share: leave it as it was."""
    with running_server(models, "--threads", "2") as running:
        yield running
