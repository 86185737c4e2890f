"""Where models come from. For the command line and the service only; the engine takes a path.

Importing this package registers the model registries of all its modules.
"""

from onnxplain.registry import import_modules
from onnxplain.sources.directory import DirectoryRepository, default_repositories, resolve_model
from onnxplain.sources.folder import DirectorySource, FileSource
from onnxplain.sources.named import named_sources
from onnxplain.sources.registry import REGISTRIES, from_address, model_registry
from onnxplain.sources.remembered import RememberingSource
from onnxplain.sources.resolved import ResolvedModel
from onnxplain.sources.source import ModelSource, Release

import_modules(__name__)

__all__ = [
    "REGISTRIES",
    "DirectoryRepository",
    "DirectorySource",
    "FileSource",
    "ModelSource",
    "Release",
    "RememberingSource",
    "ResolvedModel",
    "default_repositories",
    "from_address",
    "model_registry",
    "named_sources",
    "resolve_model",
]
