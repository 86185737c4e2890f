"""What the image installs, from pyproject.toml: `python requirements.py cpu|gpu [EXTRA,…]` prints a list for pip.

The wheel asks for onnxruntime-gpu on Linux, which runs on the CPU as well and is some 300 MB larger; the CPU's image
takes the plain one of the same versions.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
NAME = re.compile(r"[A-Za-z0-9._-]+")
RUNTIMES = {"cpu": "onnxruntime", "gpu": "onnxruntime-gpu"}


def requirements(runtime: str, extras: list[str], project: Path = PROJECT) -> list[str]:
    """The dependencies with one onnxruntime, and those of the extras. Raises SystemExit for an unknown name."""
    table = tomllib.loads(project.read_text())["project"]
    known = table["optional-dependencies"]
    for name in extras:
        if name not in known:
            raise SystemExit(f"no extra {name!r}; pyproject.toml has {', '.join(known)}")
    if runtime not in RUNTIMES:
        raise SystemExit(f"no runtime {runtime!r}; there are {', '.join(RUNTIMES)}")
    listed = [text.partition(";")[0].strip() for text in table["dependencies"]]
    taken = [text for text in listed if name_of(text) not in RUNTIMES.values() or name_of(text) == RUNTIMES[runtime]]
    return [*taken, *(text for name in extras for text in known[name])]


def name_of(requirement: str) -> str:
    """The project that a requirement names."""
    match = NAME.match(requirement)
    assert match is not None, requirement
    return match[0]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1], [name for text in sys.argv[2:] for name in text.split(",") if name])))
