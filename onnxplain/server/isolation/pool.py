"""Worker processes for models: one always waits for its config, so that a model that lost its own is soon back."""

from __future__ import annotations

from contextlib import suppress

from onnxplain.errors import OnnxplainError
from onnxplain.server.isolation.process import WorkerProcess
from onnxplain.server.options import ServerOptions
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import ResolvedModel


class WorkerPool:
    """Starts workers. A spare has imported and warmed up everything, which takes longer than loading a small model."""

    def __init__(self, options: ServerOptions, metrics: Metrics):
        self.options, self.metrics = options, metrics
        self._spare: WorkerProcess | None = None
        self._closed = False

    async def start_worker(self, model: ResolvedModel, restart: bool = False) -> WorkerProcess:
        """A worker that answers for a model. Raises why it does not load, in one line; nothing is left behind.

        restart: the model has lost a worker. Then the next spare waits until this one answers: it needs the processors.
        """
        worker = await self._take_spare()
        if not restart:
            self._start_spare()
        try:
            await worker.load(model, self.options, self.metrics, self.options.max_load_seconds)
        except BaseException:
            await worker.stop(0)
            raise
        finally:
            self._start_spare()
        return worker

    async def close(self) -> None:
        """End the spare. Models' own workers are theirs to end."""
        self._closed = True
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.stop(0)

    async def _take_spare(self) -> WorkerProcess:
        spare, self._spare = self._spare, None
        if spare is not None:
            if spare.code is None:
                return spare
            await spare.free()
        return WorkerProcess()

    def _start_spare(self) -> None:
        if self._spare is None and not self._closed:
            with suppress(OSError, OnnxplainError):  # no more processes: then it is tried when one is needed
                self._spare = WorkerProcess()
