"""Child processes for models: one is always ready for orders, so that a model that lost its own is soon back."""

from __future__ import annotations

from contextlib import suppress

from onnxplain.errors import OnnxplainError
from onnxplain.server.isolation.process import Child
from onnxplain.server.options import ServerOptions
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import Resolved

READY = 120.0  # seconds for a model to load; what takes longer is taken for an attack


class WorkerPool:
    """Starts children. A spare has imported and warmed up everything, which takes longer than loading a small model."""

    def __init__(self, options: ServerOptions, metrics: Metrics, seconds: float = READY):
        self.options, self.metrics = options, metrics
        self._seconds = seconds
        self._spare: Child | None = None
        self._closed = False

    async def raise_child(self, model: Resolved, again: bool = False) -> Child:
        """A child that answers for a model. Raises why it does not load, in one line; nothing is left behind.

        again: the model has lost a child. Then the next spare waits until this one answers: it needs the processors.
        """
        child = await self._take()
        if not again:
            self._refill()
        try:
            await child.load(model, self.options, self.metrics, self._seconds)
        except BaseException:
            await child.stop(0)
            raise
        finally:
            self._refill()
        return child

    async def close(self) -> None:
        """End the spare. Models' own children are theirs to end."""
        self._closed = True
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.stop(0)

    async def _take(self) -> Child:
        spare, self._spare = self._spare, None
        if spare is not None:
            if spare.code is None:
                return spare
            await spare.free()
        return Child()

    def _refill(self) -> None:
        if self._spare is None and not self._closed:
            with suppress(OSError, OnnxplainError):  # no more processes: then it is tried when one is needed
                self._spare = Child()
