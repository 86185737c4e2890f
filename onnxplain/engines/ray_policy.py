"""How many replicas: by the rows that wait and run. Ray's controller imports this, so it imports nothing heavy."""

from __future__ import annotations

from math import ceil
from typing import Any

ROWS = "rows"  # what a replica reports: rows admitted and not yet answered


class RowsPolicy:
    """rows_per_replica: rows in the house that one replica is meant to have at a time."""

    def __init__(self, rows_per_replica: float):
        self.rows_per_replica = rows_per_replica

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas wanted, before Ray's own bounds, factors and delays.

        A request that no replica has taken yet counts as one row: its message is not opened outside of them.
        """
        reported = (context.aggregated_metrics or {}).get(ROWS) or {}
        rows = sum(reported.values()) + (context.total_queued_requests or 0)
        return max(1, ceil(rows / self.rows_per_replica)), {}
