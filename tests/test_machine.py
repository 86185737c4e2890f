"""Laws of what a process may use: the smallest limit around it counts, whichever version of control groups says it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxplain import machine

MIB = 2**20
TOTAL, FREE = 64 * 1024 * MIB, 48 * 1024 * MIB  # of the machine
V2 = "30 25 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n"
V1 = (
    "31 25 0:27 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "32 25 0:28 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
)
ENDLESS = "9223372036854771712"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A file system of a machine of 64 CPUs and 64 GiB. Files by path; what is not said is not there."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)

    def tree(**files: str) -> Path:
        meminfo = f"MemTotal: {TOTAL // 1024} kB\nMemAvailable: {FREE // 1024} kB\n"
        for name, text in {"proc/meminfo": meminfo, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return tree


def v2(groups: dict[str, dict[str, str]], own: str = "/", root: str = "/") -> dict[str, str]:
    """Files of a machine with version 2. groups: folder under the mount -> its files."""
    files = {"proc/self/cgroup": f"0::{own}\n", "proc/self/mountinfo": V2.format(root=root)}
    for group, content in groups.items():
        files |= {f"sys/fs/cgroup{group}/{name}": text for name, text in content.items()}
    return files


def v1(groups: dict[str, dict[str, str]], own: str = "/", root: str = "/") -> dict[str, str]:
    """The same with version 1, whose controllers have hierarchies of their own."""
    cgroup = f"4:memory:{own}\n3:cpu,cpuacct:{own}\n1:name=systemd:{own}\n"
    files = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": V1.format(root=root)}
    for group, content in groups.items():
        for name, text in content.items():
            folder = "memory" if name.startswith("memory") else "cpu,cpuacct"
            files[f"sys/fs/cgroup/{folder}{group}/{name}"] = text
    return files


CPUS = {
    "no groups": ({}, 64),
    "v2 without a quota": (v2({"": {"cpu.max": "max 100000\n"}}), 64),
    "v2": (v2({"": {"cpu.max": "400000 100000\n"}}), 4),
    "v2 in part": (v2({"": {"cpu.max": "150000 100000\n"}}), 2),
    "v2 less than one": (v2({"": {"cpu.max": "10000 100000\n"}}), 1),
    "v2 without a period": (v2({"": {"cpu.max": "400000\n"}}), 64),
    "v2 nested, outer smaller": (v2({"/pod": {"cpu.max": "200000 100000"}, "/pod/a": {"cpu.max": "8 1"}}, "/pod/a"), 2),
    "v2 nested, inner smaller": (v2({"/pod": {"cpu.max": "8 1"}, "/pod/a": {"cpu.max": "3 1"}}, "/pod/a"), 3),
    "v2 mounted from inside": (v2({"": {"cpu.max": "5 1"}}, "/docker/abc", "/docker/abc"), 5),
    "v2 in a namespace elsewhere": (v2({"": {"cpu.max": "5 1"}}, "/../../other"), 5),
    "v1 without a quota": (v1({"": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}}), 64),
    "v1": (v1({"": {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}}), 3),
    "v1 mounted from inside": (
        v1({"": {"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}}, "/kubepods/x", "/kubepods/x"),
        2,
    ),
    "nonsense": (v2({"": {"cpu.max": "a lot"}}), 64),
}


@pytest.mark.parametrize("case", CPUS)
def test_cpus_are_the_smallest_quota_on_the_path(tree, case):
    files, expected = CPUS[case]
    root = tree(**files)
    assert machine.cpus(root) == expected
    assert machine.restricted(root) == (expected < 64)


def test_cpus_are_not_more_than_the_affinity(tree, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5}, raising=False)
    assert machine.cpus(tree(**v2({"": {"cpu.max": "800000 100000"}}))) == 2


def new(limit: object, used: int = 0, files: int = 0) -> dict[str, str]:
    """A group of version 2. limit, used, files: in MiB."""
    return {
        "memory.max": str(limit * MIB if isinstance(limit, int) else limit) + "\n",
        "memory.current": str(used * MIB),
        "memory.stat": f"anon 5\ninactive_file {files * MIB}\n",
    }


def old(limit: object, used: int = 0, files: int = 0) -> dict[str, str]:
    """A group of version 1."""
    return {
        "memory.limit_in_bytes": str(limit * MIB if isinstance(limit, int) else limit),
        "memory.usage_in_bytes": str(used * MIB),
        "memory.stat": f"inactive_file 0\ntotal_inactive_file {files * MIB}\n",
    }


MEMORY = {
    "no groups": ({}, TOTAL, FREE),
    "v2 without a limit": (v2({"": new("max")}), TOTAL, FREE),
    "v2": (v2({"": new(512, 100)}), 512 * MIB, 412 * MIB),
    "v2 with files": (v2({"": new(512, 300, 200)}), 512 * MIB, 412 * MIB),
    "v2 nested": (v2({"/pod": new(256, 250), "/pod/a": new(512)}, "/pod/a"), 256 * MIB, 6 * MIB),
    "v2 over its limit": (v2({"": new(100, 200)}), 100 * MIB, 0),
    "v2 above the machine": (v2({"": new(2 * TOTAL // MIB)}), TOTAL, FREE),
    "v1 without a limit": (v1({"": old(ENDLESS)}), TOTAL, FREE),
    "v1": (v1({"": old(512, 300, 200)}), 512 * MIB, 412 * MIB),
    "v1 nested": (v1({"/a": old(256), "/a/b": old(ENDLESS)}, "/a/b"), 256 * MIB, 256 * MIB),
    "nonsense": (v2({"": new("plenty")}), TOTAL, FREE),
}


@pytest.mark.parametrize("case", MEMORY)
def test_memory_is_the_smallest_limit_on_the_path(tree, case):
    files, total, free = MEMORY[case]
    root = tree(**files)
    assert machine.memory_bytes(root) == total
    assert machine.free_memory_bytes(root) == free


def test_a_mount_with_a_blank_in_its_name_is_found(tree):
    files = v2({"": {"cpu.max": "2 1"}})
    files["proc/self/mountinfo"] = files["proc/self/mountinfo"].replace("/sys/fs/cgroup", "/sys/fs/c\\040group")
    files["sys/fs/c group/cpu.max"] = "3 1"
    assert machine.cpus(tree(**files)) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_limit_on_address_space_is_one_on_memory():
    code = (
        "import resource; from onnxplain import machine; limit = 3 * 2**30; "
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); "
        "assert machine.memory_bytes() <= limit and machine.free_memory_bytes() < limit, machine.memory_bytes()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_this_process_may_use_something():
    assert 1 <= machine.cpus() <= (os.cpu_count() or 1)
    assert machine.free_memory_bytes() > 0 and machine.memory_bytes() > 2**20
