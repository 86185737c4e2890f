"""What endpoints answer by: the services of the gRPC port, called with the same messages."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from onnxplain.server.rpc.explainer_service import ExplainerService
from onnxplain.server.rpc.inference_service import InferenceService

T = TypeVar("T")
SMALL = 64 * 1024  # bytes that are read or written in the event loop; a thread would take longer to begin
THREADS = 2  # that read and write JSON, decode pictures and draw: as many large ones are in memory at a time


@dataclass(frozen=True)
class Services:
    """Both services, and threads for what would hold up the event loop. Services are called without a context."""

    inference: InferenceService
    explainer: ExplainerService
    threads: ThreadPoolExecutor

    async def sized(self, size: int, work: Callable[[], T]) -> T:
        """Do work on so many bytes: here where they are few, else in a thread."""
        return work() if size < SMALL else await self.in_thread(work)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do blocking work in a thread that knows the current call."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self.threads, context.run, work)
