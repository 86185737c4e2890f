"""Derivatives: one function an op. Importing this package registers all of them."""

from onnxplain.vjp import (
    activation,
    convolution,
    elementwise,
    functions,
    indexing,
    linear,
    ml,
    normalisation,
    pooling,
    recurrent,
    reduction,
    resize,
    shape,
)
from onnxplain.vjp.registry import OPS, Case, Kind, Op, axis_rules, case, lookup, sign_rules, vjp

__all__ = ["OPS", "Case", "Kind", "Op", "axis_rules", "case", "lookup", "sign_rules", "vjp"]
