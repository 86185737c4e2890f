"""Bulk runs over an object store: rows, names and errors are those of the same files on this machine."""

from __future__ import annotations

from urllib.parse import urlsplit

import numpy as np
import pytest
from nets import MODELS
from PIL import Image

from onnxplain.bulk import Dataset
from onnxplain.cli import main

from .remote_stores import s3

pytestmark = [pytest.mark.clients, pytest.mark.timeout(120)]


def run(*arguments: object) -> int:
    try:
        main(["run", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("names", ["", "/*.png", "/more/a.npy"])
def test_rows_of_a_bucket_are_the_rows_of_a_folder(names, tmp_path, monkeypatch):
    fs = pytest.importorskip("pyarrow.fs")
    pytest.importorskip("moto")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    digits = np.load(MODELS / "digits_cnn" / "samples" / "ten_digits.npz")["input"]
    for n in range(5):
        Image.fromarray((255 * digits[n, 0]).astype(np.uint8)).save(folder / f"{n}.png")
    (folder / "bad.png").write_bytes(b"not a picture")
    np.save(folder / "more" / "a.npy", digits[5:])
    with s3(tmp_path) as address:
        place = urlsplit(address)
        query = f"scheme={place.scheme}&endpoint_override={place.netloc}&region=us-east-1"
        system, _ = fs.FileSystem.from_uri(f"s3://bucket?{query}&allow_bucket_creation=true")
        system.create_dir("bucket")
        fs.copy_files(str(folder), "bucket/data", destination_filesystem=system)
        codes = []
        for where, out in ((f"{folder}{names}", "here"), (f"s3://bucket/data{names}?{query}", "there")):
            options = ["--engine", "local", "--partition-rows", 4, "--out", tmp_path / out]
            codes.append(run(MODELS / "digits_cnn", where, *options))
    assert codes == ([0, 0] if "npy" in names else [4, 4])
    here, there = ([*Dataset(tmp_path / out).rows()] for out in ("here", "there"))
    assert len(there) == len(here) > 4
    for found, row in zip(there, here, strict=True):
        assert found.path == row.path.replace(str(folder), "s3://bucket/data")
        assert found.error == row.error.replace(str(folder), "s3://bucket/data")
        assert (found.row, found.index, found.targets) == (row.row, row.index, row.targets)
        for name, relevance in row.relevances.items():
            np.testing.assert_array_equal(found.relevances[name], relevance)
