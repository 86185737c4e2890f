"""What all sessions of a server process share in onnxruntime: a pool of threads, and a bounded arena for their runs.

A process that begins it does so before its first session; each session made afterwards is `configured`. On the command
line and in Python nothing is begun, and every session has threads and memory of its own, without a bound.

The arena holds the tensors of runs and the packed copies of weights, which are made when a session is; not the weights
themselves. The packed copies are never refused and count all the same; once they pass the limit, onnxruntime no longer
sees where it is, and no run has a bound. So a session is made only while its weights fit, and given up if they did not:
`require`, `overdrawn`.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, helper

POWERS_OF_TWO = 0  # the arena's first piece is never given back, so it is to be a small one; later ones grow
SHRINK = "memory.enable_memory_arena_shrinkage"
AVAILABLE = re.compile(r"Available memory of (\d+) is smaller")  # what the arena says of a tensor that is too large
TOO_MANY = 2**48  # numbers: more than any machine has room for
OPSET, IR_VERSION = 17, 8


@dataclass(frozen=True)
class Environment:
    """threads: of the pool, 0 leaves it to onnxruntime. arena_bytes: of the arena at most."""

    threads: int
    arena_bytes: int


_begun: Environment | None = None
_nothing: onnxruntime.InferenceSession | None = None  # a session whose runs give free memory of the arena back
_probe: onnxruntime.InferenceSession | None = None  # one whose runs are refused with what the arena has left
_lock = threading.Lock()


def begin(threads: int, arena_bytes: int) -> None:
    """From now on sessions share a pool of `threads` and an arena of `arena_bytes`. For good: onnxruntime ends neither.

    Raises RuntimeError where it was begun otherwise: a process has one.
    """
    global _begun, _nothing, _probe
    wanted = Environment(threads, arena_bytes)
    with _lock:
        if _begun is not None:
            if _begun != wanted:
                raise RuntimeError(f"the environment was begun with {_begun}, and cannot be {wanted}")
            return
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        memory = onnxruntime.OrtMemoryInfo(
            "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
        )
        limits = {"max_mem": arena_bytes, "arena_extend_strategy": POWERS_OF_TWO}
        onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(limits))
        _begun = wanted
        options = onnxruntime.SessionOptions()
        configure(options)
        options.log_severity_level = 4  # what the probe is told is no fault
        _nothing = onnxruntime.InferenceSession(_identity(), options, providers=["CPUExecutionProvider"])
        _probe = onnxruntime.InferenceSession(_ones(), options, providers=["CPUExecutionProvider"])
        if available() == -1:  # an onnxruntime that says it in other words: estimates bound the sessions, as without it
            _probe = None
    give_back()  # which takes the arena's first piece


def begun() -> Environment | None:
    """What this process began, None where nothing is shared."""
    return _begun


def configure(options: onnxruntime.SessionOptions, threads: int = 0) -> None:
    """Make a session that has these options one of the environment; where there is none, give it threads of its own."""
    if _begun is None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        return
    options.use_per_session_threads = False
    options.add_session_config_entry("session.use_env_allocators", "1")


def give_back() -> None:
    """Return what is free in the arena to the system, as far as no tensor lies beside it; nothing without one."""
    if _nothing is None:
        return
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(SHRINK, "cpu:0")
    _nothing.run(None, {"x": np.zeros(1, np.float32)}, options)


def available() -> int | None:
    """Bytes by which the arena may still grow; -1 where its limit was passed, None where it has none."""
    if _probe is None:
        return None
    try:
        _probe.run(None, {"shape": np.array([TOO_MANY], np.int64)})
    except Exception as error:
        found = AVAILABLE.search(str(error))
        return -1 if found is None else int(found[1])
    raise RuntimeError(f"onnxruntime made a tensor of {TOO_MANY} numbers")


def require(nbytes: int) -> None:
    """Raise MemoryError where the packed weights of a session, about so many bytes, would pass the arena's limit."""
    left = available()
    if left is not None and left < nbytes:
        raise MemoryError(f"its weights take {nbytes} bytes, and {max(left, 0)} of --memory-budget are left for runs")


def overdrawn() -> bool:
    """Whether the arena holds more than its limit: whatever was made last has to go."""
    return available() == -1


def _identity() -> bytes:
    return _model(helper.make_node("Neg", ["x"], ["y"]), ("x", TensorProto.FLOAT))


def _ones() -> bytes:
    return _model(helper.make_node("ConstantOfShape", ["shape"], ["y"]), ("shape", TensorProto.INT64))


def _model(node: NodeProto, takes: tuple[str, int]) -> bytes:
    """A model of one node. takes: name and type of its input, a vector of one number."""
    value = helper.make_tensor_value_info
    name, kind = takes
    graph = helper.make_graph([node], "nothing", [value(name, kind, [1])], [value("y", TensorProto.FLOAT, [None])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    content: bytes = model.SerializeToString()
    return content
