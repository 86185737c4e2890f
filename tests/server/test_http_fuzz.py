"""Requests that no client would send: an answer of ours each time, never 500, never a connection without an answer."""

from __future__ import annotations

import copy
import gzip
import http.client
import json
import os
import random
import re
import shutil

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from over_http import served
from running import MODELS
from service.nets import any_length, scalar, store

from onnxplain.server.http.errors import STATUS
from onnxplain.server.http.pages import EVERYTHING
from onnxplain.sources import DirectorySource

EXAMPLES = int(os.environ.get("ONNXPLAIN_FUZZ", "400"))  # 10 000 an evening
FINE = {200, 303, 400, 404, 405, 406, 413, 415, 429, 501, 504}
SEVEN = (MODELS / "digits_cnn" / "samples" / "digit_7.png").read_bytes()
X = {"name": "X", "datatype": "FP32", "shape": [2, 4], "data": [[1, 2, 3, 4], [5, 6, 7, 8.5]]}
BODIES = [
    {"id": "a", "inputs": [X], "outputs": [{"name": "label", "parameters": {"binary_data": True}}]},
    {"inputs": [X], "parameters": {"onnxplain_target": "1", "priority": 1}},
    {"inputs": [{**X, "parameters": {"binary_data_size": 32}}]},
    {"inputs": [{"name": "x", "datatype": "INT64", "shape": [], "data": 3}]},
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 0], "data": []}]},
    {"inputs": [X], "target": ["1", "top2"], "method": "gradient", "ledger": False, "outputs": "probabilities"},
    {"inputs": [X], "recipe": {"method": "lrp", "composite": "epsilon"}, "head": "keep"},
    {"inputs": [X], "options": {"epsilon": 0.1}, "format": "png", "draw": "grid", "palette": "bwr"},
    {"image": "iVBORw0KGgo="},
    {"instances": X["data"]},
    {"inputs": {"X": X["data"]}, "target": "0 vs 1"},
    {"ready": True},
    {"parameters": {"unload_dependents": True}},
]
ODD = [
    None,
    True,
    0,
    -1,
    2**63,
    2**64,
    1e308,
    0.5,
    "",
    "NaN",
    "\ud800",
    "é" * 300,
    [],
    {},
    [[]],
    "FP16",
    "BYTES",
    [1] * 20,
]
NAMES = [
    "iris_mlp",
    "iris_mlp.explain",
    "iris_mlp.explain.gradient",
    "scalar",
    "any_length",
    "digits_cnn",
    "nope",
    "..",
    "a%00",
]
QUERIES = [
    "",
    "?format=npz",
    "?format=html&target=2",
    "?method=gradient",
    "?steps=3",
    "?ledger",
    "?target=%ff",
    "?a=b&a=b",
]
HEADERS = [
    {}, {"accept": "image/png"}, {"content-encoding": "gzip"}, {"inference-header-content-length": "0"},
    {"inference-header-content-length": "40"}, {"content-type": "multipart/form-data; boundary=a"},
    {"content-type": "text/csv"}, {"x-request-timeout": "5"}, {"x-request-id": "é"}, {"content-type": "\x80"},
]  # fmt: skip


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("iris_mlp", "digits_cnn"):
        shutil.copytree(MODELS / name, folder / name, ignore=shutil.ignore_patterns("samples"))
    store(scalar(), folder, "scalar")
    store(any_length(), folder, "any_length")
    with served([DirectorySource(folder)], queue_rows=1000) as server:
        yield server


def mutated(value, rng):
    """A copy in which something is another thing."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    for _ in range(rng.randrange(3)):
        holder, key = rng.choice(places)
        change = rng.randrange(4)
        try:
            if change == 0 and isinstance(holder, dict):
                del holder[key]
            elif change == 1 and isinstance(holder, dict):
                holder[rng.choice(["name", "data", "shape", "parameters", "x", "inputs"])] = rng.choice(ODD)
            else:
                holder[key] = copy.deepcopy(rng.choice(ODD))
        except (KeyError, IndexError):
            continue
    return value


def _places(value):
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def content(rng):
    body = json.dumps(mutated(rng.choice(BODIES), rng)).encode()
    kind = rng.randrange(10)
    if kind == 0:
        body = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
    elif kind == 1:
        body = gzip.compress(body)[: rng.choice([None, 20])]
    elif kind == 2:
        body = bytearray(SEVEN)
        for _ in range(rng.randrange(3)):
            body[rng.randrange(len(body))] = rng.randrange(256)
    elif kind == 3:
        edge = b'--a\r\ncontent-disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        body = (edge + SEVEN + b"\r\n--a--\r\n")[: rng.choice([None, 10, 200])]
    elif kind == 4:
        body += rng.randbytes(rng.choice([32, 33]))
    elif kind == 5:
        body = rng.randbytes(rng.randrange(64))
    elif kind == 6:
        body = json.dumps(rng.choice(ODD)).encode()
    return bytes(body)


@seed(9)
@settings(
    max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(start=st.integers(0, 2**32))
def test_no_request_is_answered_by_500(rest, start):
    rng = random.Random(start)
    endpoint = rng.choice(EVERYTHING if rng.random() < 0.2 else [e for e in EVERYTHING if e.body])
    path = endpoint.path.replace("{model}", rng.choice(NAMES)).replace("{version}", rng.choice(["1", "2", "x"]))
    verb = endpoint.verb if rng.random() < 0.95 else rng.choice(["PUT", "OPTIONS", "HEAD", "GET", "POST"])
    sent = content(rng) if verb == "POST" else None
    answer = rest.ask(verb, path + rng.choice(QUERIES), sent, rng.choice(HEADERS))
    assert answer.status in FINE, (verb, path, sent, answer.body[:500])
    if answer.status >= 400 and verb != "HEAD":
        found = answer.json
        assert found["error"] and "\n" not in found["error"] and found["code"] in STATUS
        assert not re.search(r"/tmp|/home|Traceback", found["error"])


POST = b"POST /v2/models/iris_mlp/infer HTTP/1.1\r\nhost: a\r\n"
RAW = [
    b"", b"\r\n\r\n", b"GET", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
    b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"GET \x00 HTTP/1.1\r\nhost: a\r\n\r\n",
    POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}",
    POST + b"content-length: -1\r\n\r\n",
    POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    POST + b"transfer-encoding: chunked\r\n" + b"content-length: 3\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: repr(raw[:40]))
def test_bytes_that_are_no_request_leave_the_server_as_it_was(rest, raw):
    connection = http.client.HTTPConnection("127.0.0.1", rest.port, timeout=10)
    connection.connect()
    connection.sock.sendall(raw)
    connection.sock.settimeout(0.2)
    try:
        answer = connection.sock.recv(100)
        assert not answer or answer.split()[1] in (b"303", b"200", b"400", b"404")
    except OSError:
        pass
    finally:
        connection.close()
    assert rest.ask("GET", "/v2/health/live").status == 200
