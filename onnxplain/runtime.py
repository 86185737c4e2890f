"""Feeds in, outputs out, of one model: what verification runs.

With `session.py` the only importer of onnxruntime.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxplain.errors import Expired, UnsupportedModel

SECONDS = 60.0  # of one run, on two rows of small input; a loop that never ends must not hold its caller for ever
MANY = 4000  # nodes, above which planning buffers takes longer than the run: 8 s for 8000
SILENT = 4  # onnxruntime's "fatal": what goes wrong arrives as an exception


@dataclass(frozen=True)
class Port:
    """An input or output: name, onnxruntime's type ("tensor(float)") and shape (numbers, symbols, None)."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


class Runtime:
    """One model on the CPU.

    model: a path (preferred: weights are not copied) or bytes. weights: the numbers of initializers that `model` only
    declares as external data; onnxruntime reads them where they lie. optimise: False runs the graph as written, which
    starts faster. nodes: how many there are, if that is known.
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
        options = ort.SessionOptions()
        options.log_severity_level = SILENT
        options.intra_op_num_threads = threads or available_cpus()
        options.inter_op_num_threads = 1
        options.enable_mem_reuse = nodes < MANY  # onnxruntime looks for a buffer to reuse through all that are free
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a run or two: idle threads may sleep
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        self._weights = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in (weights or {}).items()}
        if self._weights:
            options.add_external_initializers(list(self._weights), list(self._weights.values()))
        try:
            self._session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UnsupportedModel(f"onnxruntime {ort.__version__} refuses the model: {one_line(error)}") from error
        self.inputs = [_port(node) for node in self._session.get_inputs()]
        self.outputs = [_port(node) for node in self._session.get_outputs()]

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        """Outputs by name; all of them by default. seconds: until it is stopped, between two nodes; None: SECONDS.

        Raises UnsupportedModel, Expired.
        """
        names = list(outputs) if outputs is not None else [port.name for port in self.outputs]
        limit = SECONDS if seconds is None else seconds
        options = ort.RunOptions()
        options.log_severity_level = SILENT
        timer = threading.Timer(limit, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            values = self._session.run(names, dict(feeds), options)
        except Exception as error:
            if options.terminate:
                raise Expired(f"a run of the model took longer than {limit:g} s and was stopped") from error
            raise UnsupportedModel(f"onnxruntime cannot run the model: {one_line(error)}") from error
        finally:
            timer.cancel()
        return dict(zip(names, values, strict=True))


def _port(node: Any) -> Port:
    return Port(node.name, node.type, tuple(node.shape))


def available_cpus() -> int:
    """The CPUs this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_line(error: BaseException, limit: int = 400) -> str:
    """What an exception says, without status codes, source paths and line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/\S*/(onnxruntime|onnx)/\S+:\d+ ", "", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
