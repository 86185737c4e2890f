"""What relevance means: one function a rule. Importing this package registers all of them."""

from onnxplain.rules import activation, add, attention, contrast, lrp
from onnxplain.rules.registry import RULES, RuleCall, parse_rule

__all__ = ["RULES", "RuleCall", "activation", "add", "attention", "contrast", "lrp", "parse_rule"]
