"""`onnxplain health`: ask a running server by the gRPC health protocol; for containers and scripts."""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from onnxplain.cli.command import Command
from onnxplain.errors import InputError, Unavailable, UsageError

PORT = 8001
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # all addresses of a machine -> one of them
OWN_CERT, OWN_KEY = "ONNXPLAIN_HEALTH_TLS_CERT", "ONNXPLAIN_HEALTH_TLS_KEY"


@dataclass(frozen=True)
class HealthTarget:
    """Where to ask. ca, cert, key: PEM. name: that the server's certificate must have, if not the address."""

    address: str
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    name: str = ""

    def channel(self) -> grpc.Channel:
        """A channel to it; without certificates in plain text. Raises InputError where a file cannot be read."""
        if self.ca is None and self.cert is None:
            return grpc.insecure_channel(self.address)
        try:
            parts = [path.read_bytes() if path else None for path in (self.ca, self.key, self.cert)]
        except OSError as error:
            raise InputError(f"{error.filename}: {error.strerror}.") from error
        options = [("grpc.ssl_target_name_override", self.name)] if self.name else []
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(*parts), options)


@click.command("health", cls=Command)
@click.argument("address", required=False, metavar="[HOST:PORT]")
@click.option(
    "--service", default="", help="model/NAME, source/NAME or a gRPC service; default: the server as a whole."
)
@click.option("--tls-ca", type=click.Path(path_type=Path), help="Authority of the server's certificate, PEM.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="The client's own certificate, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key, PEM.")
@click.option("--timeout", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def health(
    address: str | None, service: str, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None,
    timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Whether the server at HOST:PORT answers and is ready: exit code 0, else 4.

    Without HOST:PORT: the one that this environment starts, by ONNXPLAIN_HOST, _PORT and _TLS_CERT.
    """
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together: give both.")
    own = address is None and tls_ca is None and tls_cert is None
    target = (
        own_server(os.environ, timeout)
        if own
        else HealthTarget(address or _own_address(os.environ), tls_ca, tls_cert, tls_key)
    )
    with target.channel() as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout)
        except grpc.RpcError as error:
            reason = f"{error.code().name}: {' '.join((error.details() or '').split())[:200]}"
            raise Unavailable(f"{target.address} gives no health ({reason}).{_hint(target)}") from error
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    click.echo(json.dumps({"address": target.address, "service": service, "status": status}) if as_json else status)
    if status != "SERVING":
        raise Unavailable(
            f"{target.address}: {service or 'the server'} is {status}; its log and RepositoryIndex say why."
        )


def own_server(environment: Mapping[str, str], timeout: float) -> HealthTarget:
    """The server that these variables start on this machine. Its certificate is the one that is trusted, by any name.

    Where it wants certificates of clients (ONNXPLAIN_TLS_CA), it is shown ONNXPLAIN_HEALTH_TLS_CERT with _KEY, or its
    own where these are not set.
    """
    address = _own_address(environment)
    own = environment.get("ONNXPLAIN_TLS_CERT")
    if not own:
        return HealthTarget(address)
    shown: list[Path | None] = [None, None]
    if environment.get("ONNXPLAIN_TLS_CA"):
        names = (OWN_CERT, OWN_KEY) if environment.get(OWN_CERT) else ("ONNXPLAIN_TLS_CERT", "ONNXPLAIN_TLS_KEY")
        shown = [Path(environment[name]) if environment.get(name) else None for name in names]
        if None in shown:
            raise UsageError(f"{names[0]} and {names[1]} go together: set both.")
    cert, key = shown
    return HealthTarget(address, Path(own), cert, key, _name_of(address, own, timeout))


def _own_address(environment: Mapping[str, str]) -> str:
    host = environment.get("ONNXPLAIN_HOST", "127.0.0.1")
    host = ANY.get(host, host)
    return f"{f'[{host}]' if ':' in host else host}:{environment.get('ONNXPLAIN_PORT') or PORT}"


def _name_of(address: str, certificate: str, timeout: float) -> str:
    """A name that the certificate at an address has; nothing but `certificate` or what it signed is believed."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate is its own authority here
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(certificate)
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout) as plain,
            context.wrap_socket(plain) as secure,
        ):
            shown: Mapping[str, Any] = secure.getpeercert() or {}
    except FileNotFoundError as error:
        raise InputError(f"{certificate}: {error.strerror}.") from error
    except (OSError, ValueError) as error:
        raise Unavailable(f"{address} gives no health ({' '.join(str(error).split())[:200]}).") from error
    names = [str(name[1]) for name in shown.get("subjectAltName", ())]
    return names[0].replace("*", "health") if names else ""


def _hint(target: HealthTarget) -> str:
    return f" Where it wants a client's certificate, set {OWN_CERT} and {OWN_KEY}." if target.name else ""
