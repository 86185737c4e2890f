"""Where the server is and how to speak to it: address, TLS, token."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

from onnxplain.errors import UsageError
from onnxplain.inputs.paths import read_bytes

SYSTEM = "system"  # ca: the authorities that the machine trusts
OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # replies are as large as was asked for
    ("grpc.max_send_message_length", -1),  # the server has a limit and says it
    ("grpc.initial_reconnect_backoff_ms", 100),  # so that a retry meets a new connection, not the memory of the old
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


@dataclass(frozen=True)
class Connection:
    """address: HOST:PORT, or unix:PATH. ca, cert, key: PEM files; ca "system": the machine's own authorities.

    token: sent with every call. It is a password, so it goes over TLS or stays on this machine, unless insecure.
    """

    address: str
    token: str | None = None
    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if not self.address.startswith("unix:") and (not host or not port.isdecimal() or not 0 < int(port) < 65536):
            raise UsageError(f"{self.address!r} is no address; give HOST:PORT, such as localhost:8001.")
        if (self.cert is None) != (self.key is None):
            raise UsageError("cert and key go together: give both files.")
        if self.insecure and (not self.token or self.secure):
            what = "TLS protects it" if self.token else "there is none"
            raise UsageError(f"insecure sends a token in plain text, and {what}; leave it out.")
        if self.token and not self.secure and not self.insecure and not _loopback(self.address):
            raise UsageError(
                f"the token would go to {self.address} in plain text: give ca (--tls-ca FILE, or 'system') "
                "for TLS, or insecure where the network is yours."
            )
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise UsageError("the token has characters that no header can carry; is it the right file?")

    @property
    def secure(self) -> bool:
        """Whether it speaks TLS."""
        return self.ca is not None or self.cert is not None

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For a secure channel; None: plain text. Raises InputError where a file cannot be read."""
        if not self.secure:
            return None
        ca = None if self.ca in (None, SYSTEM) else read_bytes(Path(str(self.ca)))
        key = None if self.key is None else read_bytes(Path(self.key))
        cert = None if self.cert is None else read_bytes(Path(self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Headers of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def _loopback(address: str) -> bool:
    """Whether nobody else can listen on the way."""
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
