"""`onnxplain cut`: write a part of a model."""

from __future__ import annotations

from pathlib import Path

import click

from onnxplain.cli.command import Command
from onnxplain.cli.options import sample_options, verification_input
from onnxplain.compile.cut import cut
from onnxplain.compile.written import WrittenModel
from onnxplain.sources import resolve_model


@click.command("cut", cls=Command)
@click.argument("model")
@click.option("--at", multiple=True, metavar="TENSOR", help="Inner tensor that becomes an input; repeatable.")
@click.option("--to", multiple=True, metavar="TENSOR", help="Inner tensor that becomes an output; repeatable.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; default <model>.cut.onnx here.")
@sample_options
def cut_command(
    model: str, at: tuple[str, ...], to: tuple[str, ...], output: Path | None,
    sample: Path | None, shapes: tuple[str, ...],
) -> None:  # fmt: skip
    """Write the part of MODEL behind the tensors --at, up to the tensors --to."""
    resolved = resolve_model(model)
    arrays, sizes = verification_input(sample, shapes)
    path = output or Path(f"{resolved.name}.cut.onnx")
    show(cut(resolved.path, path, at=at, to=to, sample=arrays, shapes=sizes))


def show(written: WrittenModel) -> None:
    """What was written, and what was decided on the way."""
    for note in written.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{written.path}  {written.path.stat().st_size / 1e6:.1f} MB")
    click.echo(f"  in   {', '.join(written.inputs)}")
    click.echo(f"  out  {', '.join(written.outputs)}")
