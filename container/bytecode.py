"""Compile what the program imports, and nothing else: `/opt/venv/bin/python bytecode.py`.

The image is read only, so nothing is compiled later; all of site-packages would be 60 MB of bytecode, used or not. It
is never compared with its source: both are in one layer.
"""

from __future__ import annotations

import importlib
import pkgutil
import py_compile
import sys
from pathlib import Path

import onnxplain


def used() -> list[Path]:
    """Sources of onnxplain's modules and of all that they import; a module that needs an extra is left out."""
    for found in pkgutil.walk_packages(onnxplain.__path__, "onnxplain.", onerror=str):
        if found.name.rpartition(".")[2] != "__main__":
            try:
                importlib.import_module(found.name)
            except ImportError as error:
                print(f"{found.name}: left out ({error})")
    files = [Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
    return sorted(file for file in files if file.suffix == ".py" and file.is_relative_to(sys.prefix))


if __name__ == "__main__":
    files = used()
    for file in files:
        py_compile.compile(str(file), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    print(f"{len(files)} modules")
