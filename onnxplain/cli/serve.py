"""`onnxplain serve`: the gRPC service."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from onnxplain.cli.command import Command, refuse_idle
from onnxplain.errors import InputError
from onnxplain.server.app import Server
from onnxplain.server.models.readiness import POLICIES
from onnxplain.server.options import ServerOptions
from onnxplain.server.telemetry.logs import set_up
from onnxplain.sources import DirectorySource, FileSource, ModelSource, default_repositories, from_address
from onnxplain.sources.directory import VARIABLE
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
@_flag("--slots", type=click.IntRange(1), default=1, help="Runs at a time.")
@_flag("--threads", type=click.IntRange(0), default=0, help="Threads inside a run; 0: the CPUs shared by the slots.")
@_flag("--max-batch-rows", type=click.IntRange(0), default=0, help="Rows of one run; 0: 8 on the CPU, 32 on CUDA.")
@_flag("--queue-rows", type=click.IntRange(1), default=64, help="Rows of one model that wait or run at most.")
@_flag("--queue-bytes", type=click.IntRange(1), default=256 * 2**20, help="Bytes likewise.")
@_flag("--compile-queue", type=click.IntRange(1), default=32, help="Recipes that wait to be compiled at most.")
@_flag("--max-compile-seconds", type=click.FloatRange(0.01), default=60.0, help="The longest one may take to compile.")
@_flag("--max-message-bytes", type=click.IntRange(1024), default=64 * 2**20, help="Of one request.")
@_flag("--memory-budget", type=click.IntRange(0), default=0, help="Bytes of open sessions; 0: 40 % of the memory.")
@_flag("--max-request-seconds", type=click.FloatRange(0.01), default=60.0, help="The longest a call may take.")
@_flag("--drain-delay", type=click.FloatRange(0), default=0.0, help="Seconds from SIGTERM to refusing new calls.")
@_flag("--drain-timeout", type=click.FloatRange(0), default=30.0, help="Seconds for calls that are being answered.")
@_flag("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain, PEM; read again when it changes.")
@_flag("--tls-key", type=click.Path(path_type=Path), help="Its key, PEM.")
@_flag("--tls-ca", type=click.Path(path_type=Path), help="Clients need a certificate of this authority.")
@_flag("--token-file", type=click.Path(path_type=Path), help="TOML file of bearer tokens and their scopes.")
@_flag("--insecure", is_flag=True, help="Plain text on an address that others can reach.")
@_flag("--reflection/--no-reflection", default=True, help="Let tools ask for the protocol.")
@_flag("--allow-export", is_flag=True, help="CompileGraph gives graphs, and so weights, away.")
@_flag("--isolate", is_flag=True, help="Each model in a child process with limits.")
@_flag("--isolate-memory", type=click.IntRange(2**28), default=4 * 2**30, help="Bytes of address space of a child.")
@_flag("--cache", type=click.Path(path_type=Path), default=None, help="Folder for downloads.")
@_flag("--log-format", type=click.Choice(["text", "json"]), default="text")
@_flag("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def serve(
    repositories: tuple[str, ...], more: tuple[str, ...], registry: tuple[str, ...], control: str | None,
    webhook_port: int, log_format: str, log_level: str, cache: Path | None, **flags: Any,
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
        refuse_idle(["webhook_port", "cache"], "only a registry sends webhooks and has downloads; give --registry.")
    if not flags["isolate"]:
        refuse_idle(["isolate_memory"], "it limits the children of --isolate; give that too.")
    if not flags["http_port"]:
        refuse_idle(["http_cors"], "no page asks without --http-port.")
    options = ServerOptions(**given)
    if options.loopback or options.tls_cert is not None:
        refuse_idle(["insecure"], "nothing goes to other machines in plain text here; leave it out.")
    sources = sources_of((*repositories, *more), registry, options)
    asyncio.run(_serve(options, sources, webhook_port))


def sources_of(paths: Sequence[str], registries: Sequence[str], options: ServerOptions) -> list[ModelSource]:
    """The places that models are served from. Raises InputError where there is none."""
    if not paths and not registries:
        named = [str(folder) for folder in default_repositories()]
        named = named[:-1] if os.environ.get(VARIABLE) else named
        paths = [folder for folder in named if Path(folder).is_dir()]
        if not paths:
            raise InputError(
                f"nothing to serve: no folder {' or '.join(named)}. Name a repository or a model file, "
                f"set ${VARIABLE}, or give --registry."
            )
    found: list[ModelSource] = []
    for path in paths:
        if Path(path).is_file():
            found.append(FileSource(Path(path)))
        elif Path(path).is_dir():
            found.append(DirectorySource(Path(path), options.control))
        else:
            raise InputError(f"{path}: no such file or folder. Name a repository or an .onnx file.")
    found += [from_address(uri, options.cache) for uri in registries]
    names = [source.name for source in found]
    for n, source in enumerate(found):
        if source.name in names[:n]:
            source.name = f"{source.name}-{n + 1}"  # health and the index tell them apart
    return found


async def _serve(options: ServerOptions, sources: list[ModelSource], webhook_port: int) -> None:
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
