"""Which rule where: places of nodes, composites, and those of the literature by name."""

from onnxplain.composites.catalogue import COMPOSITES, Bounds, CompositeEntry, composite, parse_composite
from onnxplain.composites.composite import Assignment, Composite, by_name, by_type, first, last
from onnxplain.composites.parse import parse_assignments
from onnxplain.composites.places import Place, kind_of, places

__all__ = [
    "COMPOSITES",
    "Assignment",
    "Bounds",
    "Composite",
    "CompositeEntry",
    "Place",
    "by_name",
    "by_type",
    "composite",
    "first",
    "kind_of",
    "last",
    "parse_assignments",
    "parse_composite",
    "places",
]
