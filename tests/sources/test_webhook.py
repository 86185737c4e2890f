"""Laws of MLflow's webhooks: which delivery is believed, and what a receiver answers to the rest."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from onnxplain.errors import UsageError
from onnxplain.sources import webhook as webhook_module
from onnxplain.sources.webhook import DeliveryRefused, WebhookReceiver, Webhooks


def delivery(webhooks, body=b"{}", id="d-1", at=1000, **changed):
    headers = {"x-mlflow-delivery-id": id, "x-mlflow-timestamp": str(at)}
    headers["x-mlflow-signature"] = webhooks.signature(id, str(at), body).decode()
    return {**headers, **changed}, body


def test_the_signature_is_mlflows():
    """The golden is from mlflow 3.17: webhooks.delivery._generate_hmac_signature("s", "id", "1", body)."""
    body = b'{"entity": "model_version_alias"}'
    assert Webhooks("s").signature("id", "1", body) == b"v1,yQakSuYrmGCqqzK/8w82xPdb6AI4W64LnrbMjcTjHq8="


def test_a_delivery_is_believed_once():
    webhooks = Webhooks("secret", clock=lambda: 1000.0)
    assert webhooks.accept(*delivery(webhooks)) is True
    assert webhooks.accept(*delivery(webhooks)) is False
    assert webhooks.accept(*delivery(webhooks, id="d-2")) is True


@pytest.mark.parametrize("at, believed", [(1000, True), (700, True), (1300, True), (699, False), (1301, False)])
def test_a_delivery_is_recent(at, believed):
    webhooks = Webhooks("secret", clock=lambda: 1000.0)
    with contextlib.nullcontext() if believed else pytest.raises(DeliveryRefused):
        assert webhooks.accept(*delivery(webhooks, at=at))


def test_whatever_is_changed_after_signing_is_not_believed():
    webhooks = Webhooks("secret", clock=lambda: 1000.0)
    headers, body = delivery(webhooks)
    other = Webhooks("other", clock=lambda: 1000.0)
    changed = [({**headers, name: headers[name] + "1"}, body) for name in headers]
    changed += [({k: v for k, v in headers.items() if k != name}, body) for name in headers]
    changed += [(headers, b"{ }"), ({}, b""), delivery(other), delivery(webhooks, id=""), delivery(webhooks, at="９")]
    for wrong in changed:
        with pytest.raises(DeliveryRefused):
            webhooks.accept(*wrong)
    with pytest.raises(UsageError, match="secret"):
        Webhooks("")


def test_ids_are_remembered_up_to_a_number(monkeypatch):
    monkeypatch.setattr(webhook_module, "REMEMBERED", 3)
    webhooks = Webhooks("secret", clock=lambda: 1000.0)
    for i in range(10):
        assert webhooks.accept(*delivery(webhooks, id=str(i)))
    assert len(webhooks._seen) == 3 and webhooks.accept(*delivery(webhooks, id="9")) is False


def posted(raw: bytes, receiver: WebhookReceiver) -> bytes:
    """The status line that a request gets from a receiver of its own loop."""

    async def talk() -> bytes:
        port = await receiver.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await receiver.stop()
        return answer.split(b"\r\n")[0]

    return asyncio.run(talk())


def request(headers, body, verb="POST", path="/mlflow", length=None) -> bytes:
    lines = [f"{verb} {path} HTTP/1.1", "Host: x", *(f"{k}: {v}" for k, v in headers.items())]
    lines += [f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_a_receiver_wakes_on_what_it_believes_and_on_nothing_else(monkeypatch):
    monkeypatch.setattr(webhook_module, "SECONDS", 0.3)
    woken = []
    receiver = WebhookReceiver("secret", lambda: woken.append(1))
    good = delivery(receiver.webhooks, at=int(time.time()))
    assert posted(request(*good), receiver).startswith(b"HTTP/1.1 200") and len(woken) == 1
    refused = {
        b"401": request({**good[0], "x-mlflow-signature": "v1,AAAA"}, good[1]),
        b"404": request(*good, path="/other"),
        b"405": request(*good, verb="GET"),
        b"411": request(*good, length="-1"),
        b"413": request(*good, length=10**8),
        b"408": request(*good, length=50),
    }
    for code, raw in refused.items():
        assert posted(raw, receiver).split()[1] == code
    assert posted(b"POST /mlflow HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n", receiver).split()[1] == b"413"
    assert posted(request(*good), receiver).startswith(b"HTTP/1.1 200") and len(woken) == 1  # the same delivery
