"""TLS: certificates that can be replaced while the server runs, and the names of clients that show one."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from onnxplain.errors import InputError

LOG = logging.getLogger(__name__)
TRIES = 3  # reads of files that change while they are read
SOON = 14 * 86400  # seconds before a certificate's end from which the log says so
Stamps = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True)
class Pair:
    """What a server shows and whom it trusts, in PEM. ends: of the certificate, seconds since 1970."""

    cert: bytes
    key: bytes
    ca: bytes | None
    ends: float

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The pair as gRPC takes it."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.cert)], root_certificates=self.ca)


class Rotation:
    """The newest good pair of some files. Files are read when one changed; a wrong pair leaves the last good one."""

    def __init__(self, cert: Path, key: Path, ca: Path | None):
        self._files = (cert, key, ca)
        self._lock = threading.Lock()  # gRPC asks from threads of its own
        self._stamps, self.pair = _read(cert, key, ca)
        self._say()

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """For gRPC, before each handshake: the configuration if it is another one now. Never raises."""
        with self._lock:
            try:
                if _stamps(self._files) == self._stamps:
                    return None
                self._stamps = _stamps(self._files)  # so a wrong pair is looked at once, and again when it changes
                self._stamps, pair = _read(*self._files)
                if pair == self.pair:
                    return None
                configuration = pair.configuration()
            except Exception as error:  # whatever it is: the handshake goes on with the last good pair
                LOG.warning("the TLS certificate stays as it was: %s", error)
                return None
            self.pair = pair
            self._say()
            return configuration

    def _say(self) -> None:
        ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.pair.ends))
        if self.pair.ends - time.time() < SOON:
            LOG.warning("the TLS certificate %s ends soon, on %s", self._files[0], ends)
        else:
            LOG.info("TLS certificate %s, valid to %s", self._files[0], ends)


def server_credentials(cert: Path, key: Path, ca: Path | None = None) -> grpc.ServerCredentials:
    """Credentials that follow their files. ca: clients must show a certificate that it signed.

    Raises InputError for files that are missing, do not belong together or are out of date. Connections that are open
    keep the certificate they began with.
    """
    rotation = Rotation(cert, key, ca)
    newer: Any = rotation.newer  # None says "no change"; the stubs do not know
    return grpc.dynamic_ssl_server_credentials(
        rotation.pair.configuration(), newer, require_client_authentication=ca is not None
    )


def peer_names(context: grpc.aio.ServicerContext[Any, Any]) -> tuple[str, ...]:
    """The subject alternative names of the client's certificate; () without one.

    Not its common name: anything may stand there, and no browser or library checks it any more.
    """
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return tuple(name.decode("utf-8", "replace") for name in names)


def _read(cert: Path, key: Path, ca: Path | None) -> tuple[Stamps, Pair]:
    """The files' stamps and what is in them, from one moment."""
    files = (cert, key, ca)
    for _ in range(TRIES):
        before = _stamps(files)
        texts = [None if file is None else _bytes(file) for file in files]
        problem, ends = _verified(cert, key, ca)
        if _stamps(files) == before:
            if problem is not None:
                raise problem
            shown, secret, trusted = texts
            assert shown is not None and secret is not None
            return before, Pair(shown, secret, trusted, ends)
    raise InputError(f"{cert} and {key} change while they are read. Replace them by renaming complete files.")


def _verified(cert: Path, key: Path, ca: Path | None) -> tuple[InputError | None, float]:
    """What is wrong with the files, if anything, and when the certificate ends."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(cert, key, password=lambda: "")  # an encrypted key is an error, not a question
    except ssl.SSLError as error:
        why = "the key does not belong to the certificate" if error.reason == "KEY_VALUES_MISMATCH" else _why(error)
        return InputError(
            f"{cert}, {key}: no TLS pair: {why}. Give PEM: a chain, leaf first, and its key without a password."
        ), 0.0
    except OSError as error:
        return InputError(f"{cert}, {key}: cannot be read ({error})."), 0.0
    try:
        ends = _shake_hands(server, _leaf(cert))
    except (ssl.SSLError, ValueError) as error:
        why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else _why(error)
        return InputError(f"{cert}: clients would refuse it: {why}. Renew the certificate."), 0.0
    return (None if ca is None else _authority_problem(ca)), ends


def _shake_hands(server: ssl.SSLContext, leaf: str) -> float:
    """The end of a certificate, learned as a client learns it: by a handshake in memory, which also checks its dates.

    The certificate itself is the client's trust anchor, so only who signed it stays unchecked.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cadata=leaf)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)]
    while sides:
        for side in list(sides):
            try:
                side.do_handshake()
                sides.remove(side)
                if not side.server_side:
                    ends = ssl.cert_time_to_seconds(str((side.getpeercert() or {})["notAfter"]))
            except ssl.SSLWantReadError:
                continue
    return float(ends)


def _authority_problem(ca: Path) -> InputError | None:
    """What is wrong with a file of authorities."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(ca)
    except OSError as error:  # ssl.SSLError is one
        return InputError(f"{ca}: no PEM certificates of an authority: {_why(error)}.")
    ends = [ssl.cert_time_to_seconds(str(found["notAfter"])) for found in context.get_ca_certs()]
    if not ends:
        return InputError(f"{ca}: none of its certificates is one of an authority (basicConstraints CA).")
    if max(ends) < time.time():
        return InputError(f"{ca}: the authority's certificate has expired. Renew it.")
    return None


def _leaf(cert: Path) -> str:
    """The first certificate of a chain."""
    end = "-----END CERTIFICATE-----"
    head, marker, _ = cert.read_text(encoding="utf-8", errors="replace").partition(end)
    if not marker:
        raise ValueError("no certificate")
    return head[head.index("-----BEGIN CERTIFICATE-----") :] + marker


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: the TLS file cannot be read ({error.strerror}).") from error


def _stamps(files: Sequence[Path | None]) -> Stamps:
    """When and what each file is: another value whenever one was replaced or written."""
    stamps: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            status = None if file is None else file.stat()
        except OSError:
            status = None
        stamps.append(None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(stamps)


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return str(reason).replace("_", " ").lower()
