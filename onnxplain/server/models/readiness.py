"""When a server is ready, by policy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

POLICIES = ("serving", "strict")


@dataclass(frozen=True)
class ModelStanding:
    """One model that is wanted. good: some version was ever loaded well here. answers: some version does now.

    complete: every version that is wanted does.
    """

    good: bool
    answers: bool
    complete: bool


def is_ready(policy: str, looked: bool, silent: bool, before: bool, models: Iterable[ModelStanding]) -> bool:
    """Whether new calls should come here.

    looked: every source was asked once, and what it then offered was loaded or could not be. silent: some source does
    not answer now. before: the server was ready before.

    "serving": whatever was ever good here answers. A new model that cannot be loaded, or a registry that is down, takes
    nothing away from what works; at the start something must be good, unless nothing is wanted. "strict": every wanted
    version answers and every source is heard.
    """
    models = list(models)
    if not looked:
        return False
    if policy == "strict":
        return not silent and all(model.complete for model in models)
    some = before or any(model.good for model in models) or not (models or silent)
    return some and all(model.answers for model in models if model.good)
