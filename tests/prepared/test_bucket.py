"""The graph cache in a bucket: replicas share it, and one that is down costs time only."""

from __future__ import annotations

import fsspec
import pytest
from opened import answers, opened, same

from onnxplain.errors import UsageError
from onnxplain.prepared import FolderCache
from onnxplain.sources.graph_bucket import BucketCache, graph_cache


@pytest.fixture
def address():
    place = "memory://bucket/graphs"
    yield place
    system = fsspec.filesystem("memory")
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


def test_a_replica_starts_from_what_another_put_into_the_bucket(address, monkeypatch):
    with opened("digits_cnn", graph_cache(address, 0)) as loaded:
        expected = answers(loaded)
    assert len(fsspec.filesystem("memory").ls("/bucket/graphs")) == 2

    def refuse(*args, **more):
        raise AssertionError("made again")

    monkeypatch.setattr("onnxplain.subject.load", refuse)
    monkeypatch.setattr("onnxplain.explanation_graph.compile_graph", refuse)
    with opened("digits_cnn", BucketCache(address)) as loaded:
        same(expected, answers(loaded))


def test_what_is_not_there_is_none_and_what_was_dropped_is_not_there(address):
    cache = BucketCache(address)
    assert cache.get("a") is None
    cache.drop("a")
    assert cache.put("a", [b"x", memoryview(b"yz")]) and cache.get("a") == b"xyz"
    assert cache.put("a", [b"new"]) and cache.get("a") == b"new"
    cache.drop("a")
    assert cache.get("a") is None


def test_a_bucket_that_is_down_costs_time_only_and_is_left_alone(address, monkeypatch, caplog):
    cache, asked = BucketCache(address), []

    def down(*args, **more):
        asked.append(args)
        raise ConnectionError("no route to the store")

    memory = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(memory, "cat_file", down)
    with opened("iris_mlp", cache) as loaded, opened("iris_mlp", None) as plain:
        same(answers(plain), answers(loaded))
    assert len(asked) == 1 and "no route to the store" in caplog.text


def test_an_address_is_a_bucket_and_a_path_a_folder(tmp_path):
    assert isinstance(graph_cache(str(tmp_path / "graphs"), 10), FolderCache)
    assert isinstance(graph_cache("s3://bucket/graphs", 10), BucketCache)
    with pytest.raises(UsageError, match="needs a library"):
        BucketCache("abfs://bucket/graphs").get("a")
