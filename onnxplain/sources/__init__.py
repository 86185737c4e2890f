"""Where models come from. For the command line and the service only; the engine takes a path."""

from onnxplain.sources.directory import DirectoryRepository, default_repositories, resolve
from onnxplain.sources.folder import DirectorySource, FileSource
from onnxplain.sources.resolved import Resolved
from onnxplain.sources.source import Release, Source

__all__ = [
    "DirectoryRepository",
    "DirectorySource",
    "FileSource",
    "Release",
    "Resolved",
    "Source",
    "default_repositories",
    "resolve",
]
