"""Time the service against bare onnxruntime, with and without batching, and write the table.

    python benchmarks/serving.py                      # five minutes on two cores; leave the machine alone meanwhile

Two servers run side by side, one that puts up to 8 rows of different callers into one run and one that does not
(--max-batch-rows 1). They and bare onnxruntime take turns, in every round in another order, and only one of them is
asked at a time: a slow minute slows all. Reported are medians over the rounds. The callers are one process of their own
on the same machine; what it takes of a processor is in the table.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
from compare import processor

from onnxplain.cli.bench_load import Job, Outcome, generate
from onnxplain.cli.bench_server import alone, feeds, request
from onnxplain.runtime.session import Session
from onnxplain.v1 import explainer_pb2, explainer_pb2_grpc

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "models"
NAMES = ("digits_cnn", "mobilenet_v2")
CLIENTS = (1, 8, 32)
SERVERS = {"batching": (), "one by one": ("--max-batch-rows", "1")}
PAUSE = 0.1  # onnxruntime's idle threads spin for 30 to 50 ms after a run


class Server:
    """`onnxplain serve` over two models, ready."""

    def __init__(self, folder: Path, flags: tuple[str, ...]):
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115  closed with the process
        command = [
            sys.executable,
            "-m",
            "onnxplain",
            "serve",
            str(folder),
            "--port",
            "0",
            "--metrics-port",
            "0",
            "--allow-export",
            *flags,
        ]
        self.process = subprocess.Popen(command, stderr=self._log)
        self.address = f"127.0.0.1:{self._said(rb'listening address=[^ ]*:([0-9]+)')}"
        for name in NAMES:
            self._said(rb"loaded model=(%s) " % name.encode())

    def _said(self, pattern: bytes) -> str:
        for _ in range(1200):
            self._log.seek(0)
            found = re.search(pattern, self._log.read())
            if found:
                return found[1].decode()
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self._log.seek(0)
        raise RuntimeError(f"the server did not start: {self._log.read()[-500:].decode(errors='replace')}")

    def stop(self) -> None:
        """Drain and end."""
        self.process.terminate()
        self.process.wait(30)
        self._log.close()


def measured(servers: dict[str, Server], served: str, bare: Session, rounds: int, seconds: float) -> dict[Any, Any]:
    """By server and number of clients: outcomes, one per round; under "bare" seconds of the runs."""
    with grpc.insecure_channel(servers["batching"].address) as channel:
        arrays = feeds(channel, served, 1)
    content = request(served, arrays)
    turns = [(name, count) for name in servers for count in CLIENTS]
    found: dict[Any, Any] = {turn: [] for turn in turns} | {"bare": []}
    order = random.Random(0)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for _ in range(rounds):
            for turn in order.sample([*turns, "bare"], len(turns) + 1):
                time.sleep(PAUSE)
                if turn == "bare":
                    found["bare"].append(alone(bare, arrays, seconds))
                    continue
                name, count = turn
                job = Job(servers[name].address, content, count, 0.0, seconds, watch=served)
                found[turn].append(pool.submit(generate, job).result())
    return found


def table(served: str, found: dict[Any, Any]) -> list[str]:
    """Lines of Markdown."""
    bare = [float(np.mean(times)) for times in found["bare"]]
    p50 = median(float(np.median(times)) for times in found["bare"])
    lines = [
        f"## {served}",
        "",
        f"Bare onnxruntime, one caller: median {1e3 * p50:.2f} ms, {1 / median(bare):.0f} rows/s.",
        "",
        "| clients | server | rows/s | × bare | p50 ms | p90 ms | p99 ms | over bare ms | rows a run | callers' CPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for count in CLIENTS:
        for name in SERVERS:
            outcomes: list[Outcome] = found[name, count]
            rate = median(o.rate() for o in outcomes)
            ratio = median(o.rate() * one for o, one in zip(outcomes, bare, strict=True))
            p50s, p90, p99 = (
                median(1e3 * float(np.quantile(o.of("OK"), q)) for o in outcomes) for q in (0.5, 0.9, 0.99)
            )
            over = f"{p50s - 1e3 * p50:.2f}" if count == 1 else ""
            rows, cpu = median(o.rows / max(1, o.runs) for o in outcomes), median(o.cpu / o.seconds for o in outcomes)
            lines.append(
                f"| {count} | {name} | {rate:.0f} | {ratio:.2f} | {p50s:.2f} | {p90:.2f} | {p99:.2f} | {over} | "
                f"{rows:.1f} | {100 * cpu:.0f} % |"
            )
            failed = [code for o in outcomes for code in o.codes if code != "OK"]
            if failed:
                lines.append(f"\n{len(failed)} calls were not answered: {', '.join(sorted(set(failed)))}.\n")
    return [*lines, ""]


def bare_session(served: str, server: Server) -> Session:
    """The same graph in onnxruntime: the model's file, or the graph that the server made of it."""
    name = served.removesuffix(".explain")
    if served == name:
        return Session(MODELS / name / "1" / "model.onnx", "cpu")
    with grpc.insecure_channel(server.address) as channel:
        stub = explainer_pb2_grpc.ExplainerServiceStub(channel)
        asked = explainer_pb2.CompileGraphRequest(model=explainer_pb2.ModelRef(name=name))
        return Session(b"".join(reply.chunk.data for reply in stub.CompileGraph(asked)), "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--name", default="serving-cpu-2-cores", help="of the file under results/")
    given = parser.parse_args()
    load = os.getloadavg()
    head = [
        f"# {given.name}",
        "",
        f"* date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"* machine: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        f"* versions: Python {platform.python_version()}, "
        + ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("onnxplain", "grpcio", "protobuf")),
        f"* load before: {', '.join(f'{one:.2f}' for one in load)}",
        f"* set-up: float32, one row a call, CPU, default threads, {given.rounds} rounds × {given.seconds:g} s; "
        "callers on the same machine; batching puts at most 8 rows into a run",
        f"* reproduce: `python benchmarks/serving.py --rounds {given.rounds} --seconds {given.seconds:g}`",
        "",
    ]
    body: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "models")
        folder.mkdir()
        for name in NAMES:
            shutil.copytree(MODELS / name, folder / name)
        servers: dict[str, Server] = {}
        try:
            for name, flags in SERVERS.items():
                servers[name] = Server(folder, flags)
            for name in NAMES:
                for served in (name, f"{name}.explain"):
                    found = measured(
                        servers, served, bare_session(served, servers["batching"]), given.rounds, given.seconds
                    )
                    body += table(served, found)
                    print("\n".join(body[-14:]), flush=True)
        finally:
            for server in servers.values():
                server.stop()
    (HERE / "results" / f"{given.name}.md").write_text("\n".join([*head, *body]).rstrip() + "\n")


if __name__ == "__main__":
    main()
