"""Laws of TLS: who is let in, what is refused at the start, and certificates that change while calls go on."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import asynccontextmanager
from datetime import timedelta

import certificates
import grpc
import pytest
from intercepted import EXPLAIN, Echo, serving

from onnxplain.errors import InputError
from onnxplain.server.guard import Guard
from onnxplain.server.rpc import tls
from onnxplain.server.rpc.interceptor import Interceptor
from onnxplain.server.rpc.tls import Rotation, peer_names, server_credentials
from onnxplain.server.telemetry.metrics import Metrics

AUTHORITY = certificates.authority()
OTHER = certificates.authority("another authority")
SERVER = certificates.signed(AUTHORITY, "localhost", "127.0.0.1")
CLIENT = certificates.signed(AUTHORITY, "ann.example", common_name="root")
EXPIRED = certificates.signed(AUTHORITY, "localhost", "127.0.0.1", lasts=timedelta(minutes=-1))
STRANGER = certificates.signed(OTHER, "ann.example")


@pytest.fixture
def files(tmp_path):
    """(certificate, key, authority) of a good server."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(AUTHORITY.pem)
    return (*SERVER.write(tmp_path, "server"), ca)


def dial(address: str, trusts=AUTHORITY, shows=None, **options) -> grpc.aio.Channel:
    shown = (shows.key_pem(), shows.pem) if shows else (None, None)
    credentials = grpc.ssl_channel_credentials(trusts.pem, *shown)
    # A subchannel of its own, or gRPC would lend us the connection of the channel before.
    return grpc.aio.secure_channel(
        address, credentials, [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), *options.items()]
    )


async def ask(address: str, **how) -> bytes:
    async with dial(address, **how) as channel:
        return await channel.unary_unary(EXPLAIN)(b"x", timeout=5)


@asynccontextmanager
async def server(cert, key, ca=None):
    echo = Echo()
    interceptor = Interceptor(Guard(Metrics(), mutual=ca is not None))
    async with serving(interceptor, echo.handlers(), server_credentials(cert, key, ca)) as address:
        yield address, echo


async def shake(address: str, context: ssl.SSLContext) -> ssl.SSLObject:
    host, port = address.split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
    found = writer.get_extra_info("ssl_object")
    writer.close()
    return found


def trusting(authority=AUTHORITY) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)  # 3.13 asks for extensions that tests leave out
    context.set_alpn_protocols(["h2"])
    return context


def test_whoever_trusts_the_authority_gets_an_answer_and_nobody_else(files):
    async def main():
        async with server(*files[:2]) as (address, _):
            assert await ask(address) == b"x"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(address, trusts=OTHER)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            async with grpc.aio.insecure_channel(address) as plain:
                with pytest.raises(grpc.aio.AioRpcError):
                    await plain.unary_unary(EXPLAIN)(b"x", timeout=5)

    asyncio.run(main())


def test_mutual_tls_lets_in_our_clients_by_their_alternative_names_only(files):
    async def main():
        async with server(*files) as (address, echo):
            assert await ask(address, shows=CLIENT) == b"x"
            assert echo.calls[0].caller.name == "ann.example"  # not the common name, which says root
            expired = certificates.signed(AUTHORITY, "ann.example", lasts=timedelta(minutes=-1))
            for nobody in (None, STRANGER, expired):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await ask(address, shows=nobody)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert len(echo.calls) == 1

    asyncio.run(main())


def test_without_tls_a_client_has_no_names():
    async def main():
        found = []

        async def names(request, context):
            found.append(peer_names(context))
            return request

        handlers = {"Explain": grpc.unary_unary_rpc_method_handler(names)}
        handler = grpc.method_handlers_generic_handler("onnxplain.v1.ExplainerService", handlers)
        async with serving(None, [handler]) as address, grpc.aio.insecure_channel(address) as channel:
            await channel.unary_unary(EXPLAIN)(b"x")
        assert found == [()]

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nothing_older_than_tls_1_2_is_spoken(files):
    async def main():
        async with server(*files[:2]) as (address, _):
            for version, text in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
                context = trusting()
                context.minimum_version = context.maximum_version = version
                assert (await shake(address, context)).version() == text
            for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
                context = trusting()
                context.set_ciphers("ALL:@SECLEVEL=0")  # this side would do it
                context.minimum_version = context.maximum_version = version
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await shake(address, context)

    asyncio.run(main())


def test_a_new_certificate_is_shown_to_new_connections_and_no_call_fails(files, tmp_path):
    """Some clients stay connected, others connect anew for each call, while the certificate is replaced ten times."""

    async def main():
        answers, failures, done = 0, [], False

        async def stay(address):
            nonlocal answers
            async with dial(address) as channel:
                while not done:
                    await once(channel)

        async def come_and_go(address):
            while not done:
                async with dial(address) as channel:
                    await once(channel)

        async def once(channel):
            nonlocal answers
            try:
                await channel.unary_unary(EXPLAIN)(b"x", timeout=10)
                answers += 1
            except grpc.aio.AioRpcError as error:
                failures.append(error.details())

        async with server(*files[:2]) as (address, _):
            clients = [asyncio.create_task(client(address)) for client in (stay, stay, come_and_go, come_and_go)]
            serials = set()
            for _ in range(10):
                fresh = certificates.signed(AUTHORITY, "localhost", "127.0.0.1")
                fresh.write(tmp_path, "server")  # two renames: for a moment the key is not the certificate's
                await asyncio.sleep(0.05)
                shown = (await shake(address, trusting())).getpeercert()["serialNumber"]
                assert int(shown, 16) == fresh.certificate.serial_number
                serials.add(shown)
            done = True
            await asyncio.gather(*clients)
        assert not failures and answers > 50 and len(serials) == 10

    asyncio.run(main())


@pytest.mark.parametrize("damage", ["another key", "no certificate", "gone", "expired", "half a file"])
def test_a_wrong_pair_leaves_the_last_good_one(files, caplog, damage):
    cert, key, ca = files
    rotation = Rotation(cert, key, ca)
    assert rotation.newer() is None
    match damage:
        case "another key":
            key.write_bytes(CLIENT.key_pem())
        case "no certificate":
            cert.write_text("hello")
        case "gone":
            cert.unlink()
        case "expired":
            EXPIRED.write(cert.parent, "server")
        case "half a file":
            cert.write_bytes(SERVER.pem[:100])
    assert rotation.newer() is None and rotation.newer() is None
    assert rotation.pair.cert == SERVER.pem
    assert caplog.text.count("stays as it was") == 1  # said once, not at every handshake
    assert "Traceback" not in caplog.text
    fresh = certificates.signed(AUTHORITY, "localhost")
    fresh.write(cert.parent, "server")
    assert rotation.newer() is not None and rotation.pair.cert == fresh.pem


def test_files_are_read_again_only_when_they_changed(files, monkeypatch):
    rotation = Rotation(*files)
    reads = []
    monkeypatch.setattr(tls, "_read", lambda *names: reads.append(names))
    for _ in range(5):
        rotation.newer()
    assert not reads


def test_the_same_bytes_under_a_new_date_are_no_new_certificate(files):
    rotation = Rotation(*files)
    os.utime(files[0], ns=(1, 1))
    assert rotation.newer() is None


@pytest.mark.parametrize(
    "which, content, says",
    [
        (0, b"", "no TLS pair"),
        (0, b"hello", "no TLS pair"),
        (0, EXPIRED.pem, "the key does not belong"),
        (1, CLIENT.key_pem(), "the key does not belong"),
        (1, SERVER.key_pem(b"password"), "without a password"),
        (1, SERVER.pem, "no TLS pair"),
        (2, b"", "authority"),
        (2, b"hello", "authority"),
        (2, SERVER.pem, "authority"),
        (0, None, "cannot be read"),
        (1, None, "cannot be read"),
        (2, None, "cannot be read"),
    ],
)
def test_wrong_files_are_one_line_at_the_start(files, which, content, says):
    files[which].unlink()
    if content is not None:
        files[which].write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        server_credentials(*files)
    assert "\n" not in str(caught.value) and str(files[which]) in str(caught.value)


def test_an_expired_certificate_is_refused_at_the_start(files):
    EXPIRED.write(files[0].parent, "server")
    with pytest.raises(InputError, match="expired"):
        server_credentials(*files)


def test_an_expired_authority_is_refused_at_the_start(files):
    old = certificates.authority(lasts=timedelta(minutes=-1))
    files[2].write_bytes(old.pem)
    with pytest.raises(InputError, match="expired"):
        server_credentials(*files)


def test_a_certificate_that_ends_soon_is_a_warning(files, caplog):
    certificates.signed(AUTHORITY, "localhost", lasts=timedelta(days=2)).write(files[0].parent, "server")
    server_credentials(*files)
    assert "ends soon" in caplog.text
