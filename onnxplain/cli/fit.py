"""`onnxplain fit`: write a model with a part that is fitted to labelled data."""

from __future__ import annotations

import json
from pathlib import Path

import click

from onnxplain.cli.command import Command, refuse_idle
from onnxplain.cli.cut import show
from onnxplain.cli.options import machine_options, picture_options, sample_options, verification_input
from onnxplain.cli.report import progress_line
from onnxplain.inputs import Preprocessing
from onnxplain.sources import resolve_model

PICTURE = ("preprocess", "layout", "mean", "std", "scale")


@click.command("fit", cls=Command)
@click.argument("what", type=click.Choice(["cam"]))
@click.argument("model")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; default <model>.cam.onnx here.")
@click.option("--layer", metavar="TENSOR", help="Feature map that the new head reads; default the last.")
@click.option("--explain", metavar="TENSOR", help="Tensor of the scores (N, K); default what is explained.")
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share of the rows of each class that accuracy is measured on, and that nothing is fitted to.",
)
@click.option("--random-seed", type=int, default=0, show_default=True, help="Of the choice of held-out rows.")
@picture_options
@machine_options
@sample_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def fit(
    what: str, model: str, data: Path, output: Path | None, layer: str | None, explain: str | None, held_out: float,
    random_seed: int, preprocess: str | None, layout: str | None, mean: str | None, std: str | None, scale: str | None,
    labels: str | None, provider: str, threads: int, sample: Path | None, shapes: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Write MODEL with a head for which CAM is defined: a global average pool and a logistic regression.

    DATA is a folder that holds a folder for each class, called by its label or index, or an .npz of the inputs by name
    and `labels`. The head is fitted to the features of the model as it is; its accuracy is said before and after.
    """
    from onnxplain.fit.cam_head import CamHead
    from onnxplain.fit.labelled_rows import read_labelled

    resolved = resolve_model(model)
    arrays, sizes = verification_input(sample, shapes)
    pictures = Preprocessing.of(resolved.settings, preprocess, layout, mean, std, scale, labels)
    if not data.is_dir():
        refuse_idle([*PICTURE, "labels"], "it says what pictures and folders of classes mean, and the data are arrays.")
    with progress_line(as_json) as progress:
        step = progress.add_task("loading the model")
        head = CamHead(
            resolved.path, layer, explain=explain, provider=provider, threads=threads, sample=arrays, shapes=sizes
        )
        progress.update(step, description=f"fitting a head on {head.layer}")
        rows = read_labelled(data, head.subject.inputs, pictures, head.classes)
        fitted = head.fit(rows, output or Path(f"{resolved.name}.cam.onnx"), held_out, random_seed)
    if as_json:
        said = {
            "path": str(fitted.written.path), "layer": fitted.layer, "channels": fitted.channels,
            "accuracy": {"before": fitted.before, "after": fitted.after},
            "rows": {"fitted": fitted.fitted, "held_out": fitted.held_out},
            "notes": [*rows.notes, *fitted.written.notes],
        }  # fmt: skip
        click.echo(json.dumps(said, indent=2, ensure_ascii=False))
        return
    for note in rows.notes:
        click.echo(f"note: {note}", err=True)
    show(fitted.written)
    click.echo(f"head on {fitted.layer}, {fitted.channels} channels, fitted to {fitted.fitted} rows")
    click.echo(f"accuracy on {fitted.held_out} held-out rows: {fitted.before:.4f} before, {fitted.after:.4f} after")
