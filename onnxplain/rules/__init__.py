"""What relevance means: one function a rule. Importing this package registers those of all its modules."""

from onnxplain.registry import import_modules
from onnxplain.rules.registry import RULES, RuleCall, parse_rule

import_modules(__name__)

__all__ = ["RULES", "RuleCall", "parse_rule"]
