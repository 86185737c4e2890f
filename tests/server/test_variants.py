"""Laws of a model's compiled recipes: made once, by whom, how many are kept, and what is left of them."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from running import MODELS

from onnxplain.errors import Busy, Denied, OnnxplainError
from onnxplain.interrupt import check_interrupt
from onnxplain.recipes import named, recipe_names
from onnxplain.server.call import CALL, Call
from onnxplain.server.handlers.local_model import LocalModel
from onnxplain.server.models.context import ServerContext
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.server.models.variant_cache import VariantCache
from onnxplain.server.models.variant_requests import cached_variant
from onnxplain.server.options import ServerOptions
from onnxplain.server.scheduling.compile_queue import CompileQueue
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.server.tokens import ANYONE, Caller
from onnxplain.sources import DirectoryRepository
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import to_raw, v1_tensor

X = np.load(MODELS / "digits_cnn/samples/three.npy")
SOON = 20.0  # seconds


class Compiles:
    """Around LoadedModel._compile: how many, and how many at a time. hold: none ends before it is set."""

    def __init__(self, compile_):
        self.compile, self.count, self.going, self.most = compile_, 0, 0, 0
        self.begun, self.hold, self.given_up = threading.Semaphore(0), threading.Event(), threading.Event()
        self.hold.set()
        self.lock = threading.Lock()

    def __call__(self, *arguments):
        with self.lock:
            self.count += 1
            self.going += 1
            self.most = max(self.most, self.going)
        self.begun.release()
        try:
            while not self.hold.is_set():
                check_interrupt()
                time.sleep(0.001)
            return self.compile(*arguments)
        except BaseException:
            self.given_up.set()
            raise
        finally:
            with self.lock:
                self.going -= 1


@pytest.fixture
def served(monkeypatch):
    scheduler = Scheduler(1)
    queue = CompileQueue(waiting=8, seconds=60.0, at_once=2)
    context = ServerContext(ServerOptions(), scheduler, SessionCache(10**9), Metrics(), compile_queue=queue)
    loaded = LoadedModel(DirectoryRepository(MODELS).get("digits_cnn"), context)
    loaded.compiles = Compiles(loaded._compile)
    monkeypatch.setattr(loaded, "_compile", loaded.compiles)
    token = CALL.set(Call())
    with ThreadPoolExecutor(1) as pool:  # one thread: whoever waited in it would hold up all others
        yield LocalModel(loaded, pool)
    CALL.reset(token)
    queue.close()
    queue.join(SOON)
    loaded.close()
    scheduler.close()


def asking(name="", **overrides):
    request = v1.ExplainRequest(inputs=[v1_tensor("input", X)], recipe=v1.Recipe(name=name))
    request.recipe.overrides.update(overrides)
    return request


def new(n):
    return asking(composite=f"epsilon(epsilon={10 ** -(n + 2)})")


async def all_of(calls):
    return await asyncio.gather(*calls, return_exceptions=True)


def test_equal_requests_compile_once(served):
    replies = asyncio.run(all_of(served.explain(new(1)) for _ in range(12)))
    assert len({r.attributions[0].relevance.raw for r in replies}) == 1
    assert served.model.compiles.count == 1


def test_different_requests_never_compile_more_at_a_time_than_may(served):
    replies = asyncio.run(all_of(served.explain(new(n)) for n in range(7)))
    assert all(isinstance(reply, v1.ExplainResponse) for reply in replies)
    assert served.model.compiles.count == 7 and served.model.compiles.most <= 2


def test_more_than_may_wait_are_refused_at_once(served):
    compiles = served.model.compiles
    compiles.hold.clear()

    async def main():
        calls = [asyncio.ensure_future(served.explain(new(n))) for n in range(20)]
        _, pending = await asyncio.wait(calls, timeout=SOON, return_when=asyncio.FIRST_EXCEPTION)
        assert await asyncio.to_thread(compiles.begun.acquire, timeout=SOON)
        while len(pending) > 10:
            _, pending = await asyncio.wait(pending, timeout=SOON, return_when=asyncio.FIRST_COMPLETED)
        assert len(pending) >= 8  # eight wait, two go on if they had begun when the others came
        compiles.hold.set()
        return len(pending), await all_of(calls)

    waited, answers = asyncio.run(main())
    assert sum(isinstance(answer, Busy) for answer in answers) == 20 - waited
    assert sum(isinstance(answer, v1.ExplainResponse) for answer in answers) == waited


def infer_request():
    request = oip.ModelInferRequest(model_name="digits_cnn")
    request.inputs.add(name="input", datatype="FP32", shape=X.shape)
    request.raw_input_contents.append(to_raw(X))
    return request


async def every_way_to_a_new_graph(served):
    """Each RPC that may have a graph compiled, for a recipe that was not asked for."""
    graph = v1.CompileGraphRequest(recipe=v1.Recipe(name="lrp-epsilon"))

    async def compiled():
        return [piece async for piece in served.compile(graph)]

    only = asking("lrp-epsilon", composite="epsilon(epsilon=0.5)")
    only.output_format.validate_only = True
    inferred = infer_request()
    inferred.model_name = "digits_cnn.explain.lrp-epsilon_gamma_box"
    return [
        served.explain(asking("lrp-epsilon_alpha2_beta1")),
        served.explain(only),
        served.metadata("digits_cnn.explain.gradient"),
        served.config("digits_cnn.explain.deconvnet"),
        served.infer(inferred),
        served.explainability(v1.GetExplainabilityRequest(recipe=v1.Recipe(name="guided_backprop"))),
        compiled(),
    ]


def test_no_way_to_a_new_graph_holds_a_thread_and_all_end_when_nobody_waits(served):
    compiles = served.model.compiles
    compiles.hold.clear()

    async def main():
        ways = [asyncio.ensure_future(way) for way in await every_way_to_a_new_graph(served)]
        for way in ways:
            await asyncio.sleep(0.05)
            assert not way.done(), way
        async with asyncio.timeout(SOON):  # the one thread is free, the model answers
            await served.infer(infer_request())
            await served.explain(v1.ExplainRequest(inputs=[v1_tensor("input", X)]))
        for way in ways:
            way.cancel()
        await all_of(ways)
        assert await asyncio.to_thread(compiles.given_up.wait, SOON)

    asyncio.run(main())
    until = time.monotonic() + SOON
    while compiles.going and time.monotonic() < until:
        time.sleep(0.01)
    assert not compiles.going


def with_scopes(*scopes):
    return CALL.set(Call(caller=Caller("ann", frozenset(scopes))))


@pytest.mark.parametrize("request_", [new(1), asking(rules=["first=flat"]), asking(head="keep")], ids=str)
def test_recipes_beyond_the_names_need_the_scope_compile_until_they_are_compiled(served, request_):
    with_scopes("infer", "explain")
    with pytest.raises(Denied, match="'compile'"):
        asyncio.run(served.explain(request_))
    assert served.model.compiles.count == 0
    with_scopes("infer", "explain", "compile")
    asyncio.run(served.explain(request_))
    with_scopes("infer", "explain")
    assert asyncio.run(served.explain(request_)).timing.graph_cache_hit


def test_tensors_beyond_the_models_own_need_the_scope_compile(served):
    inner = next(str(v.name) for node in served.model.subject.source.model.graph for v in node.outputs)
    request = v1.ExplainRequest(inputs=[v1_tensor("input", X)], outputs=[inner])
    with_scopes("explain")
    with pytest.raises(Denied, match="'compile'"):
        asyncio.run(served.explain(request))
    with_scopes("explain", "compile")
    asyncio.run(served.explain(request))


@pytest.mark.parametrize("request_", [asking("gradient"), asking("smooth_grad", samples=2)], ids=str)
def test_names_the_ledger_and_a_looped_methods_options_need_no_more_than_explain(served, request_):
    with_scopes("explain")
    asyncio.run(served.explain(request_))
    asyncio.run(served.explain(v1.ExplainRequest(inputs=[v1_tensor("input", X)], diagnostics=v1.DIAGNOSTICS_LAYERS)))


def test_options_of_a_method_that_runs_the_model_alone_need_no_more_than_explain_and_open_nothing_anew(served):
    with_scopes("explain")
    for masks in (4, 6, 8):
        asyncio.run(served.explain(asking("rise", masks=masks)))
    assert (
        served.model.compiles.count <= 1 and [v.forward_only for v in served.model.variants.variants()].count(True) == 1
    )


def test_a_graph_that_is_not_there_yet_is_for_those_who_may_explain(served):
    with_scopes("infer")
    with pytest.raises(Denied, match="'explain'"):
        asyncio.run(served.metadata("digits_cnn.explain.gradient"))
    asyncio.run(served.metadata("digits_cnn.explain"))  # that one is there


def test_a_recipe_that_cannot_be_compiled_costs_once(served):
    request, errors = asking(rules=["name:nothing*=epsilon"]), []
    for _ in range(5):
        with pytest.raises(OnnxplainError) as caught:
            asyncio.run(served.explain(request))
        errors.append(caught.value)
    assert served.model.compiles.count == 1
    assert len({str(error) for error in errors}) == 1 and len({id(error) for error in errors}) == 5


def test_what_is_remembered_of_failures_is_bounded_and_passes(monkeypatch):
    cache = VariantCache(10**9, lambda variant: None)
    for n in range(1000):
        cache.fail(n, OnnxplainError("no"))
    assert len(cache._failures) <= 256
    with pytest.raises(OnnxplainError):
        cache.get(999)
    later = time.monotonic() + 3600
    monkeypatch.setattr("onnxplain.server.models.variant_cache.time.monotonic", lambda: later)
    assert cache.get(999) is None


def test_the_recipe_not_used_for_longest_goes_first_and_its_session_with_it_but_never_the_models_own(served):
    model, cache = served.model, served.model.context.session_cache
    model.variants.number = 2
    own, names = cached_variant(model, model.recipe), ["gradient", "lrp-epsilon", "deconvnet"]
    first = model.variant(named("gradient"))
    second = model.variant(named("lrp-epsilon"))
    assert cached_variant(model, named("gradient")) is first  # used again: now lrp-epsilon is the older one
    model.variant(named("deconvnet"))
    assert [cached_variant(model, named(name)) is not None for name in names] == [True, False, True]
    assert second.queue not in cache._open and first.queue in cache._open
    assert cached_variant(model, model.recipe) is own


def test_recipes_are_dropped_by_bytes_too(served):
    model = served.model
    one = model.variant(named("gradient"))
    model.variants.nbytes = cached_variant(model, model.recipe).nbytes + int(2.5 * one.nbytes)
    for name in ("deconvnet", "guided_backprop", "gradient_x_input"):
        model.variant(named(name))
    held = model.variants.variants()
    assert 2 <= len(held) <= 3 and sum(variant.nbytes for variant in held) <= model.variants.nbytes


def test_a_dropped_recipe_answers_those_who_use_it_and_leaves_nothing(served):
    model, cache = served.model, served.model.context.session_cache
    model.variants.number = 1
    variant = model.variant(named("gradient"))
    with model.variants.using(variant):
        model.variant(named("deconvnet"))
        assert cached_variant(model, named("gradient")) is None
        assert variant.explainer.explain(X, "3").relevance.any()
        assert variant.queue in cache._open
    assert variant.queue not in cache._open


def test_many_new_recipes_leave_as_many_sessions_as_are_kept(served):
    model, cache = served.model, served.model.context.session_cache
    model.variants.number = 3
    for n in range(8):
        asyncio.run(served.explain(new(n)))
    assert len(model.variants.variants()) == 4  # the default recipe with them
    assert len(cache._open) <= 2 + 4  # the model as its file says, its normal form


def test_a_recipe_that_is_given_up_while_it_is_being_kept_leaves_no_session(served, monkeypatch):
    model, cache = served.model, served.model.context.session_cache

    def busy(*_):
        raise Busy("no room for the session that is asked")

    monkeypatch.setattr("onnxplain.server.models.loaded.keep_variant", busy)
    before = set(cache._open)
    with pytest.raises(Busy):
        model.variant(named("gradient"))
    assert set(cache._open) <= before


def test_a_recipe_that_is_ready_after_its_model_was_closed_leaves_no_session(served):
    model, cache = served.model, served.model.context.session_cache
    made = []
    closing = VariantCache(10**9, made.append)
    closing.close()
    variant = model.variant(named("gradient"))
    closing.put("late", variant)
    assert made == [variant] and not closing.variants()
    model.close()
    assert not cache._open


def test_without_a_token_file_everybody_may_have_recipes_compiled(served):
    CALL.set(Call(caller=ANYONE))
    asyncio.run(served.explain(new(3)))
    assert "compile" in ANYONE.scopes and len(recipe_names()) < 300  # names are bounded: that is what `explain` lets
