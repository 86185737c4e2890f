"""onnxruntime: providers, sessions, and how many rows fit in one run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnxruntime
from numpy.typing import NDArray

from onnxplain import bfloat16, environment
from onnxplain.errors import InputError, OutOfMemory, UnsupportedModel, UsageError
from onnxplain.machine import cpus, restricted

Array = NDArray[Any]
VERSION: str = onnxruntime.__version__
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
SILENT = 4  # onnxruntime's "fatal": what goes wrong arrives as an exception
OUT_OF_MEMORY = re.compile(
    r"bad_alloc|[Ff]ailed to allocate|smaller than requested|out of memory|CUDA_ERROR_OUT_OF_MEMORY"
)
LOCATION = re.compile(r"\S*/onnxruntime/\S+:\d+ [^()]*\([^()]*\)(?: const)? ?")  # file:line, then a C++ signature


def providers(choice: str) -> list[str]:
    """onnxruntime's names for a choice: `auto` takes CUDA where it works, `cuda` insists, `cpu` keeps to the CPU."""
    if choice not in ("auto", *PROVIDERS):
        raise UsageError(f"provider is auto, cuda or cpu, not {choice!r}.")
    available = onnxruntime.get_available_providers()
    if choice == "cuda" and PROVIDERS["cuda"] not in available:
        raise UsageError(
            "provider cuda: this onnxruntime has no CUDA provider; install onnxruntime-gpu, or use --provider cpu."
        )
    if choice == "cpu" or PROVIDERS["cuda"] not in available or (choice == "auto" and not _cuda_libraries()):
        return [PROVIDERS["cpu"]]
    return [PROVIDERS["cuda"], PROVIDERS["cpu"]]


def _cuda_libraries() -> bool:
    """Whether a GPU is visible: onnxruntime-gpu names its CUDA provider on machines without one too."""
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/dxg", "/dev/nvhost-gpu")) or os.name == "nt"


class Runs(Protocol):
    """What an explainer asks of a session; the service puts one here that waits in line and shares runs."""

    outputs: list[str]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name, all by default."""
        ...


class Stop:
    """Ends a run from another thread: onnxruntime looks between two kernels, also inside a Loop."""

    def __init__(self) -> None:
        self.options = onnxruntime.RunOptions()
        self.options.log_severity_level = SILENT

    def __call__(self) -> None:
        """End the run that has these options, now or as soon as it begins."""
        self.options.terminate = True


class Session:
    """One model in onnxruntime: `run(feeds) -> outputs by name`. weights: those `model` only declares as external.

    sparing: a second run of a shape makes no plan of its memory, which would lie beside that of the first.
    """

    def __init__(
        self, model: bytes | Path, provider: str = "auto", threads: int = 0,
        weights: Mapping[str, Array] | None = None, sparing: bool = False,
    ):  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = not sparing
        options.log_severity_level = SILENT
        environment.configure(options, threads or (cpus() if restricted() else 0))  # 0: a thread for each core
        wanted = providers(provider)
        self._weights = {name: onnxruntime.OrtValue.ortvalue_from_numpy(w) for name, w in (weights or {}).items()}
        if self._weights:
            options.add_external_initializers(list(self._weights), list(self._weights.values()))
        try:
            environment.require(_nbytes(model) + sum(w.nbytes for w in (weights or {}).values()))
            self._session = onnxruntime.InferenceSession(
                str(model) if isinstance(model, Path) else model, options, providers=wanted
            )
            if environment.overdrawn():
                del self._session
                environment.give_back()
                raise MemoryError("with its weights made ready, nothing bounds what runs take any more")
        except Exception as error:
            if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(one_line(error)):
                raise OutOfMemory(
                    f"the model needs more memory to be loaded than there is: {one_line(error)}"
                ) from error
            raise UnsupportedModel(f"onnxruntime cannot load the model: {one_line(error)}") from error
        self.providers: list[str] = self._session.get_providers()
        if provider == "cuda" and PROVIDERS["cuda"] not in self.providers:
            raise UsageError(
                "provider cuda: onnxruntime could not start CUDA (driver, CUDA or cuDNN libraries missing)."
            )
        self._bfloat16 = bfloat16.mentioned(self._session)
        self.inputs = {value.name: value for value in self._session.get_inputs()}
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None, stop: Stop | None = None
    ) -> dict[str, Array]:
        """Outputs by name. Raises InputError or OutOfMemory with onnxruntime's reason in one line."""
        names = list(self.outputs if outputs is None else outputs)
        options = (stop or Stop()).options
        try:
            found = self._found(names, feeds, options)
        except OutOfMemory:
            if environment.begun() is None or options.terminate:
                raise
            environment.give_back()  # what other runs left in pieces too small for this one
            found = self._found(names, feeds, options)
        return dict(zip(names, found, strict=True))

    def _found(self, names: list[str], feeds: Mapping[str, Array], options: onnxruntime.RunOptions) -> Sequence[Any]:
        try:
            if self._bfloat16:
                return bfloat16.run(self._session, names, feeds, options)
            found: Sequence[Any] = self._session.run(names, dict(feeds), options)
            return found
        except Exception as error:
            reason = one_line(error)
            if OUT_OF_MEMORY.search(reason):
                raise OutOfMemory(f"the run needs more memory than there is: {reason}") from error
            raise InputError(f"onnxruntime could not run the model: {reason}") from error


def _nbytes(model: bytes | Path) -> int:
    return model.stat().st_size if isinstance(model, Path) else len(model)


def one_line(error: Exception) -> str:
    """An onnxruntime message without its line breaks and source locations."""
    text = " ".join(str(error).split())
    _, _, reason = text.rpartition("Status Message: ")
    return LOCATION.sub("", reason or text)[:400]


def describe_providers() -> dict[str, str]:
    """Every provider this onnxruntime has, and whether a session can use it."""
    found = {}
    for name in onnxruntime.get_available_providers():
        if name == PROVIDERS["cpu"]:
            found[name] = "works"
        elif name == PROVIDERS["cuda"]:
            found[name] = "works" if _cuda_libraries() else "built in, no GPU seen"
        else:
            found[name] = "not used by onnxplain"
    return found
