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
    padding,
    pooling,
    recurrent,
    reduction,
    resize,
    scattering,
    shape,
    steps,
)
from onnxplain.vjp.registry import (
    OPS,
    STEPS,
    Case,
    Kind,
    Op,
    axis_rules,
    case,
    known,
    lookup,
    sign_rules,
    silent_inputs,
    vjp,
)

__all__ = [
    "OPS",
    "STEPS",
    "Case",
    "Kind",
    "Op",
    "axis_rules",
    "case",
    "known",
    "lookup",
    "sign_rules",
    "silent_inputs",
    "vjp",
]
