"""Where models come from. For the command line and the service only; the engine takes a path."""

from onnxplain.sources.directory import DirectoryRepository, default_repositories, resolve_model
from onnxplain.sources.folder import DirectorySource, FileSource
from onnxplain.sources.resolved import ResolvedModel
from onnxplain.sources.source import ModelSource, Release

__all__ = [
    "DirectoryRepository",
    "DirectorySource",
    "FileSource",
    "ModelSource",
    "Release",
    "ResolvedModel",
    "default_repositories",
    "resolve_model",
]
