"""Calls to a server at a number or at a rate, from a process of their own; bytes only, so that they cost little."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np

from onnxplain.runtime.session import Array
from onnxplain.wire.inference import INFERENCE, RPCS

INFER, STATISTICS = f"/{INFERENCE}/ModelInfer", f"/{INFERENCE}/ModelStatistics"
WARM_UP = 5  # calls of every connection that are not counted
CHANNELS = 8  # connections of one process at most: one alone is bounded by its streams


@dataclass(frozen=True)
class Job:
    """What one process sends. clients: of a closed loop; rate: calls a second of an open loop, 0: closed.

    watch: the served name whose runs and rows are counted meanwhile.
    """

    address: str
    content: bytes
    clients: int
    rate: float
    seconds: float
    path: str = INFER
    timeout: float = 60.0
    watch: str = ""

    def shared(self, processes: int, turns: int = 1) -> list[Job]:
        """The same work for several processes and in several turns."""
        seconds = self.seconds / turns
        if self.rate:
            each_rate = replace(self, rate=self.rate / processes, seconds=seconds)
            return [each_rate, *([replace(each_rate, watch="")] * (processes - 1))]
        base, more = divmod(self.clients, processes)
        each = [base + (n < more) for n in range(processes)]
        found = [replace(self, clients=count, seconds=seconds, watch="") for count in each if count]
        return [replace(found[0], watch=self.watch), *found[1:]]


@dataclass(frozen=True)
class Outcome:
    """What became of the calls. begun: when each was due, as the system's clock counts; took: seconds to its end."""

    begun: Array
    took: Array
    codes: list[str]
    seconds: float
    cpu: float  # seconds of processor time of the process that asked
    runs: int = 0  # of the server, and their rows
    rows: int = 0

    @staticmethod
    def joined(outcomes: Sequence[Outcome]) -> Outcome:
        """Of several processes that ran at the same time."""
        return Outcome(
            np.concatenate([o.begun for o in outcomes]),
            np.concatenate([o.took for o in outcomes]),
            [code for o in outcomes for code in o.codes],
            max(o.seconds for o in outcomes),
            sum(o.cpu for o in outcomes),
            sum(o.runs for o in outcomes),
            sum(o.rows for o in outcomes),
        )

    def of(self, *codes: str) -> Array:
        """Seconds of the calls that ended with one of these codes."""
        return self.took[np.isin(np.array(self.codes, object), codes)]

    def rate(self) -> float:
        """Calls answered in a second."""
        return len(self.of("OK")) / self.seconds

    def line(self, seconds: float) -> dict[str, Any]:
        """The figures of a table; latencies are of answers only. seconds: that the calls were made in."""
        good, counts = self.of("OK"), Counter(self.codes)
        p50, p90, p99 = np.percentile(good, (50, 90, 99)) if len(good) else (float("nan"),) * 3
        refused, late = counts.pop("RESOURCE_EXHAUSTED", 0), counts.pop("DEADLINE_EXCEEDED", 0)
        counts.pop("OK", None)
        return {
            "calls": len(self.codes),
            "calls_per_second": round(len(good) / seconds, 2),
            "p50_ms": round(1e3 * float(p50), 3),
            "p90_ms": round(1e3 * float(p90), 3),
            "p99_ms": round(1e3 * float(p99), 3),
            "refused": refused,
            "late": late,
            "failed": sum(counts.values()),
            "rows_per_run": round(self.rows / max(1, self.runs), 2),
            "generator_ms": round(1e3 * self.cpu / max(1, len(self.codes)), 3),
        }


def generate(job: Job) -> Outcome:
    """Run a job in this process."""
    return asyncio.run(_generate(job))


async def _generate(job: Job) -> Outcome:
    count = min(CHANNELS, max(1, job.clients or CHANNELS))
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    channels = [grpc.aio.insecure_channel(job.address, options=options) for _ in range(count)]
    calls: list[Any] = [channel.unary_unary(job.path) for channel in channels]
    begun: list[float] = []
    took: list[float] = []
    codes: list[str] = []

    async def one(call: Any, due: float) -> None:
        code = "OK"
        try:
            await call(job.content, timeout=job.timeout)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        took.append(time.monotonic() - due)
        begun.append(due)
        codes.append(code)

    async def client(call: Any, until: float) -> None:
        while (now := time.monotonic()) < until:
            await one(call, now)

    try:
        for call in calls:
            for _ in range(WARM_UP):
                await one(call, time.monotonic())
        for kept in (begun, took, codes):
            kept.clear()
        before = await _runs(channels[0], job.watch)
        cpu, start = time.process_time(), time.monotonic()
        if job.rate:
            tasks = set()
            for number in range(int(job.rate * job.seconds)):
                due = start + number / job.rate
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                task = asyncio.create_task(one(calls[number % count], due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
        else:
            await asyncio.gather(*(client(calls[n % count], start + job.seconds) for n in range(job.clients)))
        seconds, cpu = time.monotonic() - start, time.process_time() - cpu
        after = await _runs(channels[0], job.watch)
        counted = after[0] - before[0], after[1] - before[1]
        return Outcome(np.array(begun), np.array(took), codes, seconds, cpu, *counted)
    finally:
        for channel in channels:
            await channel.close()


async def _runs(channel: grpc.aio.Channel, name: str) -> tuple[int, int]:
    """(runs, rows) of a model so far; zeros where nobody wants to know or the server does not say."""
    if not name:
        return 0, 0
    method = RPCS["ModelStatistics"]
    call: Any = channel.unary_unary(STATISTICS, method.request.SerializeToString, method.response.FromString)
    try:
        found = (await call(method.request(name=name), timeout=10)).model_stats
    except grpc.aio.AioRpcError:
        return 0, 0
    return (found[0].execution_count, found[0].inference_count) if found else (0, 0)
