"""Feeds in, outputs out, of one model: what verification runs.

With `runtime/session.py` the only importer of onnxruntime.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from onnxplain import bfloat16, environment
from onnxplain.errors import Expired, UnsupportedModel
from onnxplain.interrupt import check_interrupt
from onnxplain.machine import cpus

SECONDS = 60.0  # of one run, on two rows of small input; a loop that never ends must not hold its caller for ever
MANY = 1000  # nodes, above which planning buffers takes longer than the run: 0.1 s for 1000, 8 s for 8000
VERSION = onnxruntime.__version__
SILENT = 4  # onnxruntime's "fatal": what goes wrong arrives as an exception


@dataclass(frozen=True)
class Port:
    """An input or output: name, onnxruntime's type ("tensor(float)") and shape (numbers, symbols, None)."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


class CpuSession:
    """One model on the CPU.

    model: a path or bytes. weights: the numbers of initializers that `model` only declares as external data, the i-th
    of them in the file `place(i)`; they are not copied. optimise: False runs the graph as written, which starts faster
    and holds the weights once: no packed copies, no arena for them, and nodes in the order of the file, so that a
    weight derived right before its use is gone right behind it. nodes: how many there are, if that is known.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int = 0,
        optimise: bool = False,
        weights: Mapping[str, np.ndarray] | None = None,
        nodes: int = 0,
    ):
        check_interrupt()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = SILENT
        environment.configure(options, threads or cpus())
        options.enable_mem_reuse = nodes < MANY  # onnxruntime looks for a buffer to reuse through all that are free
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a run or two: idle threads may sleep
        if not optimise:
            options.add_session_config_entry("session.disable_prepacking", "1")
            # tensors of a run are in an arena: without, those that outlive others leave glibc's heap full of holes
            options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
            options.enable_mem_pattern = False  # else a second run of a shape takes all its tensors in one piece
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        self._weights = dict(weights or {})  # onnxruntime reads them where they lie: they must live as long as it
        if self._weights:
            _give(options, self._weights)
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UnsupportedModel(
                f"onnxruntime {onnxruntime.__version__} refuses the model: {one_line(error)}"
            ) from error
        self._bfloat16 = bfloat16.mentioned(self._session)
        self.inputs = [_port(node) for node in self._session.get_inputs()]
        self.outputs = [_port(node) for node in self._session.get_outputs()]

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        """Outputs by name; all of them by default. seconds: until it is stopped, between two nodes; None: SECONDS.

        Raises UnsupportedModel, Expired.
        """
        check_interrupt()
        names = list(outputs) if outputs is not None else [port.name for port in self.outputs]
        limit = SECONDS if seconds is None else seconds
        options = onnxruntime.RunOptions()
        options.log_severity_level = SILENT
        timer = threading.Timer(limit, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            if self._bfloat16:
                values = bfloat16.run(self._session, names, feeds, options)
            else:
                values = self._session.run(names, dict(feeds), options)
        except Exception as error:
            if options.terminate:
                raise Expired(f"a run of the model took longer than {limit:g} s and was stopped") from error
            raise UnsupportedModel(f"onnxruntime cannot run the model: {one_line(error)}") from error
        finally:
            timer.cancel()
        return dict(zip(names, values, strict=True))


def place(i: int) -> str:
    """The file that a model names for the i-th weight that a CpuSession is given. There is none of that name."""
    return f"onnxplain.weights.{i}"


def _give(options: onnxruntime.SessionOptions, weights: Mapping[str, np.ndarray]) -> None:
    """Weights by the names of their files, which onnxruntime does not copy; by their own where it is too old for it."""
    if hasattr(options, "add_external_initializers_from_files_in_memory"):
        options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
        places, arrays = [place(i) for i in range(len(weights))], list(weights.values())
        options.add_external_initializers_from_files_in_memory(places, arrays, [array.nbytes for array in arrays])
        return
    options.add_external_initializers(
        list(weights), [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    )


def _port(node: Any) -> Port:
    return Port(node.name, node.type, tuple(node.shape))


def give_back() -> None:
    """Return memory that is free to the system: glibc and the arena keep what sessions leave between others."""
    environment.give_back()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library, which has its own ways
            ctypes.CDLL(None).malloc_trim(0)


def one_line(error: BaseException, limit: int = 400) -> str:
    """What an exception says, without status codes, source paths and line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/\S*/(onnxruntime|onnx)/\S+:\d+ ", "", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
