"""Derivatives: one function an op. Importing this package registers those of all its modules."""

from onnxplain.registry import import_modules
from onnxplain.vjp.facts import Kind
from onnxplain.vjp.registry import (
    OPS,
    STEPS,
    Case,
    Op,
    axis_rules,
    bound_steps,
    case,
    known,
    lookup,
    mask_steps,
    of_family,
    registered,
    sign_rules,
    silent_inputs,
    vjp,
    weight_and_bias,
)

import_modules(__name__)

__all__ = [
    "OPS",
    "STEPS",
    "Case",
    "Kind",
    "Op",
    "axis_rules",
    "bound_steps",
    "case",
    "known",
    "lookup",
    "mask_steps",
    "of_family",
    "registered",
    "sign_rules",
    "silent_inputs",
    "vjp",
    "weight_and_bias",
]
