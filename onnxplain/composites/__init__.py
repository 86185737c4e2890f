"""Which rule where: places of nodes, composites, and those of the literature by name."""

from onnxplain.composites.catalogue import COMPOSITES, LAST_RULES, Bounds, CompositeEntry, composite
from onnxplain.composites.composite import Composite, Entry, by_name, by_type, first, last
from onnxplain.composites.parse import parse_entries
from onnxplain.composites.places import Place, kind_of, places

__all__ = [
    "COMPOSITES",
    "LAST_RULES",
    "Bounds",
    "Composite",
    "CompositeEntry",
    "Entry",
    "Place",
    "by_name",
    "by_type",
    "composite",
    "first",
    "kind_of",
    "last",
    "parse_entries",
    "places",
]
