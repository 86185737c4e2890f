"""A control group with a bound of memory, as a container has one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A group of this machine. path: its folder; version: of control groups, 1 or 2."""

    def __init__(self, path: Path, version: int):
        self.path, self.version = path, version

    @property
    def launcher(self) -> list[str]:
        """Words in front of a command that is to run inside."""
        return ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$0" "$@"']

    @property
    def killed(self) -> int:
        """Processes of the group that the kernel has ended for want of memory."""
        file = self.path / ("memory.events" if self.version == 2 else "memory.oom_control")
        return sum(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill "))

    @property
    def peak(self) -> int:
        """Bytes that the group held at most, files in the page cache among them."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        return int((self.path / name).read_text())


@contextlib.contextmanager
def memory_group(nbytes: int) -> Iterator[MemoryGroup]:
    """A group of at most `nbytes`; the test is skipped where this user may make none."""
    version = 2 if (ROOT / "cgroup.controllers").exists() else 1
    folder = (ROOT if version == 2 else ROOT / "memory") / f"onnxplain-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text(str(nbytes))
    except OSError as error:
        pytest.skip(f"no control group of memory can be made here: {error}")
    try:
        yield MemoryGroup(folder, version)
    finally:
        for _ in range(100):  # the last process may be on its way out
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.05)
