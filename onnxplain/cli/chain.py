"""`onnxplain chain`: write two models as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from onnxplain.cli.command import Command
from onnxplain.cli.cut import show
from onnxplain.cli.options import sample_options, verification_input
from onnxplain.compile.chain import chain
from onnxplain.errors import UsageError
from onnxplain.sources import resolve_model


@click.command("chain", cls=Command)
@click.argument("first")
@click.argument("second")
@click.option(
    "--connect", multiple=True, metavar="OUT=IN",
    help="Output of FIRST that feeds this input of SECOND; repeatable. Default: tensors of one name, else the two that "
    "fit.",
)  # fmt: skip
@click.option("--keep", multiple=True, metavar="TENSOR", help="Output of FIRST to return as well.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write; default <first>.<second>.onnx here."
)
@sample_options
def chain_command(
    first: str, second: str, connect: tuple[str, ...], keep: tuple[str, ...], output: Path | None,
    sample: Path | None, shapes: tuple[str, ...],
) -> None:  # fmt: skip
    """Write one model in which outputs of FIRST feed inputs of SECOND."""
    models = resolve_model(first), resolve_model(second)
    arrays, sizes = verification_input(sample, shapes)
    path = output or Path(f"{models[0].name}.{models[1].name}.onnx")
    show(
        chain(
            models[0].path, models[1].path, path,
            connect=_connected(connect) if connect else None, keep=keep, sample=arrays, shapes=sizes,
        )
    )  # fmt: skip


def _connected(texts: Sequence[str]) -> dict[str, list[str]]:
    """OUT=IN, OUT=IN as {OUT: [IN, …]}. Raises UsageError."""
    found: dict[str, list[str]] = {}
    for text in texts:
        source, mark, target = text.partition("=")
        if not (source and mark and target):
            raise UsageError(f"--connect {text}: give an output of the first model and an input of the second, OUT=IN.")
        found.setdefault(source, []).append(target)
    return found
