"""Tree ensembles as arrays: what they answer, and the Shapley values of their sum."""

from onnxplain.trees.ensemble import MODES, Trees
from onnxplain.trees.score import TreeScore
from onnxplain.trees.shapley import interventional, path_dependent

__all__ = ["MODES", "TreeScore", "Trees", "interventional", "path_dependent"]
