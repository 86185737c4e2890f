"""Subgraphs that are one thing, recognised: a file for each family of them."""

from onnxplain.graph.patterns.recognition import PATTERNS, recognise

__all__ = ["PATTERNS", "recognise"]
