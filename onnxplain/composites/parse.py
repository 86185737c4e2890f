"""Rules as users write them: `type:Conv=flat`, `first=box(low=-2.1,high=2.6)`."""

from __future__ import annotations

from collections.abc import Iterable

from onnxplain.composites.composite import Assignment, Composite, has_name, has_type
from onnxplain.composites.places import Place
from onnxplain.errors import UnknownName, UsageError
from onnxplain.rules import parse_rule
from onnxplain.vjp import OPS


def parse_assignments(texts: Iterable[str]) -> Composite:
    """`type:Conv=flat`, `name:fc*=epsilon(epsilon=0.1)`, `first=box(low=-2.1,high=2.6)`, `last=…` as assignments."""
    assignments = []
    for text in texts:
        where, equals, rule_text = text.partition("=")
        where = where.strip()
        if not equals:
            raise UsageError(f"cannot read the rule {text!r}; write type:Conv=…, name:fc*=…, first=… or last=….")
        rule = parse_rule(rule_text)
        what, _, argument = where.partition(":")
        if what == "type":
            if argument not in OPS:
                raise UnknownName("op type with a derivative", argument, OPS)
            matches = has_type(argument)
        elif what == "name":
            matches = has_name(argument)
        elif where == "first":
            matches = _is_first
        elif where == "last":
            matches = _is_last
        else:
            raise UsageError(f"cannot read {where!r} in {text!r}; write type:Conv=…, name:fc*=…, first=… or last=….")
        assignments.append(Assignment(where, matches, rule, by_user=True))
    return Composite("given", tuple(assignments))


def _is_first(place: Place) -> bool:
    return place.first


def _is_last(place: Place) -> bool:
    return place.last
