"""`onnxplain compile`: write the explanation graph."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from onnxplain.cli.command import Command
from onnxplain.cli.options import explainer_of, request_options, sample_options, subject_of
from onnxplain.cli.recipe_words import RecipeWords, recipe_options, recipes
from onnxplain.compile import Request, cuda
from onnxplain.inputs import Preprocessing


@click.command("compile", cls=Command)
@click.argument("model")
@click.option("--method", default=None, metavar="NAME", help="Method (see `onnxplain methods`); default lrp.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write; default <model>.<method>.onnx here."
)
@click.option(
    "--seed", type=click.Choice(["tensor", "index"]), default="tensor", help="Ask by a float seed or by class index."
)
@click.option("--fold", is_flag=True, help="Store derived weights instead of leaving them to onnxruntime.")
@recipe_options
@request_options
@sample_options
def compile_command(
    model: str, method: str | None, output: Path | None, seed: str, fold: bool, words: RecipeWords,
    explain: tuple[str, ...], head: str | None, attribute_to: tuple[str, ...],
    keep: tuple[str, ...], ledger: bool, sample: Path | None, shapes: tuple[str, ...],
) -> None:  # fmt: skip
    """Write one ONNX graph that returns MODEL's answer and its relevances; any onnxruntime runs it."""
    begun = time.perf_counter()
    request = Request(explain, head or "", seed, attribute_to, keep, ledger, fold)
    resolved, subject = subject_of(model, request, sample=sample, shapes=shapes)
    (recipe,) = recipes([method] if method else [], words, resolved.settings, [])
    bounds = Preprocessing.of(resolved.settings).bounds(subject.inputs)
    explainer = explainer_of(subject, recipe, bounds=bounds)
    path = output or Path(f"{resolved.name}.{recipe.method}.onnx")
    written = time.perf_counter()
    explainer.save(path, put_aside=True)
    seconds: dict[str, Any] = {**subject.seconds, "backward": explainer.compiled.seconds}
    checked = time.perf_counter()
    found = explainer.verify(path)
    seconds |= {"write": checked - written, "verify": time.perf_counter() - checked}
    for note in (*explainer.notes, *found, *cuda.notes(subject.normalised.model.graph)):
        click.echo(f"note: {note}", err=True)
    size = path.stat().st_size / 1e6
    graph = explainer.compiled.model.graph
    click.echo(f"{path}  {size:.1f} MB, {len(list(graph))} nodes, method {recipe.method}")
    click.echo(f"  in   {', '.join(str(v.name) for v in graph.inputs)}")
    click.echo(f"  out  {', '.join(str(v.name) for v in graph.outputs)}")
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    click.echo(f"  time {time.perf_counter() - begun:.2f} s: {parts}")
