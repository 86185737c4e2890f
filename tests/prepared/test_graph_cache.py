"""Entries of the graph cache: what is damaged, foreign or too much is none, and is made anew; never a wrong answer."""

from __future__ import annotations

import gc
import os
import random
import shutil
import threading
import weakref
from itertools import combinations

import numpy as np
import onnx
import pytest
from nets import relu_net
from opened import answers, opened, same, weighty

from onnxplain.compile import Request
from onnxplain.errors import InputError, OnnxplainError, UsageError
from onnxplain.prepared import FolderCache
from onnxplain.prepared.entry import CacheEntry, DamagedEntry
from onnxplain.prepared.model import FORMS
from onnxplain.prepared.model_files import ModelFile
from onnxplain.recipes import named
from onnxplain.server.models.loaded import LoadedModel

FLIPS = 400  # of an entry, beside those at its beginning


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A model, its cache, its answers: (path, cache, answers)."""
    folder = tmp_path_factory.mktemp("kept")
    onnx.save(relu_net(), folder / "m.onnx")
    cache = FolderCache(folder / "graphs")
    with opened(folder / "m.onnx", cache) as loaded:
        return folder / "m.onnx", cache, answers(loaded)


def copied(cache: FolderCache, folder) -> FolderCache:
    shutil.copytree(cache.root, folder / "graphs")
    return FolderCache(folder / "graphs")


def entries(cache: FolderCache):
    return sorted(cache.root.glob("*.graph"))


def test_any_byte_that_changed_makes_an_entry_none(kept):
    _, cache, _ = kept
    rng = random.Random(0)
    for file in entries(cache):
        content = file.read_bytes()
        key = _key(content)
        assert CacheEntry.decode(content, key).key == key
        places = [*range(200), *(rng.randrange(len(content)) for _ in range(FLIPS)), len(content) - 1]
        for place in places:
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.randrange(8)
            with pytest.raises(DamagedEntry):
                CacheEntry.decode(bytes(flipped), key)
        for end in (0, 1, 18, 83, 84, 91, 92, len(content) // 2, len(content) - 1):
            with pytest.raises(DamagedEntry):
                CacheEntry.decode(content[:end], key)
        with pytest.raises(DamagedEntry):
            CacheEntry.decode(content + b"\0", key)


def _key(content: bytes):
    import json

    size = int.from_bytes(content[84:92], "little")
    return json.loads(content[92 : 92 + size])["key"]


@pytest.mark.parametrize("what", ["flipped", "cut off", "empty", "a folder", "another's", "a link", "writable by all"])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_wrong_with_an_entry_costs_time_and_no_answer(kept, which, what, tmp_path, caplog):
    path, source, expected = kept
    cache = copied(source, tmp_path)
    file, other = entries(cache)[which], entries(cache)[1 - which]
    content = file.read_bytes()
    if what == "flipped":
        file.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif what in ("cut off", "empty"):
        file.write_bytes(content[: len(content) // 2 if what == "cut off" else 0])
    elif what == "a folder":
        file.unlink()
        file.mkdir()
    elif what == "another's":
        shutil.copyfile(other, file)
    elif what == "a link":
        file.rename(tmp_path / "moved")
        file.symlink_to(tmp_path / "moved")
    else:
        file.chmod(0o666)
    with opened(path, cache) as loaded:
        same(expected, answers(loaded))
    said = [record.message for record in caplog.records if file.stem[:16] in record.message]
    assert len(said) == 1 or (what == "a folder" and len(said) > 1)  # nor can it be written in a folder's place
    if what != "a folder":
        assert file.read_bytes() == content  # made anew, and the same


def test_an_entry_of_another_model_is_not_this_ones(kept, tmp_path):
    _, source, _ = kept
    cache = copied(source, tmp_path)
    model = relu_net()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, tmp_path / "m.onnx")
    with opened(tmp_path / "m.onnx", None) as loaded:
        expected = answers(loaded)
    with opened(tmp_path / "m.onnx", cache) as loaded:
        same(expected, answers(loaded))
    assert len(entries(cache)) == 2 * len(entries(source))


def test_a_folder_that_everybody_can_write_to_is_refused(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UsageError, match="can be written by everybody"):
        FolderCache(tmp_path / "open")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        FolderCache(tmp_path / "file")
    assert FolderCache(tmp_path / "new").root.stat().st_mode & 0o777 == 0o700


def test_the_entries_not_read_for_longest_go_when_there_are_too_many(tmp_path):
    cache = FolderCache(tmp_path / "graphs", limit=1000)
    for n, name in enumerate("abc"):
        assert cache.put(name, [bytes(300)])
        os.utime(cache.root / f"{name}.graph", (n, n))
    assert cache.get("a") == bytes(300)  # read now: b is the one not read for longest
    assert cache.put("d", [bytes(100), bytes(200)])
    assert cache.get("b") is None and all(cache.get(name) is not None for name in "acd")
    assert not cache.put("e", [bytes(1001)]) and cache.get("e") is None
    assert all(cache.get(name) is not None for name in "acd")


def test_writers_at_the_same_time_leave_whole_entries(tmp_path):
    caches = [FolderCache(tmp_path / "graphs") for _ in range(4)]
    contents = [bytes([n]) * 200_000 for n in range(4)]
    seen: list[bytes] = []

    def work(n: int) -> None:
        for _ in range(20):
            assert caches[n].put("one", [contents[n][:1000], contents[n][1000:]])
            seen.append(caches[n].get("one") or b"")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80 and set(seen) <= set(contents)
    assert [file.name for file in (tmp_path / "graphs").iterdir()] == ["one.graph"]


def test_what_a_killed_writer_left_is_swept(tmp_path):
    cache = FolderCache(tmp_path)
    for name, age in ((".staged-old", 10**5), (".staged-new", 0)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (os.stat(tmp_path / name).st_mtime - age,) * 2)
    cache.put("a", [b"x"])
    assert {file.name for file in tmp_path.iterdir()} == {".staged-new", "a.graph"}


def test_a_cache_that_cannot_be_written_costs_time_only(kept, tmp_path):
    path, _, expected = kept
    cache = FolderCache(tmp_path / "graphs")
    shutil.rmtree(cache.root)
    cache.root.touch()  # a file: nobody, not even root, writes into it
    with opened(path, cache) as loaded:
        same(expected, answers(loaded))


def test_a_fault_in_keeping_costs_the_entry_and_no_answer(kept, tmp_path, monkeypatch, caplog):
    path, _, expected = kept
    cache = FolderCache(tmp_path / "graphs")

    def fail(*args):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("onnxplain.prepared.model.take_apart", fail)
    with opened(path, cache) as loaded:
        same(expected, answers(loaded))
    assert not entries(cache) and "a fault of ours" in caplog.text


def test_a_read_only_cache_is_never_written(kept, tmp_path):
    path, _, expected = kept
    empty = tmp_path / "empty"
    empty.mkdir()
    with opened(path, FolderCache(empty, read_only=True)) as loaded:
        same(expected, answers(loaded))
    assert not list(empty.iterdir())
    with pytest.raises(InputError):
        FolderCache(tmp_path / "missing", read_only=True)


def test_files_that_change_while_they_are_kept_are_not_kept(tmp_path, monkeypatch):
    cache, path = FolderCache(tmp_path / "graphs"), weighty(tmp_path / "m")
    with opened(path, None) as loaded:
        expected = answers(loaded)
    warm_up = LoadedModel._warm_up

    def changed_meanwhile(loaded):
        weighty(tmp_path / "m", 3.0)
        warm_up(loaded)

    monkeypatch.setattr(LoadedModel, "_warm_up", changed_meanwhile)
    with opened(path, cache) as loaded:
        same(expected, answers(loaded))
    assert not entries(cache)
    monkeypatch.setattr(LoadedModel, "_warm_up", warm_up)
    with opened(path, cache) as loaded:
        assert not np.array_equal(answers(loaded)["scores"], expected["scores"])


def test_a_model_whose_weights_have_memory_of_their_own_keeps_no_copy_of_its_file(kept, tmp_path, monkeypatch):
    path, read, files = kept[0], ModelFile.read, []

    def watched(at):
        files.append(weakref.ref(found := read(at)))
        return found

    def unkept(*args):
        raise ValueError("it cannot be kept")

    monkeypatch.setattr(ModelFile, "read", watched)
    cache = FolderCache(tmp_path / "graphs")
    with opened(path, cache) as loaded:
        with pytest.raises(OnnxplainError):
            loaded.variant(named("gradient"), Request(explain=("nonsense",)))
        monkeypatch.setattr("onnxplain.prepared.model.named_arrays.to_bytes", unkept)
        loaded.variant(named("gradient"), Request(explain=("r2",)))
        gc.collect()
        assert len(files) > 2 and not any(file() for file in files)


@pytest.mark.parametrize("warm", [False, True])
def test_what_is_known_of_normal_forms_is_bounded_however_many_are_asked_for(warm, tmp_path):
    onnx.save(relu_net(), tmp_path / "m.onnx")
    cache = FolderCache(tmp_path / "graphs")
    tensors = ("r1", "r2", "logits")
    requests = [Request(keep=keep) for n in range(1, 4) for keep in combinations(tensors, n)]
    requests += [Request(attribute_to=("r1",), keep=keep) for n in range(4) for keep in combinations(tensors, n)]
    requests = requests[: FORMS + 4]
    if warm:
        with opened(tmp_path / "m.onnx", cache) as loaded:
            for request in requests:
                loaded.variant(named("gradient"), request)
    with opened(tmp_path / "m.onnx", cache) as loaded:
        for request in requests:
            loaded.variant(named("gradient"), request)
        gc.collect()
        known = [found for found in gc.get_objects() if type(found).__name__ == "_Kept"]
        assert 0 < len(known) <= FORMS
        with opened(tmp_path / "m.onnx", None) as cold:
            same(answers(cold, named("gradient"), requests[0]), answers(loaded, named("gradient"), requests[0]))
