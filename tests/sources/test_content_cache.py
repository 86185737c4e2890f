"""Laws of the cache of downloaded models: whole or not at all, and what comes out is what went in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from onnxplain.errors import InputError, Unavailable
from onnxplain.sources.cache import ContentCache

PLAIN = {"onnx": "model.onnx", "recipe": None}


def fill(content=b"one", name="model.onnx", about=PLAIN):
    def write(folder: Path):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        return about

    return write


def never(folder):
    raise AssertionError("was in the cache")


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != "keys")


def test_what_was_put_is_what_is_got_with_what_was_said_about_it(tmp_path):
    cache = ContentCache(tmp_path / "c")
    assert cache.get("k") is None
    put = cache.put("k", fill())
    assert ContentCache(tmp_path / "c").get("k") == put
    assert (put.folder / "model.onnx").read_bytes() == b"one" and put.about == PLAIN
    assert entries(tmp_path / "c") == [put.folder.name] and len(put.folder.name) == 64


def test_the_same_content_is_stored_once(tmp_path):
    cache = ContentCache(tmp_path / "c")
    assert cache.put("a", fill()).folder == cache.put("b", fill()).folder != cache.put("c", fill(b"two")).folder
    assert len(entries(tmp_path / "c")) == 2


@pytest.mark.parametrize("damage", ["byte", "length", "missing", "more", "link", "index", "about", "key", "no index"])
def test_a_damaged_entry_is_fetched_anew(damage, tmp_path):
    cache = ContentCache(tmp_path / "c")
    cached = cache.put("k", fill())
    file, index = cached.folder / "model.onnx", tmp_path / "c" / f"{cached.folder.name}.json"
    if damage in ("byte", "length"):
        file.write_bytes(b"onE" if damage == "byte" else b"on")
    elif damage == "missing":
        file.unlink()
    elif damage == "more":
        (cached.folder / "more").write_bytes(b"")
    elif damage == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif damage == "index":
        index.write_text("{")
    elif damage == "about":
        index.write_text(index.read_text().replace('"model.onnx", "recipe"', '"../x", "recipe"'))
    elif damage == "key":
        next((tmp_path / "c/keys").iterdir()).write_text("../../../etc")
    else:
        index.unlink()
    assert cache.get("k") is None
    assert (cache.put("k", fill()).folder / "model.onnx").read_bytes() == b"one"
    assert cache.get("k") == cached


def test_a_fill_that_fails_leaves_nothing_and_takes_nothing(tmp_path):
    cache = ContentCache(tmp_path / "c")
    kept = cache.put("k", fill())

    def failing(folder):
        (folder / "part").write_bytes(b"half")
        raise Unavailable("gone")

    for key in ("k", "new"):
        with pytest.raises(Unavailable):
            cache.put(key, failing)
    assert cache.get("k") == kept and cache.get("new") is None
    assert [p.name for p in (tmp_path / "c").iterdir() if p.name.startswith(".")] == []


def test_links_special_files_and_what_is_too_much_are_refused(tmp_path):
    cache = ContentCache(tmp_path / "c", files=5, total=100)
    makers = {
        "symbolic link": lambda folder: (folder / "a").symlink_to("/etc/hostname"),
        "neither a file": lambda folder: os.mkfifo(folder / "a"),
        "hard links": lambda folder: ((folder / "a").write_bytes(b""), os.link(folder / "a", folder / "b")),
        "more than 5": lambda folder: [(folder / str(i)).mkdir() for i in range(6)],
        "more than 100": lambda folder: (folder / "a").write_bytes(bytes(101)),
    }
    for says, make in makers.items():
        with pytest.raises(InputError, match=says):
            cache.put("k", lambda folder, make=make: (make(folder), PLAIN)[1])
    assert entries(tmp_path / "c") == []


def test_a_full_disk_is_an_input_error_that_says_so(tmp_path):
    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left on device"):
        ContentCache(tmp_path / "c").put("k", full)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        ContentCache(tmp_path / "file").put("k", fill())


def test_what_was_longest_unused_goes_first_and_what_is_in_use_stays(tmp_path):
    root = tmp_path / "c"
    old = [ContentCache(root).put(str(i), fill(bytes([i]) * 10)) for i in range(3)]
    for age, cached in zip((300, 100, 200), old, strict=True):
        os.utime(root / f"{cached.folder.name}.json", (time.time() - age,) * 2)
    cache = ContentCache(root, kept=25)
    assert cache.get("0") == old[0]  # used again, and by this process
    cache.put("new", fill(b"n" * 10))
    assert cache.get("0") and cache.get("new") and not cache.get("1") and not cache.get("2")
