"""Every error a user can meet. Each says what was found, where, and what to do instead.

The command line turns the class into its exit code, the service into its status code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self


class OnnxplainError(Exception):
    """Base of all errors raised on purpose; its text is one line written for the user.

    exit_code: of the command line. status: the name of the service's gRPC status code. field: what part of a request is
    wrong, such as `inputs[0].shape`; "" where that is not known.
    """

    exit_code = 1
    status = "INVALID_ARGUMENT"
    field = ""

    def at(self, field: str) -> Self:
        """The same error with the part of the request that caused it."""
        self.field = field
        return self

    def again(self) -> Self:
        """A copy to be raised for somebody else: one that is raised twice grows, and `at` writes into it."""
        copy = type(self).__new__(type(self), *self.args)
        copy.__dict__.update(self.__dict__)
        return copy


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
    status = "FAILED_PRECONDITION"


class UnsupportedOp(UnsupportedModel):
    """A node without the derivative or the relevance rule that was asked for."""


class ConversionChanged(UnsupportedModel):
    """A rewrite changed the model's outputs; names the rewrite."""


class InputError(OnnxplainError):
    """A file, an array or a folder that cannot be read, used or written: exit code 4."""

    exit_code = 4


class NotFinite(InputError):
    """A score or a relevance that is NaN or infinite, which is no answer; names the first tensor where it appears."""

    status = "OUT_OF_RANGE"


class NotFound(InputError):
    """A model, a version or an alias that is not served here."""

    status = "NOT_FOUND"


class Busy(OnnxplainError):
    """A queue or a budget is full; retry: seconds after which to come back."""

    status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry: float = 0.1):
        super().__init__(message)
        self.retry = retry


class OutOfMemory(InputError):
    """A run that needs more memory than there is; fewer rows at a time may fit."""

    status = "RESOURCE_EXHAUSTED"


class Unavailable(OnnxplainError):
    """A model that loads or drains, a registry or server that cannot be reached: safe to try again or elsewhere."""

    exit_code = 4
    status = "UNAVAILABLE"


class Expired(OnnxplainError):
    """The deadline passed, or would pass before the answer."""

    exit_code = 4
    status = "DEADLINE_EXCEEDED"


class Cancelled(OnnxplainError):
    """The caller went away."""

    status = "CANCELLED"


class Denied(OnnxplainError):
    """A caller without a valid token (UNAUTHENTICATED), or whose token lacks the scope (PERMISSION_DENIED)."""

    exit_code = 4
    status = "PERMISSION_DENIED"


class Unauthenticated(Denied):
    """No token, or one that is not known."""

    status = "UNAUTHENTICATED"
