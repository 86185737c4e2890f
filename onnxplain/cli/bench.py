"""`onnxplain bench`: what an explanation costs, in forward passes of the same model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import numpy as np

from onnxplain.cli.command import Command
from onnxplain.cli.options import (
    RecipeWords,
    explainer_of,
    machine_options,
    recipe_options,
    recipes,
    request_options,
    subject_of,
)
from onnxplain.compile import Request
from onnxplain.errors import OnnxplainError, UnsupportedModel
from onnxplain.explainer import Explainer
from onnxplain.inputs import Preprocessing
from onnxplain.recipes import Recipe
from onnxplain.runtime.chunking import peak_memory
from onnxplain.runtime.open import serialised
from onnxplain.runtime.session import Array, Session
from onnxplain.subject import Subject

WARM_UP = 2  # runs not counted


class Bench(Command):
    """The command for a model; HOST:PORT in its place is a running server, which has options of its own."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the one or the other command."""
        from onnxplain.cli.bench_server import ADDRESS, bench_server

        if any(ADDRESS.fullmatch(argument) for argument in args):
            return bench_server.make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(
    "bench", cls=Bench, epilog="HOST:PORT for MODEL times a running server: onnxplain bench HOST:PORT --help"
)
@click.argument("model")
@click.option("--method", "methods", multiple=True, metavar="NAME", help="Methods to time; default gradient and lrp.")
@click.option("--rounds", type=click.IntRange(3), default=9, show_default=True, help="Interleaved rounds.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--targets", type=click.IntRange(1), default=10, show_default=True, help="Targets of one image at once.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@recipe_options
@request_options
@machine_options
def bench(
    model: str, methods: tuple[str, ...], rounds: int, batch: int, targets: int, as_json: bool,
    words: RecipeWords, explain: tuple[str, ...], head: str | None,
    attribute_to: tuple[str, ...], keep: tuple[str, ...], ledger: bool, provider: str, threads: int,
) -> None:  # fmt: skip
    """Explanation time over MODEL's own forward time: medians of interleaved rounds on random input."""
    request = Request(explain, head or "", "tensor", attribute_to, keep, ledger)
    resolved, subject = subject_of(model, request, provider, threads)
    wanted, pictures = recipes(methods, words, None, ["gradient", "lrp"]), Preprocessing.of(resolved.settings)
    feeds = {name: _batched(array, batch) for name, array in subject.normalised.reference.feeds.items()}
    begun = time.perf_counter()
    forward = Session(
        subject.source.path if subject.source.path else serialised(subject.source.model), provider, threads
    )
    result: dict[str, Any] = {
        "model": resolved.name,
        "batch": batch,
        "provider": forward.providers[0],
        "seconds": {**subject.seconds, "forward session": time.perf_counter() - begun},
        "contenders": {},
    }
    runs: dict[str, Callable[[], object]] = {"forward": lambda: forward.run(feeds)}
    per: dict[str, int] = {}
    for recipe in wanted:
        try:
            background = pictures.background(subject.inputs) if recipe.background != "none" else None
            explainer = explainer_of(subject, recipe, background=background)
            if recipe.looped:
                runs[recipe.title] = partial(explainer.explain, feeds)
                if targets > 1:
                    label = f"{recipe.title}, {targets} targets, each"
                    result["contenders"][label] = {"failed": "one target at a time: it looks many times for each"}
            else:
                name = _name(recipe)
                _add(runs, per, name, explainer, subject, feeds, targets, result)
        except OnnxplainError as error:
            result["contenders"][recipe.method] = {"failed": str(error)}
    if len(runs) == 1:
        raise UnsupportedModel("; ".join(entry["failed"] for entry in result["contenders"].values()))
    times = interleaved(runs, rounds)
    base = np.array(times["forward"])
    for name, seconds in times.items():
        ratios = np.array(seconds) / base / per.get(name, 1)
        result["contenders"].setdefault(name, {}).update(
            ms=1e3 * float(np.median(seconds)), ratio=float(np.median(ratios)),
            low=float(np.quantile(ratios, 0.1)), high=float(np.quantile(ratios, 0.9)),
            runs=[round(float(r), 3) for r in ratios],
        )  # fmt: skip
    result["peak memory MB"] = peak_memory() / 1e6
    click.echo(json.dumps(result, indent=2) if as_json else _table(result))


def _name(recipe: Recipe) -> str:
    """The composite where it is not the method's own, else the method."""
    _, _, composite = recipe.title.partition("-")
    return composite or recipe.method


def _add(
    runs: dict[str, Callable[[], object]], per: dict[str, int], name: str, explainer: Explainer, subject: Subject,
    feeds: dict[str, Array], targets: int, result: dict[str, Any],
) -> None:  # fmt: skip
    begun = time.perf_counter()
    session = explainer.session
    result["contenders"][name] = {
        "compile s": explainer.compiled.seconds,
        "session s": time.perf_counter() - begun,
        "nodes": len(list(explainer.compiled.model.graph)),
    }
    seeds, many = {}, {}
    for key, source in explainer.compiled.seeds.items():
        scores = subject.forward(feeds, [source])[source]
        seeds[key] = one_hot(scores, 1)
        many[key] = one_hot(scores[:1], targets) if scores.ndim else scores
    runs[name] = lambda: session.run({**feeds, **seeds})
    label = f"{name}, {targets} targets, each"
    if targets > 1 and not explainer.compiled.streams:
        result["contenders"][label] = {"failed": "one target a run: the batch axis cannot be followed"}
    elif targets > 1:
        single = {k: v[:1] for k, v in feeds.items()}
        runs[label] = lambda: session.run({**single, **many})
        per[label] = targets


def one_hot(scores: Array, count: int) -> Array:
    """Seeds for the `count` highest entries of each row, in float32."""
    flat = scores.reshape(len(scores), -1) if scores.ndim else scores.reshape(1, 1)
    order = np.argsort(-flat, axis=1)
    seeds = np.zeros((count * len(flat), flat.shape[1]), np.float32)
    for k in range(count):
        seeds[np.arange(len(flat)) + k * len(flat), order[:, k % flat.shape[1]]] = 1
    return seeds.reshape(-1, *scores.shape[1:]) if scores.ndim else seeds.reshape(())


def _batched(array: Array, batch: int) -> Array:
    return np.resize(array, (batch, *array.shape[1:])) if array.ndim else array


def interleaved(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, taking turns in an order shuffled every round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    rng = np.random.default_rng(0)
    for turn in range(rounds + WARM_UP):
        for name in rng.permutation(list(runs)):
            begun = time.perf_counter()
            runs[name]()
            if turn >= WARM_UP:
                times[name].append(time.perf_counter() - begun)
    return times


def _table(result: dict[str, Any]) -> str:
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in result["seconds"].items())
    lines = [f"{result['model']}, batch {result['batch']}, {result['provider']}; {seconds}", ""]
    lines.append(
        f"{'':<40} {'ms':>9} {'× forward':>10} {'10–90 %':>14} {'compile s':>10} {'session s':>10} {'nodes':>6}"
    )
    for name, entry in result["contenders"].items():
        if "failed" in entry:
            lines.append(f"{name:<40} {entry['failed']}")
            continue
        spread = f"{entry['low']:.2f}–{entry['high']:.2f}"
        made = (
            f"{entry['compile s']:10.2f} {entry['session s']:10.2f} {entry['nodes']:6d}" if "compile s" in entry else ""
        )
        lines.append(f"{name:<40} {entry['ms']:9.2f} {entry['ratio']:10.2f} {spread:>14} {made}")
    lines.append(f"peak memory of the process {result['peak memory MB']:.0f} MB")
    return "\n".join(lines)
