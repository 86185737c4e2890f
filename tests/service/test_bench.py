"""onnxplain bench HOST:PORT against a real server: figures that add up, errors in one line."""

from __future__ import annotations

import csv
import io
import json

import pytest

from onnxplain.cli import main
from onnxplain.cli.bench_server import steps
from onnxplain.errors import UsageError


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = 0
    try:
        main(["bench", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_closed_loops_beside_bare_onnxruntime(server, models, capsys):
    file = str(models / "digits_cnn" / "1" / "model.onnx")
    options = ("--model", "digits_cnn", "--concurrency-range", "1,4", "--duration", "0.8", "--bare", file, "--json")
    code, out, _ = bench(capsys, server.address, *options)
    assert code == 0
    lines = json.loads(out)["lines"]
    assert [line["clients"] for line in lines] == [1, 4]
    for line in lines:
        assert line["failed"] == line["refused"] == line["late"] == 0
        assert 0 < line["bare_p50_ms"] < line["p50_ms"] <= line["p90_ms"] <= line["p99_ms"]
        assert line["calls_per_second"] * 1e-3 * line["p50_ms"] < 2 * line["clients"]
        assert 1 <= line["rows_per_run"] <= line["clients"]


def test_an_open_loop_as_csv(server, capsys):
    options = ("--model", "any_length.explain", "--rate", "50", "--duration", "1", "--rows", "2", "--csv")
    code, out, _ = bench(capsys, server.address, *options)
    assert code == 0
    (line,) = csv.DictReader(io.StringIO(out))
    assert line["model"] == "any_length.explain" and float(line["rate"]) == 50
    assert 25 < float(line["calls_per_second"]) <= 51
    assert float(line["rows_per_second"]) == pytest.approx(2 * float(line["calls_per_second"]), abs=0.1)


def test_what_cannot_be_timed_is_told_in_one_line(server, capsys):
    code, _, err = bench(capsys, server.address, "--model", "nobody", "--duration", "0.2")
    assert code == 4 and "nobody" in err and err.count("\n") == 1
    code, _, err = bench(capsys, "127.0.0.1:1", "--duration", "0.2")
    assert code == 4 and err.count("\n") == 1
    code, _, err = bench(capsys, server.address, "--bare", __file__)
    assert code == 2 and "--model" in err
    code, _, err = bench(capsys, server.address, "--concurrency-range", "9:x")
    assert code == 2 and "1:32" in err


def test_a_range_doubles_and_a_list_is_as_it_says():
    assert steps("1:32") == [1, 2, 4, 8, 16, 32]
    assert steps("3:20") == [3, 6, 12]
    assert steps("1,8,32") == [1, 8, 32]
    for wrong in ("0:4", "", "a", "1,-1", "1:99999"):
        with pytest.raises(UsageError):
            steps(wrong)


def test_a_model_file_is_no_address(capsys):
    code, _, err = bench(capsys, "no/such/model.onnx")
    assert code == 4 and "model.onnx" in err
