"""What all models of a server share."""

from __future__ import annotations

from dataclasses import dataclass

from onnxplain.prepared import GraphCache
from onnxplain.server.options import ServerOptions
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.metrics import Metrics


@dataclass
class ServerContext:
    """Slots, open sessions, options, counters. graph_cache: None keeps nothing for later processes."""

    options: ServerOptions
    scheduler: Scheduler
    session_cache: SessionCache
    metrics: Metrics
    graph_cache: GraphCache | None = None
