"""A picture over HTTP is explained as `onnxplain run` explains it: the same arrays, the same drawings."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
from over_http import served
from PIL import Image
from running import MODELS

from onnxplain.cli import main
from onnxplain.server.http import uploads
from onnxplain.server.http.explain_words import LISTS, NUMBERS, WORDS, ExplainWords, from_json, from_pairs
from onnxplain.server.http.tensors import json_array
from onnxplain.sources import DirectorySource

CNN, IRIS = "/v2/models/digits_cnn/explain", "/v2/models/iris_mlp/explain"
SEVEN = MODELS / "digits_cnn" / "samples" / "digit_7.png"
X = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
IRIS_BODY = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [2, 4], "data": X}]}


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("digits_cnn", "iris_mlp"):
        shutil.copytree(MODELS / name, folder / name, ignore=shutil.ignore_patterns("samples"))
    with served([DirectorySource(folder)]) as server:
        yield server


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """`onnxplain run` of the same picture: its folder."""

    def run(*arguments, model="digits_cnn", file=SEVEN):
        folder = tmp_path_factory.mktemp("out") / "run"
        command = ["run", str(MODELS / model), str(file), "--threads", "1", "--out", str(folder), *arguments]
        main(command)
        return folder

    return run


def arrays(folder):
    (found,) = folder.glob("*.npz")
    with np.load(found) as loaded:
        return dict(loaded)


def npz(answer):
    assert answer.status == 200, answer.body[:500]
    with np.load(io.BytesIO(answer.body)) as loaded:
        return dict(loaded)


def form(content, name, headers=None, **fields):
    """A body of multipart/form-data, and its headers."""
    edge = "--edge\r\ncontent-disposition: form-data; name="
    parts = "".join(f'{edge}"{field}"\r\n\r\n{value}\r\n' for field, value in fields.items())
    parts += f'{edge}"file"; filename="{name}"\r\ncontent-type: image/png\r\n\r\n'
    headers = {**(headers or {}), "content-type": "multipart/form-data; boundary=edge"}
    return parts.encode() + content + b"\r\n--edge--\r\n", headers


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype and found[name].tobytes() == expected[name].tobytes()


CASES = [
    ("", []),
    ("?method=gradient", ["--method", "gradient"]),
    ("?target=3&target=top2", ["--target", "3", "--target", "top2"]),
    ("?method=lrp&composite=epsilon&ledger=true", ["--method", "lrp", "--composite", "epsilon", "--ledger"]),
    ("?method=integrated_gradients&steps=4", ["--method", "integrated_gradients", "--option", "steps=4"]),
    ("?method=rise&masks=20", ["--method", "rise", "--option", "masks=20"]),
]


@pytest.mark.parametrize("query, arguments", CASES, ids=[query or "default" for query, _ in CASES])
def test_a_picture_gives_the_arrays_that_run_gives(rest, offline, query, arguments):
    sent = f"{CNN}{query}{'&' if query else '?'}format=npz"
    expected = arrays(offline(*arguments))
    equal(npz(rest.ask("POST", sent, SEVEN.read_bytes(), {"content-type": "image/png"})), expected)


@pytest.mark.parametrize("query, arguments", CASES, ids=[query or "default" for query, _ in CASES])
def test_json_holds_the_same_numbers(rest, query, arguments):
    content = SEVEN.read_bytes()
    expected = npz(rest.ask("POST", f"{CNN}{query}{'&' if query else '?'}format=npz", content))
    answer = rest.ask("POST", f"{CNN}{query}", content, {"content-type": "image/png", "accept": "application/json"})
    found = answer.json
    tensor = found["attributions"][0]
    array = json_array(tensor["datatype"], tensor["shape"], tensor["data"], "data")
    assert array.tobytes() == expected[f"{tensor['of']}.relevance"].tobytes()
    assert [t["target"] for t in found["targets"]] == expected["targets"].tolist()
    assert found["classes"][0][0]["name"] and ("rise" in query or found["provenance"]["rules"])
    errors = {
        f"{t['of']}.standard_error": json_array(t["datatype"], t["shape"], t["data"], "data")
        for t in found["standard_errors"]
    }
    equal(errors, {name: array for name, array in expected.items() if name.endswith(".standard_error")})
    assert ("rise" in query) == bool(errors) == (found["standard_error"] is not None)
    assert len(found["where"]) == len(found["targets"]) * found["samples"]
    if "ledger" in query:
        assert found["conservation"][0]["relative_error"] < 1e-3


def test_every_way_to_send_a_picture_is_the_same(rest):
    content = SEVEN.read_bytes()
    expected = npz(rest.ask("POST", f"{CNN}?target=3&format=npz", content))
    plain = {"content-type": "application/x-www-form-urlencoded"}  # as curl --data-binary says of everything
    equal(npz(rest.ask("POST", f"{CNN}?target=3&format=npz", content, plain)), expected)
    body, headers = form(content, "../a/seven.png", target="3", format="npz", steps="")
    equal(npz(rest.ask("POST", CNN, body, headers)), expected)
    image = base64.b64encode(content).decode()
    equal(npz(rest.ask("POST", CNN, {"image": image, "target": "3", "format": "npz"})), expected)
    equal(npz(rest.ask("POST", f"{CNN}?format=npz", {"image": image, "target": [3]})), expected)


def test_tensors_and_tables_are_explained_too(rest, offline, tmp_path):
    file = tmp_path / "x.npy"
    np.save(file, np.array(X, np.float32))
    expected = arrays(offline(model="iris_mlp", file=file))
    equal(npz(rest.ask("POST", f"{IRIS}?format=npz", IRIS_BODY)), expected)
    equal(npz(rest.ask("POST", f"{IRIS}?format=npz", file.read_bytes())), expected)
    text = "\n".join(",".join(map(str, row)) for row in X).encode()
    equal(npz(rest.ask("POST", f"{IRIS}?format=npz", text, {"content-type": "text/csv"})), expected)


def test_drawings_are_those_of_run(rest, offline):
    folder = offline()
    overlay = next(folder.glob("*.overlay.png")).read_bytes()
    drawn = next(p for p in folder.glob("*.png") if p.name != "grid.png" and ".overlay" not in p.name).read_bytes()
    content = SEVEN.read_bytes()
    answer = rest.ask("POST", CNN, content, {"accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    assert answer.body == overlay == rest.ask("POST", f"{CNN}?format=png&draw=overlay", content).body
    assert rest.ask("POST", f"{CNN}?format=png&draw=map", content).body == drawn
    grid = rest.ask("POST", f"{CNN}?format=png&target=top3", content)
    assert Image.open(io.BytesIO(grid.body)).height > 500
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = rest.ask("POST", CNN, *form(content, "digit_7.png", browser))
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    report, pictures = (folder / "report.html").read_text(), r"data:image/png;base64,[^\"]+"
    assert re.findall(pictures, report) == re.findall(pictures, page.body.decode()) != []
    assert "Why digits_cnn decided" in report and "Why digits_cnn decided" in page.body.decode()


@pytest.mark.parametrize(
    "query, body, headers, status, says",
    [
        ("", b"", {}, 400, "empty"),
        ("", b"GIF89a", {"content-type": "image/gif"}, 415, "png, jpg"),
        ("", b"%!PS-Adobe-3.0 EPSF-3.0", {"content-type": "image/png"}, 415, "png, jpg"),
        ("", b"\x89PNG\r\n\x1a\nrubbish", {}, 400, "cannot be read as a picture"),
        ("?format=gif", b"\x89PNG", {}, 400, "format"),
        ("", b"\x89PNG", {"accept": "image/gif"}, 406, "image/png"),
        ("?draw=overlay", b"\x89PNG", {}, 400, "says nothing to json"),
        ("?format=png&draw=sketch", b"\x89PNG", {}, 400, "drawing"),
        ("?format=png&palette=pink", b"\x89PNG", {}, 400, "palette"),
        ("?target=nope", None, {}, 400, "nope"),
        ("?method=nope", None, {}, 400, "nope"),
        ("?taget=3", None, {}, 400, "taget"),
        ("?method=gradient&method=lrp", None, {}, 400, "twice"),
        ("?ledger=perhaps", None, {}, 400, "ledger"),
        ("?priority=11", None, {}, 400, "priority"),
        ("?priority=1.5", None, {}, 400, "priority"),
        ("?priority=-1", None, {}, 400, "priority"),
        ("?queue_timeout=soon", None, {}, 400, "queue_timeout"),
        ("?queue_timeout=nan", None, {}, 400, "queue_timeout"),
        ("?queue_timeout=1e12", None, {}, 400, "queue_timeout"),
        ("", {"image": "", "priority": "1"}, {}, 400, "priority"),
        ("", {"image": "", "priority": True}, {}, 400, "priority"),
        ("?recipe=lrp&steps=3", None, {}, 400, "stands alone"),
        ("", {"image": "***"}, {}, 400, "base64"),
        ("", {"image": 3}, {}, 400, "string"),
        ("", {}, {}, 400, "inputs"),
        ("", {"image": "", "inputs": []}, {}, 400, "inputs"),
        ("", {"img": ""}, {}, 400, "image"),
        ("", {"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "data": [1]}]}, {}, 400, "no input is named"),
        ("", {"options": {"a": [[[[[[[[[[1]]]]]]]]]]}, "image": ""}, {}, 400, "deeply"),
        ("", b"x", {"content-type": "multipart/form-data"}, 400, "form"),
        ("", b"--a\r\nx", {"content-type": "multipart/form-data; boundary=a"}, 400, "form"),
    ],
)
def test_whatever_is_wrong_is_one_line(rest, query, body, headers, status, says):
    body = SEVEN.read_bytes() if body is None else body
    answer = rest.ask("POST", CNN + query, body, headers)
    assert (answer.status, says in answer.error) == (status, True), answer.body
    assert "/tmp" not in answer.error and "\n" not in answer.error
    assert rest.ask("POST", "/v2/models/nope/explain", b"\x89PNG").status == 404


def test_a_picture_has_a_limit_before_it_is_unpacked(rest, monkeypatch):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", huge) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    answer = rest.ask("POST", CNN, bomb)
    assert answer.status in (400, 413)
    monkeypatch.setattr(uploads, "PIXELS", 10)
    answer = rest.ask("POST", CNN, SEVEN.read_bytes())
    assert answer.status == 413 and "pixels" in answer.error


def test_reasons_and_answer_come_from_one_version(rest):
    found = rest.ask("POST", "/v2/models/digits_cnn/versions/1/explain", SEVEN.read_bytes()).json
    assert found["model_version"] == "1"
    assert rest.ask("POST", "/v2/models/digits_cnn/versions/9/explain", SEVEN.read_bytes()).status == 404
    scores = found["scores"]
    assert scores["shape"] == [1, 10]
    assert json.dumps(found)


def test_a_model_in_a_process_of_its_own_answers_the_same(rest, tmp_path):
    shutil.copytree(MODELS / "digits_cnn", tmp_path / "digits_cnn", ignore=shutil.ignore_patterns("samples"))
    with served([DirectorySource(tmp_path)], isolate=True) as isolated:
        for query in ("?format=npz&ledger=true", "?format=npz&target=nope"):
            theirs, ours = (server.ask("POST", CNN + query, SEVEN.read_bytes()) for server in (isolated, rest))
            assert theirs.status == ours.status and (theirs.status == 400 or npz(theirs).keys() == npz(ours).keys())
        equal(
            npz(isolated.ask("POST", f"{CNN}?format=npz", SEVEN.read_bytes())),
            npz(rest.ask("POST", f"{CNN}?format=npz", SEVEN.read_bytes())),
        )


@pytest.mark.parametrize("form", ["query", "json"])
def test_a_turn_is_asked_for_as_over_grpc(form):
    said = {"priority": 2, "queue_timeout": 1.5}
    words = (
        from_json(ExplainWords(), said)
        if form == "json"
        else from_pairs(ExplainWords(), [(n, str(v)) for n, v in said.items()])
    )
    message = words.message("m", "", "lrp")
    assert message.priority == 2 and message.queue_timeout.ToNanoseconds() == 1_500_000_000
    assert not ExplainWords().message("m", "", "lrp").HasField("queue_timeout")
    fields = {field.name for field in message.DESCRIPTOR.fields}
    elsewhere = {"model", "request_id", "inputs", "targets", "diagnostics", "output_format"}  # path, body
    assert fields - elsewhere <= {*LISTS, *WORDS, *NUMBERS}
