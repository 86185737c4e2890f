"""Certificates for tests: an authority and what it signs. Elliptic keys, because they are made in no time."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOUR = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: bytes | None = None) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
        )

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write `<name>.pem` and `<name>.key`, each by renaming a complete file, as a careful operator does."""
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        for path, text in zip(paths, (self.pem, self.key_pem()), strict=True):
            fresh = path.with_suffix(path.suffix + ".new")
            fresh.write_bytes(text)
            fresh.replace(path)
        return paths


def authority(name: str = "test authority", lasts: datetime.timedelta = HOUR) -> Certificate:
    """An authority that signs itself."""
    return _make(name, None, [], lasts, is_authority=True)


def signed(
    by: Certificate, *names: str, lasts: datetime.timedelta = 30 * 24 * HOUR, common_name: str = ""
) -> Certificate:
    """A certificate for some host names or addresses. lasts: from now; negative: expired."""
    alternatives: list[x509.GeneralName] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    return _make(common_name or names[0], by, alternatives, lasts, is_authority=False)


def signed_by_itself(name: str, lasts: datetime.timedelta = HOUR) -> Certificate:
    """What `openssl req -x509` makes for a host name: an authority of its own."""
    return _make(name, None, [x509.DNSName(name)], lasts, is_authority=True)


def _make(
    name: str,
    by: Certificate | None,
    alternatives: list[x509.GeneralName],
    lasts: datetime.timedelta,
    is_authority: bool,
) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + lasts) - HOUR)
        .not_valid_after(now + lasts)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return Certificate(builder.sign(by.key if by else key, hashes.SHA256()), key)
