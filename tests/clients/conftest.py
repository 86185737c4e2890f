"""Where tests/clients/install put the environments; a client that is not there is skipped, with the command to run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = Path(os.environ.get("ONNXPLAIN_CLIENTS") or ROOT / "build" / "clients")

if (CLIENTS / "plain").is_dir():  # so that tests/wire/test_protos.py, run along with these, makes the stubs as well
    os.environ.setdefault("ONNXPLAIN_PROTOGEN", str(CLIENTS / "plain" / "bin" / "python"))


def environment(name: str) -> Path:
    """The folder of one client's environment."""
    folder = CLIENTS / name
    if not (folder / ".made-from").is_file():
        pytest.skip(f"no {name} client: run tests/clients/install {name}")
    return folder
