"""What a worker process may not do: outlive its parent, take more memory than it was given, write files, dump core."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment, unused-ignore]

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
FILE_BYTES = 2**20  # of any file it writes; it has none to write
FILES = 1024  # open at a time: weights in files, one connection, a GPU's devices
EXPENDABLE = "500"  # of -1000..1000: where the machine runs out of memory, the model goes before the server


def tie(parent: int) -> None:
    """End with the parent; never gain privileges; leave no core file. parent: its process id.

    Linux sends the signal when the *thread* that started us ends: the parent starts workers from its event loop.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            prctl = ctypes.CDLL(None, use_errno=True).prctl
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(EXPENDABLE)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(0)
    if resource is not None:
        _limit(resource.RLIMIT_CORE, 0)


def confine(memory: int, gpu: bool = False) -> None:
    """From now on at most `memory` bytes more than the process has.

    gpu: CUDA reserves address space by the terabyte, so there the bound is on data alone.
    """
    if resource is None:
        return
    _limit(resource.RLIMIT_NOFILE, FILES)
    _limit(resource.RLIMIT_FSIZE, FILE_BYTES)
    total, data = _sizes()
    if gpu:
        _limit(resource.RLIMIT_DATA, data + memory)
    elif total:
        _limit(resource.RLIMIT_AS, total + memory)


def _limit(kind: int, value: int) -> None:
    """Lower a limit for good; one that is lower already stays."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))


def _sizes() -> tuple[int, int]:
    """Bytes of the address space and of data in it, as Linux counts them for the limits; 0 where it is not Linux."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0, 0
    page = os.sysconf("SC_PAGE_SIZE")
    return int(fields[0]) * page, int(fields[5]) * page
