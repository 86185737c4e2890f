"""The registry of rules: a name of the literature, its options with defaults, its source.

A rule is made by calling its entry with options: `RULES["epsilon"](epsilon=0.1)` gives `(op, node, r) -> shares`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.relevance import Portion, Relevance
from onnxplain.graph.walk import Arrived
from onnxplain.options import call_text, checked, options_of, parse_call
from onnxplain.registry import Registry
from onnxplain.vjp import Kind

RuleFunction = Callable[[Backward, Node, Relevance], Sequence[Portion]]
"""`(op, node, relevance of the first output) -> one share per input`."""


@dataclass(frozen=True)
class RuleCall:
    """A rule with its options: callable as a rule, printed as it is written on the command line."""

    name: str
    options: dict[str, Any]
    function: RuleFunction = field(compare=False)

    def __call__(self, op: Backward, node: Node, r: Arrived) -> Sequence[Portion]:
        """Apply the rule. Raises UnsupportedOp where relevance arrives at another output than the first."""
        if isinstance(r, list):
            if r[0] is None or any(other is not None for other in r[1:]):
                raise UnsupportedOp(
                    f"{node}: the rule {self} takes relevance at the first output, and it arrives at others "
                    f"({', '.join(y.name or '' for y in node.outputs[1:])})."
                )
            r = r[0]
        return self.function(op, node, r)

    def __str__(self) -> str:
        return call_text(self.name, self.options)


@dataclass(frozen=True)
class RuleEntry:
    """What is registered of a rule.

    kinds: the kinds of op it applies to; choices: allowed words per option. by_output: it divides by the layer's
    output, which may have either sign, so that a unit near 0 must have relevance near 0.
    """

    name: str
    make: Callable[..., RuleFunction]
    kinds: tuple[Kind, ...]
    cite: str
    choices: dict[str, tuple[str, ...]]
    by_output: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Option names with defaults; `inspect.Parameter.empty` where there is none."""
        return options_of(self.make)

    def __call__(self, **options: Any) -> RuleCall:
        """The rule with these options. Raises UnknownName, UsageError."""
        full = checked(f"rule {self.name}", self.options, options, self.choices)
        return RuleCall(self.name, full, self.make(**full))


RULES: Registry[RuleEntry] = Registry("rule")


def rule(
    name: str, *kinds: Kind, cite: str, by_output: bool = False, **choices: tuple[str, ...]
) -> Callable[[Callable[..., RuleFunction]], RuleEntry]:
    """Register a rule factory for the kinds of op it knows; the factory's keyword defaults are the rule's options.

    by_output: as in RuleEntry.
    """

    def register(make: Callable[..., RuleFunction]) -> RuleEntry:
        return RULES.add(name, RuleEntry(name, make, kinds, cite, choices, by_output))

    return register


def parse_rule(text: str) -> RuleCall:
    """`alpha_beta(alpha=2,beta=1)` or `flat` as a rule. Values are numbers, lists of numbers or bare words."""
    name, options = parse_call("rule", text)
    return RULES[name](**options)
