"""The table of the zoo: python -m tests.oracle.zoo timm|transformers [names] [--exporter …] [--out FILE].

Rows are kept as lines of JSON beside the table, so that a run may be ended and taken up again.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import inspect
import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from .specimens import CACHE, written
from .verdicts import GOOD, METHODS, Verdict, judged

CACHED = bool(os.environ.get("ONNXPLAIN_ZOO_CACHE"))
LIMIT = 90  # seconds to export one architecture, and again to judge it


def specimens(kind: str) -> ModuleType:
    """zoo_timm or zoo_transformers."""
    return importlib.import_module(f".zoo_{kind}", __package__)


def subjects(kind: str) -> list[tuple[str, bool]]:
    """(name, by the newer exporter) of every specimen of `timm` or `transformers`."""
    module = specimens(kind)
    return [(name, False) for name in module.ARCHITECTURES] + [(name, True) for name in module.DYNAMO]


def verdict(kind: str, name: str, dynamo: bool, cache: Path = CACHE, limit: int = 0) -> Verdict:
    """Export what is not exported yet, and judge it. limit: seconds for either, after which this process ends."""
    signal.alarm(limit)
    try:
        folder = written(f"{kind}.{name}", lambda: specimens(kind).build(name), dynamo=dynamo, cache=cache)
    except Exception as error:
        found = Verdict.of(name, "export", " ".join(f"{type(error).__name__}: {error}".split())[:1000])
    else:
        signal.alarm(limit)
        found = judged(folder, name)
    signal.alarm(0)
    found.exporter = exporter(dynamo)
    return found


def exporter(dynamo: bool) -> str:
    """As in the table."""
    return "dynamo" if dynamo else "torchscript"


def apart(kind: str, name: str, dynamo: bool) -> Verdict:
    """The same in a child: a session that reads out of bounds ends that child only."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            pipe.write(verdict(kind, name, dynamo, limit=LIMIT).line())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        line = pipe.read()
    _, status = os.waitpid(child, 0)
    if line:
        return Verdict(**json.loads(line))
    if status == signal.SIGALRM:
        found = Verdict.of(name, "slow", f"more than {LIMIT} s")
    else:
        found = Verdict.of(name, "crash", f"ended with status {status}")
    found.exporter = exporter(dynamo)
    return found


def surprise(kind: str, found: Verdict) -> str:
    """How a verdict differs from the expected outcomes of its module; empty where it does not.

    A refusal has to be on the list, for the reason on the list; one that is refused no longer has to leave it.
    """
    module = specimens(kind)
    title = f"{found.name} (dynamo)" if found.exporter == "dynamo" else found.name
    expected = dict.fromkeys(found.verdicts, ("", ""))
    for name in (found.name, title):  # what both exporters share, then this one's
        if name in module.REFUSED:
            expected = dict.fromkeys(found.verdicts, ("refused", module.REFUSED[name]))
        elif name in module.REFUSED_RELEVANCE:
            refused = "refused", f"no relevance rule for {module.REFUSED_RELEVANCE[name]}"
            expected = {method: ("", "") if method == "gradient" else refused for method in found.verdicts}
    if title in module.UNEXPORTED:
        expected = dict.fromkeys(found.verdicts, ("export", module.UNEXPORTED[title]))
    lines = []
    for method, word in found.verdicts.items():
        wanted, reason = expected[method]
        why = found.why.get(method, "")
        if not (word == wanted and reason in why if wanted else word in GOOD):
            lines.append(f"{title} {method}: {word} {why}; expected: {wanted or ' or '.join(GOOD)} {reason}")
    return "\n".join(lines)


def table(verdicts: Iterable[Verdict]) -> str:
    """Markdown: one row an architecture and exporter."""
    heads = ("architecture", "exporter", "nodes", *METHODS, "seconds")
    rows = [f"| {' | '.join(heads)} |", "| --- | --- | ---: |" + " --- |" * len(METHODS) + " ---: |"]
    for v in verdicts:
        cells = [" ".join(f"{v.verdicts[m]} {v.why.get(m, '')}".split())[:200].replace("|", "/") for m in METHODS]
        shape = f"{v.exporter}, batch {v.batch}" if v.batch else v.exporter
        rows.append(f"| {v.name} | {shape} | {v.nodes} | {' | '.join(cells)} | {v.seconds:.0f} |")
    return "\n".join(rows)


def counts(verdicts: Iterable[Verdict]) -> dict[str, dict[str, int]]:
    """Exporter and method -> verdict -> how many."""
    found: dict[str, Any] = collections.defaultdict(collections.Counter)
    for v in verdicts:
        for method in METHODS:
            found[f"{v.exporter} {method}"][v.verdicts[method]] += 1
    return {key: dict(counter) for key, counter in found.items()}


def main() -> None:
    """Judge a zoo, one architecture after another, and print the table."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    parser.add_argument("kind", choices=("timm", "transformers"))
    parser.add_argument("names", nargs="*", help="these, in this order; all, if none is named")
    parser.add_argument("--out", type=Path, help="write the table here after every row; what is there is kept")
    parser.add_argument("--exporter", choices=("torchscript", "dynamo"))
    arguments = parser.parse_intermixed_args()
    import torch

    torch.set_num_threads(1)
    rows = arguments.out.with_suffix(".jsonl") if arguments.out else None
    kept = [Verdict(**json.loads(line)) for line in rows.read_text().splitlines()] if rows and rows.exists() else []
    found = {(v.name, v.exporter): v for v in kept}
    pairs = subjects(arguments.kind)
    if arguments.names:
        pairs = [pair for name in arguments.names for pair in pairs if pair[0] == name]
    for name, dynamo in pairs:
        key = name, exporter(dynamo)
        if arguments.exporter not in (None, key[1]) or (key in found and not arguments.names):
            continue
        found[key] = apart(arguments.kind, name, dynamo)
        print(found[key].line(), surprise(arguments.kind, found[key]), flush=True)
        if rows:
            rows.write_text("".join(f"{v.line()}\n" for v in found.values()))
            arguments.out.write_text(f"{table(found.values())}\n")
    print(json.dumps(counts(found.values())))


if __name__ == "__main__":
    main()
