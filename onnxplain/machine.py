"""What this process may use of the machine: CPUs and memory, after its container's limits and its own.

A container sees the whole machine in /proc; what it may have is in its control groups, version 1 or 2, and in those
around them: the smallest on the path counts. root: of the file system that is read; tests make their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from math import ceil
from pathlib import Path, PurePosixPath

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment, unused-ignore]

ROOT = Path("/")
UNKNOWN_BYTES = 8 * 2**30  # where the system does not say how much memory it has
UNKNOWN_FREE = 4 * 2**30  # and how much of it is free
ENDLESS = 2**60  # bytes; version 1 writes "no limit" as the largest number of pages


def cpus(root: Path = ROOT) -> int:
    """The CPUs this process may use at a time: by its affinity, and by the quotas of its container, rounded up."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _quota(folder)) is not None]
    return max(1, min([affine, *map(ceil, quotas)]))


def restricted(root: Path = ROOT) -> bool:
    """Whether `cpus` is less than the machine has: onnxruntime's own choice of threads knows no quota."""
    return cpus(root) < (os.cpu_count() or 1)


def memory_bytes(root: Path = ROOT) -> int:
    """Bytes this process may have in all: the machine's, its container's, or its limit on address space."""
    limits = [limit for folder in _groups(root, "memory") if (limit := _memory_limit(folder)) is not None]
    return min([_meminfo(root, "MemTotal") or UNKNOWN_BYTES, *limits, *_address_space()])


def free_memory_bytes(root: Path = ROOT) -> int:
    """Bytes this process may still take. What a container keeps of files that are not in use counts as free."""
    free = [_meminfo(root, "MemAvailable") or UNKNOWN_FREE]
    for folder in _groups(root, "memory"):
        limit = _memory_limit(folder)
        if limit is not None:
            free.append(max(0, limit - _memory_used(folder)))
    free += [max(0, limit - _mapped(root)) for limit in _address_space()]
    return min(free)


def resident_bytes(pid: int | str = "self", root: Path = ROOT) -> int | None:
    """Bytes of memory that a process has now, None where the system does not say."""
    try:
        return int((root / f"proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, innermost first, for a controller of either version."""
    for mount, inner in _mounts(root, controller):
        path = mount.joinpath(*inner.parts)
        while True:
            yield path
            if path == mount:
                break
            path = path.parent


@cache
def _mounts(root: Path, controller: str) -> tuple[tuple[Path, PurePosixPath], ...]:
    """(where it is mounted, our group below that) for the hierarchies that may limit us."""
    memberships: dict[str, str] = {}  # controller, "" for version 2 -> our group
    for line in _lines(root / "proc/self/cgroup"):
        _, names, path = (*line.split(":", 2), "", "")[:3]
        memberships.update(dict.fromkeys(names.split(","), path))
    found = []
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, behind = line.partition(" - ")
        fields, kind = before.split(), behind.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            group = memberships.get("")
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            group = memberships.get(controller)
        else:
            continue
        if group is not None:
            found.append((root / _unescaped(fields[4]).lstrip("/"), _below(group, _unescaped(fields[3]))))
    return tuple(dict.fromkeys(found))


def _below(group: str, mounted: str) -> PurePosixPath:
    """Our group as seen from what is mounted; the mount itself where that is our own group, or one inside it."""
    inner = PurePosixPath(group)
    if ".." not in inner.parts and inner.is_relative_to(mounted):
        return inner.relative_to(mounted)
    return PurePosixPath()


def _quota(folder: Path) -> float | None:
    """CPUs that a group may use, None without a quota."""
    words = _text(folder / "cpu.max").split()
    if not words:
        words = [_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()]
    with suppress(ValueError, IndexError, ZeroDivisionError):
        quota = int(words[0]) / int(words[1])
        return quota if quota > 0 else None
    return None


def _memory_limit(folder: Path) -> int | None:
    """Bytes that a group may have, None without a limit."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        with suppress(ValueError):
            limit = int(_text(folder / name))
            return limit if 0 < limit < ENDLESS else None
    return None


def _memory_used(folder: Path) -> int:
    """Bytes that a group has and cannot give back."""
    used = 0
    for name in ("memory.current", "memory.usage_in_bytes"):
        with suppress(ValueError):
            used = int(_text(folder / name))
            break
    stat = dict(words for line in _lines(folder / "memory.stat") if len(words := line.split()) == 2)
    with suppress(ValueError):
        used -= int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)
    return max(0, used)


def _address_space() -> list[int]:
    """The limit on this process's address space, if it has one."""
    if resource is None:
        return []
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return [] if soft == resource.RLIM_INFINITY else [soft]


def _mapped(root: Path) -> int:
    """Bytes of this process's address space."""
    words = _text(root / "proc/self/statm").split()
    return int(words[0]) * os.sysconf("SC_PAGE_SIZE") if words else 0


def _meminfo(root: Path, name: str) -> int:
    """Bytes by a line of /proc/meminfo, 0 where there is none."""
    for line in _lines(root / "proc/meminfo"):
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _unescaped(text: str) -> str:
    """A path as /proc/self/mountinfo writes it: with blanks as octal numbers."""
    return text.encode().decode("unicode_escape") if "\\" in text else text


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
