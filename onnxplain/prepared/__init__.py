"""Models made ready before: normal forms and explanation graphs in a cache that outlives the process."""

from onnxplain.prepared.folder import FolderCache, GraphCache
from onnxplain.prepared.model import PreparedModel
from onnxplain.prepared.restored_graph import RestoredGraph

__all__ = ["FolderCache", "GraphCache", "PreparedModel", "RestoredGraph"]
