"""The one folder for temporary files of this server: sockets of its worker processes."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import tempfile
from pathlib import Path

from onnxplain.errors import InputError
from onnxplain.server.telemetry.logs import event
from onnxplain.sources.owned_folder import OwnedFolder, sweep

LOG = logging.getLogger("onnxplain.server")
LONGEST = 70  # bytes of the parent's name: a socket's address has 108
PREFIX = "onnxplain-"


def runtime_folder() -> Path:
    """It is made when first asked for, and removed at the end of the process, or by the next server's start.

    Raises InputError where its name would be too long for a socket in it.
    """
    return _owned().path


def remove_runtime_folder() -> None:
    """For an end of the process that Python does not see."""
    if _owned.cache_info().currsize:
        _owned().remove()


def sweep_runtime_folders() -> None:
    """Remove those of servers that were killed."""
    for folder in sweep(Path(tempfile.gettempdir()), PREFIX):
        event(LOG, logging.INFO, "removed what a killed server left", folder=folder)


@functools.cache
def _owned() -> OwnedFolder:
    parent = Path(tempfile.gettempdir())
    if len(os.fsencode(parent)) > LONGEST:
        raise InputError("the folder for temporary files has too long a name for a socket. Set TMPDIR to another.")
    owned = OwnedFolder(parent, PREFIX)
    atexit.register(owned.remove)
    return owned
