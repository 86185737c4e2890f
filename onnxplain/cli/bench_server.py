"""`onnxplain bench HOST:PORT`: how fast a running server answers, and how much of bare onnxruntime that is."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np

from onnxplain.cli.bench_load import Job, Outcome, generate
from onnxplain.cli.command import Command, refuse_idle
from onnxplain.errors import InputError, OnnxplainError, UsageError
from onnxplain.runtime.session import Array, Session
from onnxplain.wire.inference import INFERENCE, RPCS
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import DATATYPES, datatype_of, to_raw

ADDRESS = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")
WARM_UP = 10  # calls not counted
ROUNDS = 4  # turns of the server and of bare onnxruntime, one after the other


@click.command("bench", cls=Command)
@click.argument("address", metavar="HOST:PORT")
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="M, or M.explain[.RECIPE]; default all. Repeatable."
)
@click.option(
    "--concurrency-range", "concurrency", default="1,8,32", show_default=True, help="1:32 (doubling) or 1,8,32."
)
@click.option(
    "--rate", type=click.FloatRange(0.1), default=None, help="Open loop: so many calls a second, come what may."
)
@click.option("--duration", type=click.FloatRange(0.2), default=5.0, show_default=True, help="Seconds of each line.")
@click.option("--processes", type=click.IntRange(1, 16), default=1, show_default=True, help="That make the calls.")
@click.option("--rows", type=click.IntRange(1), default=1, show_default=True, help="Of one call.")
@click.option(
    "--bare", type=click.Path(exists=True, path_type=Path), help="The same graph in onnxruntime, taking turns."
)
@click.option("--threads", type=int, default=0, help="Of bare onnxruntime; 0: all.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--csv", "as_csv", is_flag=True, help="For tables.")
def bench_server(
    address: str, models: tuple[str, ...], concurrency: str, rate: float | None, duration: float, processes: int,
    rows: int, bare: Path | None, threads: int, as_json: bool, as_csv: bool,
) -> None:  # fmt: skip
    """Latency and throughput of a running server, for one model after the other.

    Closed loop: each of so many clients sends its next call when the last one is answered. Open loop (--rate): calls
    are sent at fixed times and their latency counts from there, so that a slow server is not asked less.
    """
    if bare is not None and len(models) != 1:
        raise UsageError("--bare is the file of one model: name it by --model.")
    if rate:
        refuse_idle(["concurrency"], "--rate sends calls at fixed times, however many are open.")
    if bare is None:
        refuse_idle(["threads"], "it is of bare onnxruntime; give --bare FILE.")
    if as_json and as_csv:
        raise UsageError("--json or --csv, not both.")
    clients = [0] if rate else steps(concurrency)
    lines = []
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool, grpc.insecure_channel(address) as channel:
        for name in models or served(channel):
            arrays = feeds(channel, name, rows)
            content = request(name, arrays)
            for count in clients:
                job = Job(address, content, count, rate or 0.0, duration, watch=name)
                session = Session(bare, "auto", threads) if bare is not None else None
                line = measured(pool, processes, job, session, arrays)
                line["rows_per_second"] = round(rows * line["calls_per_second"], 2)
                lines.append({"model": name, "clients": count, "rate": rate, **line})
    if as_json:
        click.echo(json.dumps({"server": address, "seconds": duration, "rows": rows, "lines": lines}, indent=2))
    else:
        click.echo(as_text(lines, as_csv))


def steps(text: str) -> list[int]:
    """1:32 -> 1, 2, 4, … 32; 1,8,32 as it says."""
    try:
        found = [int(part) for part in re.split("[:,]", text)]
    except ValueError:
        found = [0]
    if min(found) < 1 or max(found) > 1024:
        raise UsageError(f"--concurrency-range {text}: give 1:32 or 1,8,32, from 1 to 1024.")
    if ":" not in text:
        return found
    low, high = found[0], found[1]
    return [low << n for n in range(11) if low << n <= high]


def measured(
    pool: ProcessPoolExecutor, processes: int, job: Job, session: Session | None, arrays: dict[str, Array]
) -> dict[str, Any]:
    """One line of the table: the server, in turns with bare onnxruntime where there is a session."""
    turns = ROUNDS if session is not None else 1
    shares = job.shared(processes, turns)
    outcomes: list[Outcome] = []
    bare: list[Array] = []
    ratios = []
    for _ in range(turns):
        found = Outcome.joined(list(pool.map(generate, shares)))
        outcomes.append(found)
        if session is not None:
            bare.append(alone(session, arrays, shares[0].seconds))
            ratios.append(found.rate() * float(np.mean(bare[-1])))
    line = Outcome.joined(outcomes).line(sum(o.seconds for o in outcomes))
    if bare:
        each = np.concatenate(bare)
        line["bare_p50_ms"] = round(1e3 * float(np.median(each)), 3)
        line["over_bare_ms"] = round(line["p50_ms"] - line["bare_p50_ms"], 3)
        line["of_bare_throughput"] = round(float(np.median(ratios)), 3)
    return line


def alone(session: Session, arrays: dict[str, Array], seconds: float) -> Array:
    """Seconds of each run of bare onnxruntime, one after the other."""
    for _ in range(WARM_UP):
        session.run(arrays)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        begun = time.perf_counter()
        session.run(arrays)
        times.append(time.perf_counter() - begun)
    return np.array(times)


def ask(channel: grpc.Channel, method: str, request: Any) -> Any:
    """One call of the Open Inference Protocol. Raises InputError with the server's own words."""
    found = RPCS[method]
    call = channel.unary_unary(f"/{INFERENCE}/{method}", found.request.SerializeToString, found.response.FromString)
    try:
        return call(request, timeout=30)
    except grpc.RpcError as error:
        code, text = error.code().name, error.details()
        raise InputError(f"the server says {code}: {text}") from None


def served(channel: grpc.Channel) -> list[str]:
    """Names of all models that are ready, explanations among them."""
    names = {model.name for model in ask(channel, "RepositoryIndex", oip.RepositoryIndexRequest(ready=True)).models}
    if not names:
        raise InputError("no model is ready on this server; wait, or look at its log.")
    return sorted(names)


def feeds(channel: grpc.Channel, name: str, rows: int) -> dict[str, Array]:
    """Random input of a served model. Seeds are one-hot; axes of any length are `rows` long in front, else 1."""
    found = ask(channel, "ModelMetadata", oip.ModelMetadataRequest(name=name))
    if rows > 1 and not any(port.shape and port.shape[0] < 0 for port in found.inputs):
        raise UsageError(f"--rows {rows}: axis 0 of {name}'s inputs is fixed; its batches have one length.")
    rng = np.random.default_rng(0)
    arrays = {}
    for port in found.inputs:
        shape = [side if side >= 0 else rows if n == 0 else 1 for n, side in enumerate(port.shape)]
        if port.datatype not in DATATYPES or port.datatype == "BYTES":
            raise OnnxplainError(
                f"{name}: random {port.datatype} for {port.name} would mean nothing; bench another model."
            )
        array = rng.standard_normal(shape) if not port.name.endswith(".seed") else np.zeros(shape)
        if port.name.endswith(".seed"):
            array.reshape(-1 if array.ndim < 2 else (len(array), -1))[..., 0] = 1
        arrays[port.name] = np.abs(array).astype(DATATYPES[port.datatype])
    return arrays


def request(name: str, arrays: dict[str, Array]) -> bytes:
    """A ModelInferRequest, as bytes."""
    message = oip.ModelInferRequest(model_name=name)
    for key, array in arrays.items():
        message.inputs.add(name=key, datatype=datatype_of(array.dtype), shape=array.shape)
        message.raw_input_contents.append(to_raw(array))
    content: bytes = message.SerializeToString()
    return content


COLUMNS = (
    "model", "clients", "rate", "calls_per_second", "rows_per_second", "p50_ms", "p90_ms", "p99_ms", "rows_per_run",
    "refused", "late", "failed", "bare_p50_ms", "over_bare_ms", "of_bare_throughput", "generator_ms",
)  # fmt: skip


def as_text(lines: Sequence[dict[str, Any]], as_csv: bool) -> str:
    """A table for people, or the same as CSV."""
    columns = [column for column in COLUMNS if any(line.get(column) not in (None, 0, 0.0) for line in lines)]
    if as_csv:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[line.get(column, "") for column in columns] for line in lines])
        return out.getvalue().rstrip("\n")
    wide = max(len("model"), *(len(line["model"]) for line in lines))
    widths = {column: wide if column == "model" else max(8, len(column)) for column in columns}
    table = ["  ".join(column.rjust(widths[column]) for column in columns)]
    table += ["  ".join(str(line.get(column, "")).rjust(widths[column]) for column in columns) for line in lines]
    return "\n".join(table)
