"""Remove from an environment what a running program never reads: `python slim.py /opt/venv`. Prints what each took.

Tests and their data, stubs, headers, sources of extensions, sample pictures. Licences and metadata stay.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

FOLDERS = (  # below site-packages
    "**/tests",
    "onnx/backend/test",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    "matplotlib/mpl-data/sample_data",
)
FILES = (
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxd",
    "**/*.h",
    "**/*.hpp",
    "**/*.cc",
    "**/*.cpp",
    "**/*.c",
    "**/*.a",
    "**/*.lib",
)


def slim(environment: Path) -> dict[str, int]:
    """Bytes that went, by pattern."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    gone = {}
    for pattern in (*FOLDERS, *FILES):
        found = [path for path in sorted(packages.glob(pattern)) if path.is_dir() == (pattern in FOLDERS)]
        found = [path for path in found if not set(path.parents) & set(found)]
        gone[pattern] = sum(_size(path) for path in found)
        for path in found:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return gone


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


if __name__ == "__main__":
    for pattern, size in slim(Path(sys.argv[1])).items():
        print(f"{size / 2**20:8.1f} MiB  {pattern}")
