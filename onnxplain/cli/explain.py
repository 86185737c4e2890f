"""`onnxplain explain`: what `run` writes, computed by a server."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from google.protobuf import json_format
from rich.progress import Progress, TaskID

from onnxplain import render
from onnxplain.cli.command import Command, refuse_idle
from onnxplain.cli.options import RecipeWords, recipe_options
from onnxplain.cli.output import write_run
from onnxplain.cli.report import progress_line, tell
from onnxplain.errors import UsageError
from onnxplain.inputs.paths import read_text
from onnxplain.invocation import Invocation


@click.command("explain", cls=Command)
@click.argument("model", metavar="MODEL[/VERSION]@HOST:PORT")
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="TARGET",
    help="predicted (default), top3, a class name, an index, 'A vs B'.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="Method, repeatable (see `onnxplain methods`), or a recipe: lrp-epsilon.",
)
@recipe_options
@click.option("--explain", "tensor", default="", metavar="TENSOR", help="Tensor to explain.")
@click.option(
    "--head", type=click.Choice(["cut", "keep"]), default=None, help="Step back over a final softmax, or not."
)
@click.option(
    "--attribute-to",
    "--layer",
    "attribute_to",
    multiple=True,
    metavar="TENSOR",
    help="Tensor to attribute to (default: the inputs; of a class activation map the last feature map).",
)
@click.option("--keep", multiple=True, metavar="TENSOR", help="Forward tensor to return as well.")
@click.option("--ledger", is_flag=True, help="Book where relevance went, node by node.")
@click.option("--version", default="", metavar="V", help="A number or @alias; default what the server says.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Folder to write to; default explanations/<model>."
)
@click.option("--palette", metavar="NAME", help="bwr, rdbu, seismic; inferno, viridis, grey.")
@click.option(
    "--token", envvar="ONNXPLAIN_TOKEN", metavar="TOKEN", help="Better in $ONNXPLAIN_TOKEN: other users see arguments."
)
@click.option("--token-file", type=click.Path(path_type=Path), help="File that holds the token and nothing else.")
@click.option(
    "--tls-ca", metavar="FILE", help="Authority of the server's certificate; 'system': those of this machine."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Own certificate, for mutual TLS.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key.")
@click.option("--insecure", is_flag=True, help="Send the token in plain text to another machine.")
@click.option(
    "--timeout", type=click.FloatRange(0.001), default=60.0, show_default=True, help="Seconds for each method."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def explain(
    model: str, files: tuple[str, ...], targets: tuple[str, ...], methods: tuple[str, ...], words: RecipeWords,
    tensor: str, head: str | None,
    attribute_to: tuple[str, ...], keep: tuple[str, ...], ledger: bool, version: str, out: Path | None,
    palette: str | None, token: str | None, token_file: Path | None, tls_ca: str | None, tls_cert: Path | None,
    tls_key: Path | None, insecure: bool, timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Explain FILES by a model of a running server (`onnxplain serve`); write what `onnxplain run` writes."""
    begun = time.perf_counter()
    name, version, address = where(model, version)
    if token_file is not None:
        refuse_idle(["token"], "the token is in --token-file; give one of the two.")
        token = read_text(token_file).strip()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its log would stand between our lines; before gRPC is imported
    from onnxplain.client import Client
    from onnxplain.client.requests import ModelInfo

    with (
        progress_line(as_json) as progress,
        Client(
            address, token=token, ca=tls_ca, cert=tls_cert, key=tls_key, timeout=timeout, insecure=insecure
        ) as client,
    ):
        step = progress.add_task(f"asking {address}")
        info = ModelInfo(client.explainability(name, version=version))
        done = Invocation(
            where=f"{name}/{info.version}@{address}",
            name=name,
            version=info.version,
            file=address,
            sha256="",
            explained=(),
            inputs=[str(spec) for spec in info.specs],
            loaded=client.prepare(name, list(files), version=version),
        )
        for recipe in _recipes(methods, words, info.method, json_format.MessageToDict(info.reply.default_options)):
            label = recipe["recipe"].method if "recipe" in recipe else recipe["method"]
            progress.update(step, description=f"explaining by {label}")
            started = time.perf_counter()
            found = client.explain(
                name, done.loaded, targets or ("predicted",), version=version, explain=tensor, head=head or "",
                attribute_to=attribute_to, outputs=keep, ledger=ledger, **recipe,
                progress=partial(_say, progress, step, f"explaining by {label}"),
            )  # fmt: skip
            done.seconds[found.recipe.label] = time.perf_counter() - started
            done.explanations.append(found)
            done.notes += [note for note in found.notes if note not in done.notes]
            done.version, done.explained = found.version, (found.explained,)
            done.sha256 = str(found.provenance.get("sha256", ""))
            done.graph = f"{len(found.provenance.get('rules') or ())} on the path; graph {found.graph_digest[:16]}"
        progress.update(step, description="drawing")
        folder = out or Path("explanations") / render.safe_name(name)
        write_run(done, folder, palette)
    done.seconds["total"] = time.perf_counter() - begun
    tell(done, folder, as_json, {})


def _say(progress: Progress, step: TaskID, text: str, stage: str, done: int, total: int) -> None:
    if stage == "compute" and total > 1:
        progress.update(step, description=f"{text}: {done} of {total}")


def where(model: str, version: str) -> tuple[str, str, str]:
    """(name, version, address) of MODEL[/VERSION]@HOST:PORT. version: what --version said."""
    path, at, address = model.rpartition("@")
    name, _, inside = path.partition("/")
    if not at or not name or not address:
        raise UsageError(
            f"{model!r}: give MODEL@HOST:PORT, such as mobilenet_v2@localhost:8001. For files: onnxplain run."
        )
    if version and inside and version != inside:
        raise UsageError(f"{model!r} names version {inside}, --version {version}: give one of them.")
    return name, version or inside, address


def _recipes(
    methods: Sequence[str], words: RecipeWords, default: str, defaults: dict[str, Any]
) -> list[dict[str, Any]]:
    """Arguments of `Client.explain` for each method; the same options reach the same methods as in `run`.

    default, defaults: the method of the model's own recipe, and the whole of it.
    """
    if (recipe := words.read(methods)) is not None:
        return [{"recipe": recipe}]
    return list(words.tables(list(methods) or [default], defaults).values())
