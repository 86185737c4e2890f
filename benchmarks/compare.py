"""Time onnxplain and its peers against the plain forward pass, and hold the ratios against the goals.

    python benchmarks/compare.py vgg16 resnet50              # about a quarter of an hour on two cores
    python benchmarks/compare.py alexnet --rounds 3 --sets 1 --contenders ort-forward torch-gradient

Every contender is a process of its own (worker.py). In each round every contender of a group runs once, in shuffled
order, one at a time; a ratio compares two runs of one round, so that a slow minute slows both. A group is started anew
for every set. Reported: the median over all rounds of all sets and the range from the 10th to the 90th percentile. A
goal is met if the whole range is inside it, missed if the whole range is outside, else within noise.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from worker import CONTENDERS, HERE

WORKER = HERE / "worker.py"
BASE = "ort-forward"
# Seconds between two turns. onnxruntime's idle threads were seen to spin for 30 to 50 ms after a run, torch's for 10.
PAUSE = 0.1

# Who runs in one round. Groups keep the memory of the processes that are alive together below 10 GB for VGG16.
GROUPS = {
    "onnxplain": [
        BASE,
        "onnxplain-gradient",
        "onnxplain-epsilon",
        "onnxplain-epsilon_plus_flat",
        "onnxplain-epsilon_alpha2_beta1",
    ],
    "gradients": [BASE, "onnxplain-gradient", "torch-forward", "torch-gradient", "captum-saliency", "onnx_ad-gradient"],
    "zennit": [
        BASE,
        "onnxplain-epsilon_plus_flat",
        "onnxplain-epsilon_alpha2_beta1",
        "zennit-epsilon_plus_flat",
        "zennit-epsilon_alpha2_beta1",
    ],
    "targets": [BASE, "onnxplain-gradient-10targets", "onnxplain-epsilon_plus_flat-10targets"],
}


class Goal(NamedTuple):
    """time(contender) / time(over) / share, at most or at least `bound`, on these networks."""

    networks: tuple[str, ...]
    contender: str
    over: str
    sense: str
    bound: float
    share: int = 1

    def verdict(self, low: float, high: float) -> str:
        """Of the 10-90 % range."""
        if self.sense == "≥":
            low, high, bound = -high, -low, -self.bound
        else:
            bound = self.bound
        return "met" if high <= bound else "missed" if low > bound else "within noise"


BOTH = ("vgg16", "resnet50")
GOALS = [
    Goal(BOTH, "onnxplain-gradient", BASE, "≤", 2.1),
    Goal(BOTH, "onnxplain-epsilon", BASE, "≤", 2.3),
    Goal(BOTH, "onnxplain-epsilon_plus_flat", BASE, "≤", 3.0),
    Goal(BOTH, "onnxplain-epsilon_alpha2_beta1", BASE, "≤", 4.5),
    Goal(("vgg16",), "zennit-epsilon_plus_flat", "onnxplain-epsilon_plus_flat", "≥", 2.2),
    Goal(("resnet50",), "zennit-epsilon_plus_flat", "onnxplain-epsilon_plus_flat", "≥", 4.0),
    Goal(("resnet50",), "onnxplain-gradient-10targets", BASE, "≤", 1.0, share=10),
]

Round = dict[str, float]  # contender -> seconds


# --- measuring --------------------------------------------------------------------------------------------------------


class Worker:
    """A running contender."""

    def __init__(self, contender: str, network: str, batch: int, threads: int):
        self.contender = contender
        command = [sys.executable, WORKER, "serve", contender, network, "--batch", batch, "--threads", threads]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  started() closes it; a pipe nobody reads would fill up and block the worker
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            bufsize=1,
        )
        assert self.process.stdin and self.process.stdout
        self.orders, self.answers = self.process.stdin, self.process.stdout
        if self.answers.readline().strip() != "ready":
            raise self.failure()

    def go(self) -> float:
        """Seconds one run took, inside the worker."""
        with contextlib.suppress(BrokenPipeError):
            self.orders.write("go\n")
        answer = self.answers.readline()
        if not answer:
            raise self.failure()
        return float(answer)

    def stop(self) -> float:
        """Its peak memory in GiB."""
        answer, _ = self.process.communicate()
        return float(json.loads(answer)["peak_gib"])

    def failure(self) -> RuntimeError:
        """Why there was no answer, in the last words of the worker."""
        code = self.process.wait()
        self.errors.seek(0)
        return RuntimeError(f"{self.contender} ended with {code}: {_last_line(self.errors.read())}")


def _last_line(text: str) -> str:
    """Without the path of this checkout: results are committed."""
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "no message")
    return last.replace(f"{HERE.parent}{os.sep}", "")


@contextlib.contextmanager
def started(contenders: list[str], network: str, batch: int, threads: int) -> Iterator[dict[str, Worker]]:
    """Workers of the contenders, one started after the other, all ended at the end."""
    workers: dict[str, Worker] = {}
    try:
        for contender in contenders:
            workers[contender] = Worker(contender, network, batch, threads)
        yield workers
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.wait()
            worker.errors.close()


def measured(
    contenders: list[str], network: str, options: argparse.Namespace, rng: random.Random
) -> tuple[list[Round], dict[str, float]]:
    """One set: the rounds of freshly started processes, and their peak memory in GiB."""
    with started(contenders, network, options.batch, options.threads) as workers:
        rounds = []
        for _ in range(options.rounds):
            order = rng.sample(contenders, len(contenders))
            taken: Round = {}
            for contender in order:
                time.sleep(options.pause)
                taken[contender] = workers[contender].go()
            rounds.append(taken)
        return rounds, {contender: worker.stop() for contender, worker in workers.items()}


def prepared(contenders: list[str], network: str) -> tuple[list[str], dict[str, str]]:
    """Those whose files could be written, and for the others the reason."""
    ready, refused = [], {}
    for contender in contenders:
        command = [sys.executable, str(WORKER), "prepare", contender, network]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            refused[contender] = _last_line(done.stderr)
        else:
            ready.append(contender)
    return ready, refused


# --- reporting --------------------------------------------------------------------------------------------------------


def ratios(sets: list[list[Round]], contender: str, over: str, share: int = 1) -> list[list[float]]:
    """Per set, per round."""
    return [[taken[contender] / taken[over] / share for taken in rounds] for rounds in sets]


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return statistics.median(values), tenths[0], tenths[-1]


def flat(lists: list[list[float]]) -> list[float]:
    """All rounds of all sets."""
    return [value for values in lists for value in values]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def group_table(contenders: list[str], sets: list[list[Round]], memory: list[dict[str, float]]) -> str:
    """What one group took, against the forward pass of the same rounds."""
    rows = []
    for contender in contenders:
        milliseconds = 1000 * statistics.median(taken[contender] for rounds in sets for taken in rounds)
        by_set = ratios(sets, contender, BASE)
        middle, low, high = spread(flat(by_set))
        medians = ", ".join(f"{statistics.median(values):.2f}" for values in by_set)
        peak = max(peaks[contender] for peaks in memory)
        row = [f"{milliseconds:.1f}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}", medians, f"{peak:.2f}"]
        rows.append([contender, *row])
    return table(["contender", "ms", "× forward", "10–90 %", "medians of the sets", "peak GiB"], rows)


def goal_rows(network: str, results: dict[str, list[list[Round]]]) -> list[list[str]]:
    """One row per goal and network, from the first group in which both of its contenders ran."""
    rows = []
    for goal in GOALS:
        if network not in goal.networks:
            continue
        what = f"{goal.contender} / {goal.over}" + (f" / {goal.share}" if goal.share > 1 else "")
        bound = f"{goal.sense} {goal.bound}"
        sets = next((s for s in results.values() if {goal.contender, goal.over} <= set(s[0][0])), None)
        if sets is None:
            rows.append([network, what, bound, "", "", "not measured"])
            continue
        middle, low, high = spread(flat(ratios(sets, goal.contender, goal.over, goal.share)))
        rows.append([network, what, bound, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", goal.verdict(low, high)])
    return rows


def all_runs(contenders: list[str], sets: list[list[Round]]) -> str:
    """Every time that was taken, in ms."""
    rows = [
        [contender, str(index), " ".join(f"{1000 * taken[contender]:.1f}" for taken in rounds)]
        for contender in contenders
        for index, rounds in enumerate(sets, 1)
    ]
    return table(["contender", "set", "ms, round by round"], rows)


def processor() -> str:
    """Its model name, as far as the system says."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def machine(options: argparse.Namespace) -> str:
    """What a reader needs to judge the numbers."""
    packages = ["onnxplain", "onnxruntime-gpu", "onnxruntime", "torch", "zennit", "captum", "onnx-ad", "onnx"]
    versions = [f"{package} {version(package)}" for package in packages if version(package) != "not installed"]
    facts = {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "load before": ", ".join(f"{load:.2f}" for load in os.getloadavg()),
        "set-up": f"batch {options.batch}, float32, random weights, CPU, "
        f"{options.threads or 'default'} threads, {options.sets} sets × {options.rounds} rounds",
        "reproduce": f"`python benchmarks/compare.py {shlex.join(sys.argv[1:])}`",
    }
    return "\n".join(f"* {name}: {fact}" for name, fact in facts.items()) + "\n"


def main() -> None:
    """Measure the networks named, print tables, write them to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["vgg16", "resnet50"], help="of tests/oracle/networks.py")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="one group of these instead")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sets", type=int, default=3, help="how often the processes are started anew")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: what torch and onnxruntime choose themselves")
    parser.add_argument("--pause", type=float, default=PAUSE, help="seconds between two turns")
    parser.add_argument("--random-seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--name", help="of the file in benchmarks/results; default: the networks")
    options = parser.parse_args()

    groups = {"chosen": options.contenders} if options.contenders else {name: GROUPS[name] for name in options.groups}
    facts, rng = machine(options), random.Random(options.random_seed)
    summary: list[list[str]] = []
    tables, raw = [], []
    for network in options.networks:
        wanted = list(dict.fromkeys([BASE, *(contender for group in groups.values() for contender in group)]))
        ready, refused = prepared(wanted, network)
        for contender, reason in refused.items():
            print(f"{network}: without {contender}: {reason}", flush=True)
        results: dict[str, list[list[Round]]] = {}
        for name, group in groups.items():
            contenders = [contender for contender in dict.fromkeys([BASE, *group]) if contender in ready]
            if contenders == [BASE] != group:
                continue  # nobody to compare with
            try:
                sets, memory = zip(
                    *(measured(contenders, network, options, rng) for _ in range(options.sets)), strict=True
                )
            except RuntimeError as error:
                refused[f"the group {name}"] = str(error)
                print(f"{network}: without the group {name}: {error}", flush=True)
                continue
            results[name] = list(sets)
            tables.append(f"### {network}, {name}\n\n{group_table(contenders, list(sets), list(memory))}")
            raw.append(f"### {network}, {name}\n\n{all_runs(contenders, list(sets))}")
            print(tables[-1], flush=True)
        if refused:
            lines = [f"* without {contender}: {reason}" for contender, reason in refused.items()]
            tables.append(f"### {network}, left out\n\n" + "\n".join(lines) + "\n")
        summary += goal_rows(network, results)

    goals = table(["network", "ratio", "goal", "median", "10–90 %", "verdict"], summary) if summary else ""
    print(goals)
    target = HERE / "results" / f"{options.name or '-'.join(options.networks)}.md"
    target.parent.mkdir(exist_ok=True)
    parts = [f"# {target.stem}\n", facts, *(["## Goals\n", goals] if goals else [])]
    parts += ["## Times\n", *tables, "## All runs\n", *raw]
    target.write_text("\n".join(parts), encoding="utf-8")
    print(f"written: {target.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
