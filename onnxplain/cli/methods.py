"""`onnxplain methods`: everything that can be chosen by name, with options, defaults and sources."""

from __future__ import annotations

import json
from typing import Any

import click

from onnxplain.cli.command import Command
from onnxplain.composites import COMPOSITES
from onnxplain.methods import METHODS, Looped
from onnxplain.methods.options import Option
from onnxplain.options import described
from onnxplain.rules import RULES
from onnxplain.vjp import OPS


@click.command("methods", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def methods(as_json: bool) -> None:
    """List methods, composites, rules and ops."""
    found = catalogue()
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for heading, entries in found.items():
        if heading == "ops":
            continue
        click.secho(heading.upper(), bold=True)
        for name, entry in entries.items():
            options = (
                f"({', '.join(f'{k}={v}' if v else k for k, v in entry['options'].items())})"
                if entry["options"]
                else ""
            )
            click.echo(f"  {name}{options}\n      {entry['doc']}\n      {entry['cite']}")
        click.echo()
    click.secho(f"OPS with a derivative: {len(OPS)}", bold=True)
    click.echo(click.wrap_text(", ".join(sorted(OPS)), initial_indent="  ", subsequent_indent="  ", width=110))


def catalogue() -> dict[str, dict[str, Any]]:
    """The registries as plain data."""
    return {
        "methods": {
            name: {"doc": m.doc, "cite": m.cite, "family": m.family, "options": _method_options(name)}
            for name, m in METHODS.items()
        },
        "composites": {
            name: {"doc": c.doc, "cite": c.cite, "options": described(c.options, {})} for name, c in COMPOSITES.items()
        },
        "rules": {
            name: {
                "doc": _first(r.make.__doc__),
                "cite": r.cite,
                "options": described(r.options, r.choices),
            }
            for name, r in RULES.items()
        },
        "ops": {name: {"kind": op.kind} for name, op in OPS.items()},
    }


def _method_options(name: str) -> dict[str, str]:
    method = METHODS[name]
    base = {"base": method.base} if isinstance(method, Looped) and method.base else {}
    return base | {option.name: _values(option) for option in method.options.values()}


def _values(option: Option) -> str:
    """Its words, its default in front where that is none of them; else its default."""
    default = () if option.default in option.choices else (_plain(option.default),)
    return "|".join(word for word in (*default, *option.choices) if word)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "" if value in (None, ()) else str(value)


def _first(doc: str | None) -> str:
    return (doc or "").strip().split("\n")[0]
