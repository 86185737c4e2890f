"""Every error a user can meet. Each says what was found, where, and what to do instead.

The command line turns the class into its exit code, the service into its status code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnnxplainError(Exception):
    """Base of all errors raised on purpose; its text is one line written for the user."""

    exit_code = 1


class UsageError(OnnxplainError):
    """An option, a name or a target that makes no sense: exit code 2."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not in a registry or a model, with the nearest names that are."""

    def __init__(self, what: str, name: str, known: Iterable[str]):
        known = list(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"Did you mean {', '.join(near)}?" if near else f"Known: {', '.join(known[:20])}."
        super().__init__(f"no {what} named {name!r}. {hint}")


class UnsupportedModel(OnnxplainError):
    """A model that cannot be loaded, converted, verified or explained: exit code 3."""

    exit_code = 3


class UnsupportedOp(UnsupportedModel):
    """A node without the derivative or the relevance rule that was asked for."""


class ConversionChanged(UnsupportedModel):
    """A rewrite changed the model's outputs; names the rewrite."""


class InputError(OnnxplainError):
    """A file, an array or a folder that cannot be read, used or written: exit code 4."""

    exit_code = 4
