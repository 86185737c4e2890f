"""Tree ensembles as arrays: what they answer, and the Shapley values of their sum."""

from onnxplain.trees.ensemble import MODES, TreeEnsemble
from onnxplain.trees.score import TreeScore
from onnxplain.trees.shapley import interventional, path_dependent

__all__ = ["MODES", "TreeEnsemble", "TreeScore", "interventional", "path_dependent"]
