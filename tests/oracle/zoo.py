"""The table of the zoo: python -m tests.oracle.zoo timm|transformers [--exporter …] [--out FILE] [names]."""

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
from typing import Any

from .specimens import CACHE, written
from .verdicts import METHODS, Verdict, judged

CACHED = bool(os.environ.get("ONNXPLAIN_ZOO_CACHE"))
LIMIT = 240  # seconds for one architecture


def subjects(kind: str) -> list[tuple[str, bool]]:
    """(name, by the newer exporter) of every specimen of `timm` or `transformers`."""
    module = importlib.import_module(f".zoo_{kind}", __package__)
    return [(name, False) for name in module.ARCHITECTURES] + [(name, True) for name in module.DYNAMO]


def verdict(kind: str, name: str, dynamo: bool, cache: Path = CACHE) -> Verdict:
    """Export what is not exported yet, and judge it."""
    module = importlib.import_module(f".zoo_{kind}", __package__)
    title = f"{name} (dynamo)" if dynamo else name
    try:
        folder = written(f"{kind}.{name}", lambda: module.build(name), dynamo=dynamo, cache=cache)
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Verdict(title, verdicts=dict.fromkeys(METHODS, "export"), why=dict.fromkeys(METHODS, line))
    return judged(folder, title)


def apart(kind: str, name: str, dynamo: bool) -> Verdict:
    """The same in a child: a session that reads out of bounds ends that child only."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        signal.alarm(LIMIT)
        with os.fdopen(writing, "w") as pipe:
            pipe.write(verdict(kind, name, dynamo).line())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        line = pipe.read()
    _, status = os.waitpid(child, 0)
    if line:
        return Verdict(**json.loads(line))
    title = f"{name} (dynamo)" if dynamo else name
    return Verdict(title, verdicts={"process": "crash"}, why={"process": f"ended with status {status}"})


def table(verdicts: Iterable[Verdict]) -> str:
    """Markdown: one row an architecture."""
    rows = [
        "| architecture | nodes | s | " + " | ".join(METHODS) + " |",
        "| --- | ---: | ---: |" + " --- |" * len(METHODS),
    ]
    for v in verdicts:
        cells = [f"{v.verdicts.get(m, v.verdicts.get('process', ''))} {v.why.get(m, '')}".strip() for m in METHODS]
        rows.append(
            f"| {v.name} | {v.nodes} | {v.seconds:.0f} | " + " | ".join(c.replace("|", "/") for c in cells) + " |"
        )
    return "\n".join(rows)


def counts(verdicts: Iterable[Verdict]) -> dict[str, dict[str, int]]:
    """Method -> verdict -> how many."""
    found: dict[str, Any] = {method: collections.Counter() for method in METHODS}
    for v in verdicts:
        for method in METHODS:
            found[method][v.verdicts.get(method, v.verdicts.get("process", ""))] += 1
    return {method: dict(counter) for method, counter in found.items()}


def main() -> None:
    """Judge a zoo, one architecture after another, and print the table."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    parser.add_argument("kind", choices=("timm", "transformers"))
    parser.add_argument("names", nargs="*", help="all, if none is named")
    parser.add_argument("--out", type=Path, help="write the table here, after every row")
    parser.add_argument("--torchscript-only", action="store_true")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    found: list[Verdict] = []
    for name, dynamo in subjects(arguments.kind):
        if (arguments.names and name not in arguments.names) or (dynamo and arguments.torchscript_only):
            continue
        found.append(apart(arguments.kind, name, dynamo))
        print(
            json.dumps({found[-1].name: found[-1].verdicts, "s": found[-1].seconds, "why": found[-1].why}), flush=True
        )
        if arguments.out:
            arguments.out.write_text(table(found) + "\n")
    print(json.dumps(counts(found)))


if __name__ == "__main__":
    main()
