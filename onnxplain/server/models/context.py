"""What all models of a server share."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxplain.prepared import GraphCache
from onnxplain.server.memory_ledger import MemoryLedger
from onnxplain.server.options import ServerOptions
from onnxplain.server.scheduling.compile_queue import CompileQueue
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.metrics import Metrics


@dataclass
class ServerContext:
    """Slots, open sessions, options, counters, where graphs are compiled, and where they are kept for other processes.

    graph_cache: None keeps nothing.
    """

    options: ServerOptions
    scheduler: Scheduler
    session_cache: SessionCache
    metrics: Metrics
    memory: MemoryLedger | None = None
    compile_queue: CompileQueue = field(default_factory=CompileQueue)
    graph_cache: GraphCache | None = None
