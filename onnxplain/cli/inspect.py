"""`onnxplain inspect`: what a model is made of, and what can be explained of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from onnxplain.cli.command import Command
from onnxplain.cli.options import request_options, sample_options, subject_of
from onnxplain.cli.recipe_words import RecipeWords, recipe_options, recipes
from onnxplain.compile import Request, compile_graph, cuda
from onnxplain.coverage import coverage
from onnxplain.errors import OnnxplainError, UsageError
from onnxplain.graph.node import dims
from onnxplain.runtime.open import bytes_per_stream
from onnxplain.subject import Subject


@click.command("inspect", cls=Command)
@click.argument("model")
@click.option(
    "--method", default=None, metavar="NAME", help="Show the rule of every node for this method (default: lrp)."
)
@click.option("--nodes/--no-nodes", default=False, help="List every node with its rule.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@recipe_options
@request_options
@sample_options
def inspect(
    model: str, method: str | None, nodes: bool, as_json: bool, words: RecipeWords,
    explain: tuple[str, ...], head: str | None, attribute_to: tuple[str, ...], keep: tuple[str, ...],
    ledger: bool, sample: Path | None, shapes: tuple[str, ...],
) -> None:  # fmt: skip
    """Inputs, outputs, ops, the rule each node would get, what blocks and why. Runs nothing but a verification."""
    request = Request(explain, head or "", "tensor", attribute_to, keep, ledger)
    resolved, subject = subject_of(model, request, sample=sample, shapes=shapes)
    (recipe,) = recipes([method] if method else [], words, resolved.settings, ["lrp"])
    report = describe(subject)
    found = coverage(subject.normalised, subject.resolved, subject.request)
    chosen = coverage(subject.normalised, subject.resolved, subject.request, recipe)
    report |= {
        "coverage": found.summary(),
        "notes": [*subject.normalised.notes, *found.notes, *cuda.notes(subject.normalised.model.graph)],
        "rules": chosen.rules.get(recipe.method, {}),
    }
    report["blocking"] = chosen.nodes.get(recipe.method, {})
    report["memory"] = _memory(subject, recipe)
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    for name in ("file", "sha256", "opset", "explained"):
        click.echo(f"{name:<10} {report[name]}")
    for direction in ("inputs", "outputs"):
        for text in report[direction]:
            click.echo(f"{direction:<10} {text}")
    click.echo(f"{'attributed':<10} {', '.join(found.attributed) or '-'}")
    click.echo(f"{'streams':<10} {found.streams or '-'}")
    click.echo(f"{'memory':<10} {report['memory']}")
    click.echo(f"{'ops':<10} {', '.join(f'{op} {count}' for op, count in report['ops'].items())}")
    if report["changes"]:
        click.echo(f"{'rewrites':<10} {'; '.join(report['changes'])}")
    click.echo(found.text())
    if nodes:
        click.echo(f"rules of {recipe.method}:")
        for name, rule in report["rules"].items():
            click.echo(f"  {name:<50} {rule}")
    for reason in report["blocking"].values():
        click.echo(f"blocks {recipe.method}: {reason}")
    for note in dict.fromkeys(report["notes"]):
        click.echo(f"note: {note}")


def describe(subject: Subject) -> dict[str, Any]:
    """What a model is, as plain data."""
    graph = subject.normalised.model.graph
    source = subject.source.model.graph
    return {
        "file": str(subject.source.path),
        "sha256": subject.source.sha256,
        "opset": ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in source.opset_imports.items()),
        "explained": ", ".join(subject.resolved.explained),
        "inputs": [str(spec) for spec in subject.inputs],
        "outputs": [
            f"{v.name!r} {tuple(dims(v)) if v.shape is not None else 'of any shape'} {v.dtype}" for v in graph.outputs
        ],
        "ops": dict(Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in source).most_common()),
        "nodes": {"source": len(list(source)), "normalised": len(list(graph))},
        "changes": list(subject.normalised.changes),
    }


def _memory(subject: Subject, recipe: Any) -> str:
    weights = sum(
        v.const_value.nbytes for v in subject.normalised.model.graph.initializers.values() if v.const_value is not None
    )
    text = f"weights {weights / 1e6:.1f} MB"
    if recipe.looped and recipe.base is None:  # forward-only: nothing is compiled
        return text
    try:
        compiled = compile_graph(subject.normalised, subject.resolved, recipe.propagation(), subject.request)
    except UsageError:  # what was asked for cannot be, whatever the model
        raise
    except OnnxplainError:
        return text
    return f"{text}, about {bytes_per_stream(compiled.model) / 1e6:.1f} MB per row explained"
