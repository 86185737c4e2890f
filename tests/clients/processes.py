"""Processes below one of ours, as Linux tells of them."""

from __future__ import annotations

from pathlib import Path


def below(pid: int) -> dict[int, str]:
    """Processes that this one started, and theirs: their command lines."""
    parents = {}
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (ValueError, OSError):
            continue
    found, pending = {}, [pid]
    while pending:
        parent = pending.pop()
        for child in [c for c, p in parents.items() if p == parent]:
            pending.append(child)
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
