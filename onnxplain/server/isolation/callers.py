"""Who asks, told by the parent to a worker: only the parent reads tokens, both have scopes, rates and turns to keep."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable

from onnxplain.server.row_rate import RowRate
from onnxplain.server.tokens import ANYONE, Caller

CALLERS = 1000  # of whom a worker knows the rate
KEY = "authorization"


def caller_metadata(caller: Caller) -> tuple[tuple[str, str], ...]:
    """A caller as metadata of a call to a worker; nothing for anyone."""
    if caller == ANYONE:
        return ()
    rate = None if caller.rate is None else [caller.rate.rows_per_second, caller.rate.burst]
    told = [caller.name, sorted(caller.scopes), caller.share, rate, caller.most_urgent]
    return ((KEY, json.dumps(told)),)


class ForwardedCallers:
    """The callers of a worker's calls, whose socket only the parent reaches. Each worker counts rates for itself."""

    def __init__(self) -> None:
        self._callers: OrderedDict[str, Caller] = OrderedDict()

    def caller(self, authorization: Iterable[str | bytes]) -> Caller:
        """Whom the parent names; anyone where it names nobody."""
        told = next(iter(authorization), None)
        if told is None:
            return ANYONE
        known = self._callers.get(str(told))
        if known is None:
            name, scopes, share, rate, most_urgent = json.loads(told)
            bucket = None if rate is None else RowRate(name, *rate)
            known = self._callers[str(told)] = Caller(name, frozenset(scopes), share, bucket, most_urgent)
            while len(self._callers) > CALLERS:
                self._callers.popitem(last=False)
        self._callers.move_to_end(str(told))
        return known
