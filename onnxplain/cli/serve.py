"""`onnxplain serve`: the service, over gRPC and REST."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from onnxplain.cli.command import Command, refuse_idle
from onnxplain.errors import InputError, OnnxplainError
from onnxplain.prepared import FolderCache
from onnxplain.server.app import Server
from onnxplain.server.going_down import run
from onnxplain.server.models.readiness import POLICIES
from onnxplain.server.options import GRAPH_CACHE_BYTES, ServerOptions
from onnxplain.server.telemetry.logs import event, set_up
from onnxplain.sources import ModelSource, named_sources
from onnxplain.sources.registry import examples
from onnxplain.sources.webhook import WebhookReceiver

SECRET = "ONNXPLAIN_WEBHOOK_SECRET"


def _flag(*names: str, **more: Any) -> Callable[[Any], Any]:
    """An option that the environment variable ONNXPLAIN_<FLAG> can set as well."""
    variable = "ONNXPLAIN_" + next(n for n in names if n.startswith("--")).split("/")[0].strip("-").upper().replace(
        "-", "_"
    )
    return click.option(*names, envvar=variable, show_default=more.pop("show_default", True), **more)


@click.command("serve", cls=Command)
@click.argument("repositories", nargs=-1, metavar="[REPOSITORY|MODEL.onnx]…")
@click.option(
    "--model-repository", "more", multiple=True, metavar="DIR", help="The same, by Triton's name. Repeatable."
)
@_flag("--registry", multiple=True, metavar="URI", help=f"{', '.join(examples())}. Repeatable.")
@_flag(
    "--model-control-mode",
    "control",
    type=click.Choice(["none", "poll", "explicit"]),
    default=None,
    help="none: load once; poll: follow changes (the default with --registry); explicit: load on demand.",
)
@_flag("--load-model", "load", multiple=True, metavar="NAME", help="Loaded at the start under explicit; '*': all.")
@_flag("--lazy", is_flag=True, help="Load a model when it is first asked for; the longest unused make room.")
@_flag("--load-slots", type=click.IntRange(0), default=0, help="Models loading at a time; 0: by the CPUs, 2 to 4.")
@_flag("--max-load-seconds", type=click.FloatRange(0.1), default=120.0, help="The longest that loading one may take.")
@_flag(
    "--readiness",
    type=click.Choice(POLICIES),
    default="serving",
    help="serving: ready while whatever was ever good here answers; strict: while everything wanted does.",
)
@_flag("--poll-seconds", type=click.FloatRange(0.1), default=5.0, help="Between two looks at the sources.")
@_flag("--webhook-port", type=click.IntRange(0, 65535), default=0, help="Take MLflow's webhooks; 0: not.")
@_flag("--host", default="127.0.0.1", help="Others than loopback need TLS or --insecure.")
@_flag("--port", type=click.IntRange(0, 65535), default=8001, help="0 takes a free one.")
@_flag("--http-port", type=click.IntRange(0, 65535), default=8000, help="REST, for curl; 0: none.")
@_flag("--http-cors", multiple=True, metavar="ORIGIN", help="Pages of this origin may ask from browsers. Repeatable.")
@_flag("--metrics-port", type=click.IntRange(0, 65535), default=8002, help="Prometheus; 0: none.")
@_flag("--provider", type=click.Choice(["auto", "cuda", "cpu"]), default="auto")
@_flag("--slots", type=click.IntRange(0), default=0, help="Runs at a time; 0: one for each CPU, one on CUDA.")
@_flag("--threads", type=click.IntRange(0), default=0, help="Threads that all runs share; 0: one for each CPU.")
@_flag("--max-batch-rows", type=click.IntRange(0), default=0, help="Rows of one run; 0: 8 on the CPU, 32 on CUDA.")
@_flag("--queue-rows", type=click.IntRange(1), default=64, help="Rows of one model that wait or run at most.")
@_flag("--queue-bytes", type=click.IntRange(1), default=256 * 2**20, help="Bytes likewise.")
@_flag("--compile-queue", type=click.IntRange(1), default=32, help="Recipes that wait to be compiled at most.")
@_flag("--max-compile-seconds", type=click.FloatRange(0.01), default=60.0, help="The longest one may take to compile.")
@_flag("--max-message-bytes", type=click.IntRange(1024), default=64 * 2**20, help="Of one request.")
@_flag("--memory-budget", type=click.IntRange(0), default=0, help="Bytes of the process; 0: 70 % of what there is.")
@_flag("--max-request-seconds", type=click.FloatRange(0.01), default=60.0, help="The longest a call may take.")
@_flag("--idle-seconds", type=click.FloatRange(0.01), default=300.0, help="Of a stream or connection without calls.")
@_flag("--max-connections", type=click.IntRange(1), default=2048, help="Open at a time; those beyond are closed.")
@_flag("--drain-delay", type=click.FloatRange(0), default=0.0, help="Seconds from SIGTERM to refusing new calls.")
@_flag("--drain-timeout", type=click.FloatRange(0), default=20.0, help="Seconds for calls that are being answered.")
@_flag("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain, PEM; read again when it changes.")
@_flag("--tls-key", type=click.Path(path_type=Path), help="Its key, PEM.")
@_flag("--tls-ca", type=click.Path(path_type=Path), help="Clients need a certificate of this authority.")
@_flag("--token-file", type=click.Path(path_type=Path), help="TOML file of bearer tokens and their scopes.")
@_flag("--insecure", is_flag=True, help="Plain text on an address that others can reach.")
@_flag("--reflection/--no-reflection", default=True, help="Let tools ask for the protocol.")
@_flag("--allow-export", is_flag=True, help="CompileGraph gives graphs, and so weights, away.")
@_flag("--isolate", is_flag=True, help="Each model in a child process with limits.")
@_flag("--isolate-memory", type=click.IntRange(2**28), default=4 * 2**30, help="Bytes of address space of a child.")
@_flag("--cache", type=click.Path(path_type=Path), default=None, help="Folder for downloads and compiled graphs.")
@_flag(
    "--graph-cache",
    metavar="DIR|URL",
    default=None,
    help="For compiled graphs, which replicas may share: a folder or s3://…; default graphs/ in --cache.",
)
@_flag(
    "--graph-cache-bytes", type=click.IntRange(0), default=GRAPH_CACHE_BYTES, help="Of compiled graphs; 0 keeps none."
)
@_flag("--log-format", type=click.Choice(["text", "json"]), default="text")
@_flag("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def serve(
    repositories: tuple[str, ...], more: tuple[str, ...], registry: tuple[str, ...], control: str | None,
    webhook_port: int, log_format: str, log_level: str, cache: Path | None, graph_cache: str | None, **flags: Any,
) -> None:  # fmt: skip
    """Serve models and their explanations over gRPC and REST.

    Without an argument: the repositories in $ONNXPLAIN_MODELS, else ./models.
    """
    set_up(log_format, log_level.upper())
    control = control or ("poll" if registry else "none")
    flags["http_port"] = flags["http_port"] or None
    given = {**flags, "control": control} | ({"cache": cache} if cache else {})
    if control != "explicit":
        refuse_idle(["load"], f"models load on demand under --model-control-mode explicit only, and this is {control}.")
    if not registry:
        refuse_idle(["webhook_port"], "only a registry sends webhooks; give --registry.")
    if flags["isolate"]:
        refuse_idle(["graph_cache", "graph_cache_bytes"], "workers of --isolate write no files; leave it out.")
    elif not flags["graph_cache_bytes"]:
        refuse_idle(["graph_cache"], "--graph-cache-bytes 0 keeps no graphs; leave one of the two out.")
    elif graph_cache is not None and "://" in graph_cache:
        refuse_idle(
            ["graph_cache_bytes"], "it bounds a folder; a bucket has rules of its own for how long objects stay."
        )
    keeps = not flags["isolate"] and flags["graph_cache_bytes"] > 0
    if not registry and (graph_cache is not None or not keeps):
        refuse_idle(["cache"], "no download and no graph goes there; leave it out, or give --registry.")
    if not flags["isolate"]:
        refuse_idle(["isolate_memory"], "it limits the children of --isolate; give that too.")
    if not flags["http_port"]:
        refuse_idle(["http_cors"], "no page asks without --http-port.")
    options = ServerOptions(**given)
    if keeps:
        options = replace(options, graph_cache=graph_cache or default_graphs(options.cache))
    if options.loopback or options.tls_cert is not None:
        refuse_idle(["insecure"], "nothing goes to other machines in plain text here; leave it out.")
    sources = named_sources((*repositories, *more), registry, options.control, options.cache)
    run(_serve(options, sources, webhook_port))


def default_graphs(cache: Path) -> str | None:
    """The folder for compiled graphs where none is named; None where that cannot be, which is said in the log."""
    folder = cache / "graphs"
    try:
        FolderCache(folder)
    except OnnxplainError as error:
        event(logging.getLogger("onnxplain.server"), logging.WARNING, "graphs are not kept", reason=str(error))
        return None
    return str(folder)


async def _serve(options: ServerOptions, sources: list[ModelSource], webhook_port: int) -> None:
    if not options.isolate:  # then it is the children that run models
        options.begin_environment()
    server = Server(options, sources)
    receiver = None
    if webhook_port:
        secret = os.environ.get(SECRET, "")
        if not secret:
            raise InputError(f"--webhook-port needs the webhooks' secret in ${SECRET}.")
        receiver = WebhookReceiver(secret, server.wake.set, options.host, webhook_port)
        await receiver.start()
    await server.start()
    try:
        await server.serve()
    finally:
        if receiver is not None:
            await receiver.stop()
