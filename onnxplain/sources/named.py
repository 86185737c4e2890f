"""The sources that a command line or a file names: folders, model files, addresses of registries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from onnxplain.errors import InputError
from onnxplain.sources.directory import VARIABLE, default_repositories
from onnxplain.sources.folder import DirectorySource, FileSource
from onnxplain.sources.registry import from_address
from onnxplain.sources.source import ModelSource


def named_sources(paths: Sequence[str], registries: Sequence[str], mode: str, cache: Path) -> list[ModelSource]:
    """The places that models are served from; without any, the default repositories.

    mode: of folders, see `DirectorySource`. cache: folder for downloads. Raises InputError where there is none.
    """
    if not paths and not registries:
        named = [str(folder) for folder in default_repositories()]
        named = named[:-1] if os.environ.get(VARIABLE) else named
        paths = [folder for folder in named if Path(folder).is_dir()]
        if not paths:
            raise InputError(
                f"nothing to serve: no folder {' or '.join(named)}. Name a repository or a model file, "
                f"set ${VARIABLE}, or give --registry."
            )
    found: list[ModelSource] = []
    for path in paths:
        if Path(path).is_file():
            found.append(FileSource(Path(path)))
        elif Path(path).is_dir():
            found.append(DirectorySource(Path(path), mode))
        else:
            raise InputError(f"{path}: no such file or folder. Name a repository or an .onnx file.")
    found += [from_address(uri, cache) for uri in registries]
    names = [source.name for source in found]
    for n, source in enumerate(found):
        if source.name in names[:n]:
            source.name = f"{source.name}-{n + 1}"  # health and the index tell them apart
    return found
