"""Laws of loading, swapping and letting go, with sources and models that only pretend."""

from __future__ import annotations

import asyncio
import threading

import pytest

from onnxplain.engines.ray_replica import _Noted
from onnxplain.errors import InputError, NotFound, Unavailable, UnsupportedModel
from onnxplain.server.models import entry, source_answers
from onnxplain.server.models.entry import LOADING, READY, UNAVAILABLE
from onnxplain.server.models.load_turns import LoadTurns
from onnxplain.server.models.repository import ModelRepository, Unsupported
from onnxplain.sources import Release


class Fake:
    """A model that notes when it is closed."""

    def __init__(self, release):
        self.name, self.version, self.mark = release.name, release.version, release.fingerprint
        self.closed = False

    async def close(self):
        self.closed = True


class Shop:
    """A source that offers what it is told to; `bad` fingerprints cannot be loaded."""

    name = "shop"

    def __init__(self, *offers):
        self.offers, self.error, self.problems = list(offers), None, {}
        self.bad, self.loaded = set(), []

    def releases(self):
        if self.error is not None:
            raise self.error
        return [Release(*offer) for offer in self.offers]

    def fetch(self, release):
        raise AssertionError("the loader here does not fetch")

    async def load(self, source, release):
        await asyncio.sleep(0)
        if release.fingerprint in self.bad:
            raise UnsupportedModel("broken")
        self.loaded.append(Fake(release))
        return self.loaded[-1]


def repository(shop, control="poll", **more):
    return ModelRepository([shop], shop.load, control, **more)


async def answer(found, name="m", version=""):
    async with found.use(name, version) as served:
        return served.version, served.mark


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_new_version_replaces_the_old_one_and_calls_finish_on_theirs():
    async def story():
        shop = Shop(("m", "1", "a"))
        found = repository(shop)
        await found.refresh()
        async with found.use("m") as old:
            shop.offers = [("m", "2", "b")]
            await found.refresh()
            assert await answer(found) == ("2", "b")
            await settled()
            assert not old.closed  # somebody is still with it
            with pytest.raises(NotFound):
                found.entry("m", "1")
        await settled()
        assert old.closed
        assert found.index() == [("m", "2", READY, "")]

    asyncio.run(story())


def test_a_version_goes_back_when_the_source_does():
    async def story():
        shop = Shop(("m", "1", "a"))
        found = repository(shop)
        for version in ("1", "2", "1", "3", "1"):
            shop.offers = [("m", version, "x" + version)]
            await found.refresh()
            assert (await answer(found))[0] == version

    asyncio.run(story())


def test_a_bad_version_never_replaces_a_good_one():
    async def story():
        shop = Shop(("m", "1", "a"))
        found = repository(shop)
        await found.refresh()
        shop.bad = {"b", "c"}
        shop.offers = [("m", "2", "b")]
        for _ in range(3):
            await found.refresh()
            assert await answer(found) == ("1", "a")
        assert ("m", "2", UNAVAILABLE, "broken") in found.index()
        assert found.ready and "m/2" in found.problems()
        shop.offers = [("m", "1", "c")]  # the same version, its files overwritten by rubbish
        await found.refresh()
        assert await answer(found) == ("1", "a")
        assert ("m", "1", UNAVAILABLE, "broken") in found.index()
        shop.offers = [("m", "1", "d")]
        await found.refresh()
        assert await answer(found) == ("1", "d")
        await settled()
        assert [m.closed for m in shop.loaded] == [True, False]

    asyncio.run(story())


def test_a_silent_source_takes_nothing_away():
    async def story():
        shop = Shop(("m", "1", "a"))
        found = repository(shop)
        await found.refresh()
        shop.error = Unavailable("registry down")
        await found.refresh()
        assert await answer(found) == ("1", "a")
        assert found.problems() == {"shop": "registry down"} and found.ready
        shop.error, shop.offers = None, [("m", "2", "b")]
        await found.refresh()  # too soon: a silent source is left alone for a while
        assert await answer(found) == ("1", "a")
        found.health._backoff.clear()
        await found.refresh()
        assert await answer(found) == ("2", "b")

    asyncio.run(story())


def test_a_server_whose_source_was_never_heard_is_not_ready():
    async def story():
        shop = Shop()
        shop.error = Unavailable("registry down")
        found = repository(shop)
        await found.refresh()
        assert not found.ready

    asyncio.run(story())


def test_aliases_follow_their_versions():
    async def story():
        shop = Shop(("m", "1", "a", ("old",)), ("m", "2", "b", ("champion",)))
        found = repository(shop)
        await found.refresh()
        assert (await answer(found, "m", "@champion"))[0] == "2"
        assert (await answer(found, "m", "@old"))[0] == "1"
        shop.offers = [("m", "1", "a", ("champion",)), ("m", "2", "b", ())]
        await found.refresh()
        assert (await answer(found, "m", "@champion"))[0] == "1"
        with pytest.raises(NotFound, match="has no alias"):
            found.entry("m", "@old")
        assert (await answer(found))[0] == "2"

    asyncio.run(story())


def test_errors_say_what_is_there():
    async def story():
        found = repository(Shop(("model", "1", "a")))
        await found.refresh()
        with pytest.raises(NotFound, match="Did you mean model"):
            found.entry("mode")
        with pytest.raises(NotFound, match="it has 1"):
            found.entry("model", "7")

    asyncio.run(story())


def test_explicit_control_loads_and_unloads_on_demand_only():
    async def story():
        shop = Shop(("a", "1", "x"), ("b", "1", "y"))
        found = repository(shop, "explicit", first=["a"])
        await found.refresh()
        assert found.names() == ["a"]
        assert ("b", "1", UNAVAILABLE, "not loaded") in found.index()
        await found.load("b")
        assert found.names() == ["a", "b"]
        await found.load("b")  # again: reloaded
        await settled()
        assert [m.closed for m in shop.loaded if m.name == "b"] == [True, False]
        await found.unload("a")
        with pytest.raises(NotFound):
            found.entry("a")
        with pytest.raises(NotFound):
            await found.load("nothing")
        shop.bad = {"z"}
        shop.offers = [("b", "1", "z")]
        with pytest.raises(UnsupportedModel):
            await found.load("b")
        assert await answer(found, "b") == ("1", "y")

    asyncio.run(story())


@pytest.mark.parametrize("control", ["none", "poll"])
def test_without_explicit_control_nothing_is_loaded_on_demand(control):
    async def story():
        found = repository(Shop(("a", "1", "x")), control)
        with pytest.raises(Unsupported, match="explicit"):
            await found.load("a")
        with pytest.raises(Unsupported, match="explicit"):
            await found.unload("a")

    asyncio.run(story())


def test_the_first_of_two_sources_with_a_name_is_served():
    async def story():
        one, two = Shop(("m", "1", "a")), Shop(("m", "9", "b"), ("n", "1", "c"))
        two.name = "other"

        async def load(source, release):
            return await source.load(source, release)

        found = ModelRepository([one, two], load, "poll")
        for _ in range(2):
            await found.refresh()
            assert (await answer(found))[0] == "1"
            assert found.names() == ["m", "n"]

    asyncio.run(story())


def test_an_unexpected_error_while_loading_is_a_reason_and_not_a_crash():
    async def story():
        shop = Shop(("m", "1", "a"))

        async def load(source, release):
            raise ZeroDivisionError

        found = ModelRepository([shop], load, "poll")
        await found.refresh()
        with pytest.raises(Unavailable, match="could not be loaded"):
            found.entry("m")
        shop.releases = lambda: 1 / 0
        await found.refresh()
        assert "unexpected ZeroDivisionError" in found.problems()["shop"]

    asyncio.run(story())


def test_closing_waits_for_calls():
    async def story():
        shop = Shop(("m", "1", "a"))
        found = repository(shop)
        await found.refresh()
        async with found.use("m") as served:
            closing = asyncio.create_task(found.close())
            await settled()
            assert not served.closed and not closing.done()
        await closing
        assert served.closed

    asyncio.run(story())


def test_input_errors_of_a_load_are_raised_to_who_asked():
    async def story():
        shop = Shop(("m", "1", "a"))

        async def load(source, release):
            raise InputError("corrupt")

        found = ModelRepository([shop], load, "explicit")
        with pytest.raises(InputError, match="corrupt"):
            await found.load("m")

    asyncio.run(story())


def test_the_index_names_no_folder_of_this_machine(tmp_path):
    async def story():
        shop = Shop(("m", "1", "a"))
        shop.problems = {"n": f"cannot read {tmp_path}/models/n/1/model.onnx"}

        async def load(source, release):
            raise UnsupportedModel(f"'{tmp_path}/models/m/1/model.onnx' is broken; see /etc/passwd and /usr/lib/x.so.")

        found = repository(shop, roots=[tmp_path / "models"])
        found.lifecycle._load = load
        await found.refresh()
        reasons = {name: reason for name, _, _, reason in found.index()}
        assert reasons == {"m": "'m/1/model.onnx' is broken; see passwd and x.so.", "n": "cannot read n/1/model.onnx"}

    asyncio.run(story())


def test_versions_are_those_that_answer_oldest_first():
    async def story():
        shop = Shop(("m", "10", "a"), ("m", "9", "b"), ("m", "11", "c"))
        shop.bad = {"c"}
        found = repository(shop)
        await found.refresh()
        assert found.versions("m") == ["9", "10"]
        with pytest.raises(NotFound):
            found.versions("n")

    asyncio.run(story())


def test_one_load_of_a_release_goes_on_however_many_ask_and_whoever_leaves():
    async def story():
        shop = Shop(("m", "1", "a"))
        go = asyncio.Event()

        async def load(source, release):
            await go.wait()
            return await shop.load(source, release)

        found = ModelRepository([shop], load, "explicit")
        asking = [asyncio.create_task(found.load("m")) for _ in range(3)]
        while not found.lifecycle.loads():
            await asyncio.sleep(0)
        asking[0].cancel()
        await settled()
        assert [row[2] for row in found.index()] == [LOADING]
        go.set()
        await asyncio.gather(*asking[1:])
        assert len(shop.loaded) == 1 and found.names() == ["m"]

    asyncio.run(story())


def test_a_newer_release_ends_the_load_of_an_older_one_and_the_one_that_answers_stays():
    async def story():
        shop = Shop(("m", "1", "a"))
        found = repository(shop)
        await found.refresh()
        begun, ended = [], []

        async def load(source, release):
            begun.append(release.fingerprint)
            if release.fingerprint == "b":
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append(release.fingerprint)
            return await shop.load(source, release)

        found.lifecycle._load = load
        shop.offers = [("m", "2", "b")]
        await found.look()
        await settled()
        assert begun == ["b"] and await answer(found) == ("1", "a")
        shop.offers = [("m", "2", "c")]
        await found.refresh()
        assert ended == ["b"] and begun == ["b", "c"] and await answer(found) == ("2", "c")

    asyncio.run(story())


def test_a_load_that_is_slow_holds_up_no_other_model_and_no_look():
    async def story():
        shop = Shop(("slow", "1", "a"), ("m", "1", "b"))

        async def load(source, release):
            if release.name == "slow":
                await asyncio.Event().wait()
            return await shop.load(source, release)

        found = ModelRepository([shop], load, "poll")
        for fingerprint in ("b", "c", "d"):
            shop.offers[1] = ("m", "1", fingerprint)
            await found.look()
            await settled()
            assert await answer(found) == ("1", fingerprint)
        await found.close()

    asyncio.run(story())


def test_a_dead_source_does_not_keep_another_from_loading_on_demand():
    async def story():
        shop, dead = Shop(("m", "1", "a")), Shop()
        dead.name, dead.error = "dead", Unavailable("registry down")
        found = ModelRepository([dead, shop], shop.load, "explicit")
        await found.load("m")
        assert found.names() == ["m"]
        with pytest.raises(Unavailable, match="registry down"):
            await found.load("n")

    asyncio.run(story())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_so_many_load_at_a_time_and_one_more_that_is_awaited(count):
    async def story():
        shop = Shop(*((f"m{n}", "1", "a") for n in range(8)))
        turns, going, most = LoadTurns(count), set(), 0
        go = asyncio.Event()

        async def load(source, release):
            nonlocal most
            async with turns.load((release.name, release.version)):
                going.add(release.name)
                most = max(most, len(going))
                await go.wait()
                going.discard(release.name)
            return await shop.load(source, release)

        found = ModelRepository([shop], load, "poll", turns=turns)
        await found.look()
        await settled()
        assert len(going) == count
        for _ in range(2):  # callers that find two models loading
            with pytest.raises(Unavailable, match="is loading"):
                await answer(found, "m7")
            with pytest.raises(Unavailable, match="is loading"):
                await answer(found, "m6")
            await settled()
            assert len(going) == count + 1 and "m7" in going
        go.set()
        await found.refresh()
        assert most == count + 1 and [m.name for m in shop.loaded].index("m6") <= count + 1

    asyncio.run(story())


def test_a_source_that_hangs_or_is_being_copied_from_holds_up_no_other(monkeypatch):
    monkeypatch.setattr(source_answers, "ANSWER", 0.2)

    async def story():
        shop, hung, copied = Shop(("m", "1", "a")), Shop(), Shop(("c", "1", "c"))
        hung.name, copied.name = "hung", "copied"
        go = threading.Event()
        hung.releases = lambda: go.wait(10)
        copied.fetch = lambda release: go.wait(10)
        turns = LoadTurns(1)

        async def load(source, release):
            if source is copied:
                async with turns.source(source, (release.name, release.version)) as turn:
                    await turn.run(lambda: source.fetch(release))
            return await shop.load(source, release)

        found = ModelRepository([hung, copied, shop], load, "poll", turns=turns)
        for fingerprint in ("a", "b"):
            shop.offers = [("m", "1", fingerprint)]
            await found.look()
            await settled()
            assert await answer(found) == ("1", fingerprint)
        assert found.health.silent == {"hung": "no answer within 0.2 s"}
        go.set()
        await found.close()

    asyncio.run(story())


@pytest.mark.parametrize("through", ["the server's own", "Ray's"])
def test_a_lazy_model_that_could_not_be_loaded_is_tried_again_when_it_is_asked_for(monkeypatch, through):
    shop = Shop(("m", "1", "a"))
    shop.bad.add("a")
    noted = []

    async def note(name: str) -> None:
        noted.append(name)

    async def main() -> None:
        found = repository(shop, lazy=True)
        asked = found if through == "the server's own" else _Noted(found, note)
        await found.refresh()
        for _ in range(2):
            with pytest.raises(Unavailable, match="broken"):
                await answer(asked)
        shop.bad.clear()
        monkeypatch.setattr(entry.time, "monotonic", lambda now=entry.time.monotonic: now() + entry.LONGEST_RETRY)
        assert await answer(asked) == ("1", "a")
        with pytest.raises(NotFound):
            await answer(asked, "nothing")
        assert "nothing" not in noted

    asyncio.run(main())
