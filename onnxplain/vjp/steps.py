"""Ops whose output does not move with their input: comparisons, logic, positions, shapes, filled tensors.

Their derivative is zero wherever there is one. The forward part may use their results; relevance ends here.
"""

from __future__ import annotations

from onnxplain.graph import streams
from onnxplain.vjp import token_inputs
from onnxplain.vjp.registry import steps

steps("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not", streams=streams.elementwise)
steps("IsNaN", "IsInf", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift", streams=streams.elementwise)
steps("Equal", streams=streams.elementwise, token=token_inputs.COMPARED)
steps("Shape", "Size", streams=streams.nothing, lengths=True)
steps("ArgMax", "ArgMin", streams=streams.reduced)
steps("NonZero", "EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
steps("NonMaxSuppression", "SequenceLength", "OptionalHasElement")
steps("ConstantOfShape", mask="fills")
