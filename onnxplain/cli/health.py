"""`onnxplain health`: ask a running server by the gRPC health protocol; for containers and scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from onnxplain.cli.command import Command
from onnxplain.errors import InputError, Unavailable, UsageError


@click.command("health", cls=Command)
@click.argument("address", default="127.0.0.1:8001", metavar="[HOST:PORT]")
@click.option(
    "--service", default="", help="model/NAME, source/NAME or a gRPC service; default: the server as a whole."
)
@click.option("--tls-ca", type=click.Path(path_type=Path), help="Authority of the server's certificate, PEM.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="The client's own certificate, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key, PEM.")
@click.option("--timeout", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def health(
    address: str, service: str, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, timeout: float,
    as_json: bool,
) -> None:  # fmt: skip
    """Whether the server at HOST:PORT answers and is ready: exit code 0, else 4."""
    with _channel(address, tls_ca, tls_cert, tls_key) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout)
        except grpc.RpcError as error:
            reason = f"{error.code().name}: {' '.join((error.details() or '').split())[:200]}"
            raise Unavailable(f"{address} gives no health ({reason}).") from error
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    click.echo(json.dumps({"address": address, "service": service, "status": status}) if as_json else status)
    if status != "SERVING":
        raise Unavailable(f"{address}: {service or 'the server'} is {status}; its log and RepositoryIndex say why.")


def _channel(address: str, ca: Path | None, cert: Path | None, key: Path | None) -> grpc.Channel:
    if (cert is None) != (key is None):
        raise UsageError("--tls-cert and --tls-key go together: give both.")
    if ca is None and cert is None:
        return grpc.insecure_channel(address)
    try:
        parts = [path.read_bytes() if path else None for path in (ca, key, cert)]
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}.") from error
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*parts))
