"""The process that speaks to MLflow, as the server sees it: started when it is first asked, killed when it is late."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from onnxplain.errors import InputError
from onnxplain.sources.cache import BYTES, FILES, measured

START_SECONDS = 60.0  # importing MLflow: 2 s on an idle core
WATCH_SECONDS = 0.25  # how often a running download is measured
AGENT = Path(__file__).with_name("mlflow_agent.py")


class MlflowProcess:
    """Runs `mlflow_agent.py`. base: the registry's address; seconds: its own timeout for one answer of the registry."""

    def __init__(self, base: str, seconds: float):
        self._base, self._seconds = base, seconds
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._end: weakref.finalize[Any, Any] | None = None

    def ask(self, request: Mapping[str, Any], seconds: float, watch: Path | None) -> Mapping[str, Any]:
        """Its answer, or one of the kind `down` when the time is over. watch: a folder that must not grow too large."""
        with self._lock:
            started = self._start()
            if "ok" not in started:
                return started
            try:
                assert self._process is not None and self._process.stdin is not None
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            except OSError:
                self.stop()
                return {"kind": "down", "text": "its client ended"}
            return self._answer(seconds, watch)

    def stop(self) -> None:
        """Kill the process, if there is one."""
        if self._end is not None:
            self._end()
        self._process = None

    def _start(self) -> Mapping[str, Any]:
        if self._process is not None and self._process.poll() is None:
            return {"ok": True}
        self.stop()
        root = str(Path(__file__).parents[2])  # of onnxplain itself, which the agent's last check reads the model with
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "MLFLOW_TRACKING_URI": self._base,
            "MLFLOW_REGISTRY_URI": self._base,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, math.ceil(self._seconds))),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the next poll is the retry
            "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        process = subprocess.Popen(
            [sys.executable, "-P", str(AGENT), self._base],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._process, self._answers = process, queue.SimpleQueue()
        self._end = weakref.finalize(self, _kill, process)
        threading.Thread(target=_read, args=(process.stdout, self._answers), daemon=True, name="mlflow").start()
        return self._answer(START_SECONDS, None)

    def _answer(self, seconds: float, watch: Path | None) -> Mapping[str, Any]:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                line = self._answers.get(timeout=left if watch is None else min(left, WATCH_SECONDS))
            except queue.Empty:
                if problem := _too_large(watch):
                    self.stop()
                    return {"kind": "unsafe", "text": problem}
                continue
            if not line:
                self.stop()
                return {"kind": "down", "text": "its client ended"}
            answer: Mapping[str, Any] = json.loads(line)
            return answer
        self.stop()
        return {"kind": "down", "text": f"no answer within {seconds:g} s"}


def _too_large(folder: Path | None) -> str:
    if folder is not None:
        try:
            measured(folder, FILES, BYTES)
        except InputError as error:
            return str(error).rstrip(".")
        except OSError:
            pass  # a file was renamed while we looked
    return ""


def _read(stream: IO[str], answers: queue.SimpleQueue[str]) -> None:
    """Lines into the queue; "" where they end."""
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            answers.put(line)
    answers.put("")


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
