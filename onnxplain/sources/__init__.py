"""Where models come from. For the command line and the service only; the engine takes a path."""

from onnxplain.sources.directory import DirectoryRepository, Resolved, default_repositories, resolve

__all__ = ["DirectoryRepository", "Resolved", "default_repositories", "resolve"]
