"""Laws of loading, swapping and letting go, with sources and models that only pretend."""

from __future__ import annotations

import asyncio

import pytest

from onnxplain.errors import InputError, NotFound, Unavailable, UnsupportedModel
from onnxplain.server.models.entry import READY, UNAVAILABLE
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
