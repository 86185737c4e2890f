"""What may be said of an op beside its derivative: the words and records that `@vjp` takes.

Rules, composites and the compiler ask for these and never for the name of an op, so that a new op has all of it by
being registered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node

Kind = Literal[
    "linear", "sum", "mean", "product", "affine", "routing", "activation", "softmax", "normalisation", "flat", "other"
]
"""What an op is to relevance; composites go by it.

linear: weights times one activation (Conv, Gemm, MatMul). sum: of several activations (Add). mean: an average or sum
over axes of one. product: of several activations (Mul). affine: a sum or product of one activation with what takes no
relevance (where the node stands: never registered). routing: every output is a copy of an input (Reshape, MaxPool).
activation: elementwise. softmax, normalisation: as they say. flat: derivative zero everywhere. other: gradient only.
"""
SilentRule = Callable[[Node], Collection[int]]
"""Indices of the inputs of a node that carry no derivative by nature: shapes, indices, conditions, lengths."""
Claim = Callable[[Node], bool]
"""A property that an op has or has not by its attributes and constants."""
Family = Literal["convolution", "dense"]
"""Which layers a composite treats alike."""
Head = Literal["", "cut", "through"]
"""At the end of a model. cut: what is explained is its input. through: it hides no head behind it. "": neither."""


def never(node: Node) -> bool:
    """The claim of most ops."""
    return False


def always(node: Node) -> bool:
    """Whatever the attributes are."""
    return True


def claim(said: bool | Claim) -> Claim:
    """A claim from a word."""
    return said if callable(said) else always if said else never


def first_by_second(node: Node) -> Sequence[tuple[int, int]]:
    """Activation and weight of a convolution: inputs 0 and 1."""
    return ((0, 1),)


def either(node: Node) -> Sequence[tuple[int, int]]:
    """Activation and weight of a matrix product: whichever of the two is constant is the weight."""
    return ((0, 1), (1, 0))


@dataclass(frozen=True)
class Weights:
    """How a layer y = W x + b lies in the inputs of a linear op, and what a rule needs to emit it with other weights.

    family: which layers it counts among. operands: the pairs (index of the activation x, index of the weight W) that
    the op allows. bias: `channels`: input 2, one number for each index of axis 1 of y; `broadcast`: input 2, which
    broadcasts against y; `behind`: the op has none, and that of a recognised pattern is added behind it. factors: the
    attributes that scale the product and the bias. channel_axis: of x, given its index: along it the weights differ.
    stretched: leading axes of x and W broadcast. full_window: whether W is (M, C, *window), slid over all of
    x (N, C, *space): a convolution without groups.
    """

    family: Family
    operands: Callable[[Node], Sequence[tuple[int, int]]]
    bias: Literal["channels", "broadcast", "behind"]
    channel_axis: Callable[[Node, int], int]
    factors: tuple[str, str] | None = None
    stretched: bool = False
    full_window: Claim = never


@dataclass(frozen=True)
class TokenInput:
    """Where an op reads integers as tokens: a look-up in a table, a one-hot code.

    reads: whether it does so at that input. own_axes: the axes of the output that are those of the tokens, in their
    order; the rest are features of one token. None where the output is no float.
    """

    reads: Callable[[Backward, Node, int], bool]
    own_axes: Callable[[Node], list[int]] | None = None
