"""Laws of what a request asks for and what is said of a model."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from running import MODELS

from onnxplain import Explainer
from onnxplain.errors import Denied, InputError, OnnxplainError, UnknownName, UsageError
from onnxplain.recipes import named, recipe_names
from onnxplain.server.call import CALL, Call
from onnxplain.server.handlers.explain_request import explain_query, recipe_and_head, target_count
from onnxplain.server.handlers.local_model import LocalModel
from onnxplain.server.handlers.model_description import ModelDescription, list_recipes
from onnxplain.server.models.context import ServerContext
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.server.models.variant import Variant
from onnxplain.server.options import ServerOptions
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.server.tokens import SCOPES, Caller
from onnxplain.sources import DirectoryRepository
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import to_raw, v1_tensor

X = np.load(MODELS / "digits_cnn/samples/three.npy")


@pytest.fixture(scope="module")
def model():
    scheduler = Scheduler(1)
    context = ServerContext(ServerOptions(), scheduler, SessionCache(10**9), Metrics())
    loaded = LoadedModel(DirectoryRepository(MODELS).get("digits_cnn"), context)
    yield loaded
    loaded.close()
    scheduler.close()


@pytest.fixture(scope="module")
def offline():
    return Explainer(MODELS / "digits_cnn/1/model.onnx", "lrp", composite="epsilon_plus_flat")


def asking(*targets, **more):
    return v1.ExplainRequest(inputs=[v1_tensor("input", X)], targets=targets, **more)


SEED = np.zeros((1, 10), np.float32)
SEED[0, 3], SEED[0, 8] = 1, -1
SAME = {  # a target of the protocol -> the command line's words for it
    "nothing": (v1.Target(), "predicted"),
    "expression": (v1.Target(expression="3 vs 8"), "3 vs 8"),
    "arg_max": (v1.Target(arg_max=v1.ArgMax(k=3)), "top3"),
    "indices": (v1.Target(indices=v1.Indices(index=[8])), "8"),
    "contrast": (v1.Target(contrast=v1.Contrast(positive=3, negatives=[8])), "3 vs 8"),
    "seed": (v1.Target(seed=v1_tensor("", SEED)), "3 vs 8"),
}


@pytest.mark.parametrize("kind", SAME)
def test_every_kind_of_target_is_the_offline_one(kind, model, offline):
    target, words = SAME[kind]
    found, *_ = model.explain(explain_query(asking(target), model))
    assert np.array_equal(found.relevance, offline.explain(X, words).relevance)


def test_a_contrast_with_all_others_shares_minus_one_among_them(model):
    found, *_ = model.explain(explain_query(asking(v1.Target(contrast=v1.Contrast(positive=3))), model))
    (seed,) = found.targets[0].seed
    assert seed[3] == 1 and np.allclose(np.delete(seed, 3), -1 / 9)


def test_indices_are_one_for_each_row(model):
    request = v1.ExplainRequest(
        inputs=[v1_tensor("input", np.concatenate([X, X]))], targets=[v1.Target(indices=v1.Indices(index=[3, 8]))]
    )
    both, *_ = model.explain(explain_query(request, model))
    for row, klass in enumerate((3, 8)):
        one, *_ = model.explain(explain_query(asking(v1.Target(indices=v1.Indices(index=[klass]))), model))
        scale = np.abs(one.relevance).max()
        np.testing.assert_allclose(both.relevance[row], one.relevance[0], atol=1e-5 * scale)  # batches sum otherwise


BAD = {
    "no such class": (v1.Target(indices=v1.Indices(index=[10])), "targets[0].indices"),
    "too many": (v1.Target(indices=v1.Indices(index=[1, 2, 3])), "targets[0].indices"),
    "negative k": (v1.Target(arg_max=v1.ArgMax(k=-1)), "targets[0].arg_max.k"),
    "k beyond the classes": (v1.Target(arg_max=v1.ArgMax(k=11)), "targets[0].arg_max.k"),
    "a name that is none": (v1.Target(expression="cat"), "targets[0].expression"),
    "a class against itself": (v1.Target(contrast=v1.Contrast(positive=1, negatives=[1])), "targets[0].contrast"),
    "a seed of another shape": (v1.Target(seed=v1_tensor("", np.zeros((1, 9), np.float32))), "targets[0].seed"),
    "a seed of NaN": (v1.Target(seed=v1_tensor("", np.full((1, 10), np.nan, np.float32))), "targets[0].seed"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_target_is_named_by_its_field(what, model):
    target, field = BAD[what]
    with pytest.raises(OnnxplainError) as caught:
        model.explain(explain_query(asking(target), model))
    assert caught.value.field == field and caught.value.status == "INVALID_ARGUMENT"


NAMES = {  # names of the inputs -> the field at fault, and what is said
    "unknown": (["imput"], "inputs[0].name", "no input named 'imput'"),
    "another case": (["Input"], "inputs[0].name", "no input named 'Input'"),
    "an extra one": (["input", "labels"], "inputs[1].name", "no input named 'labels'"),
    "twice": (["input", "input"], "inputs[1].name", "given twice"),
    "without a name, beside another": (["input", ""], "inputs[1].name", "no input named ''"),
    "none": ([], "inputs", "'input' is missing"),
}


@pytest.mark.parametrize("what", NAMES)
def test_inputs_of_a_request_bind_by_name_or_not_at_all(what, model, served):
    names, field, says = NAMES[what]
    tensors = [v1_tensor(name, X) for name in names]
    with pytest.raises(InputError, match=says) as caught:
        explain_query(v1.ExplainRequest(inputs=tensors), model)
    assert caught.value.field == field and caught.value.status == "INVALID_ARGUMENT"
    request = oip.ModelInferRequest(model_name="digits_cnn")
    for name in names:
        request.inputs.add(name=name, datatype="FP32", shape=X.shape)
        request.raw_input_contents.append(X.tobytes())
    for model_name in ("digits_cnn", "digits_cnn.explain"):
        request.model_name = model_name
        with pytest.raises(InputError) as caught:
            asyncio.run(served.infer(request))
        assert caught.value.field == field and caught.value.status == "INVALID_ARGUMENT"


def test_a_lone_tensor_without_a_name_is_the_only_input(model):
    assert np.array_equal(explain_query(v1.ExplainRequest(inputs=[v1_tensor("", X)]), model).feeds["input"], X)


@pytest.mark.parametrize("axes", [[0], [-4], [1, 1], [1, -3], [4]])
def test_axes_that_cannot_be_summed_away_are_refused(axes, served):
    with pytest.raises(InputError, match="sum_axes") as caught:
        served._explain(asking(output_format=v1.OutputFormat(sum_axes=axes)))
    assert caught.value.field == "output_format.sum_axes"


HEADS = {"keep": "says nothing where the explained tensor is named", "cut": "says nothing"}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_says_nothing_of_a_tensor_that_is_named(head, model):
    recipe = v1.Recipe()
    recipe.overrides["head"] = head
    with pytest.raises(UsageError, match=HEADS[head]):
        explain_query(asking(v1.Target(output="logits"), recipe=recipe), model)


@pytest.mark.parametrize("overrides", [{"form": "code"}, {"rules": ["name:nowhere=flat"]}])
def test_overrides_that_cannot_act_are_refused(overrides, model):
    recipe = v1.Recipe(name="lrp")
    recipe.overrides.update(overrides)
    with pytest.raises(UsageError, match=r"takes no form|fits no node"):
        model.explain(explain_query(asking(recipe=recipe), model))


def test_targets_of_one_request_explain_one_tensor(model):
    with pytest.raises(UsageError, match="one tensor"):
        explain_query(asking(v1.Target(output="logits"), v1.Target(output="other")), model)


def test_recipes_by_name_and_by_parts(model):
    assert recipe_and_head(v1.Recipe(), model) == (None, "")
    assert recipe_and_head(v1.Recipe(name="lrp-epsilon"), model)[0] == named("lrp-epsilon")
    given = v1.Recipe(name="lrp")
    given.overrides.update({"composite": "epsilon_plus", "rules": ["last=zero"], "head": "keep"})
    recipe, head = recipe_and_head(given, model)
    assert (recipe.composite, recipe.options["rules"], head) == ("epsilon_plus", ("last=zero",), "keep")
    for key, value, error in (
        ("nonsense", "x", UnknownName),
        ("composite", "nix", OnnxplainError),
        ("head", "x", UsageError),
    ):
        wrong = v1.Recipe()
        wrong.overrides[key] = value
        with pytest.raises(error) as caught:
            recipe_and_head(wrong, model)
        assert caught.value.field == "recipe"
    with pytest.raises(UnknownName):
        recipe_and_head(v1.Recipe(name="lrp2"), model)


def test_rules_go_in_front_of_the_default_recipes_as_on_the_command_line(model, monkeypatch):
    monkeypatch.setattr(model, "recipe", named("lrp").of({"method": "lrp", "rules": ["last=zero"]}))
    given = v1.Recipe()
    given.overrides["rules"] = ["first=flat"]
    assert recipe_and_head(given, model)[0].options["rules"] == ("first=flat", "last=zero")


@pytest.mark.parametrize(
    "text, count", [("predicted", 1), ("top7", 7), ("TOP-2", 2), ("top", 1), ("tabby", 1), ("topsoil", 1)]
)
def test_the_size_of_the_work_is_known_before_the_scores(text, count):
    assert target_count(v1.Target(expression=text)) == count


@pytest.fixture
def served(model):
    with ThreadPoolExecutor(1) as pool:
        yield LocalModel(model, pool)


def test_the_basic_view_has_what_a_request_needs_and_the_full_one_all(model, served):
    def described(view):
        request = v1.GetExplainabilityRequest(view=view)
        return ModelDescription(model).explainability(request, served._inputs, served._outputs)

    basic, full = described(v1.EXPLAINABILITY_VIEW_BASIC), described(v1.EXPLAINABILITY_VIEW_FULL)
    assert list(basic.labels) == [str(n) for n in range(10)]
    assert basic.input_settings["input"]["size"] == [28, 28] and basic.default_recipe == "lrp-epsilon_plus_flat"
    assert dict(basic.default_options) == {"method": "lrp", "composite": "epsilon_plus_flat", "rules": []}
    assert not basic.methods and "clrp1" in full.methods and full.supported and full.ops
    assert basic.inputs == full.inputs and [tuple(i.shape) for i in full.inputs] == [(-1, 1, 28, 28)]


def test_recipes_come_in_pages_that_hold_each_once():
    seen, token = [], ""
    while True:
        page = list_recipes(5, token)
        seen += [info.name for info in page.recipes]
        token = page.next_page_token
        if not token:
            break
        assert len(page.recipes) == 5
    assert seen == list(recipe_names()) == [info.name for info in list_recipes(0, "").recipes]
    with pytest.raises(InputError, match="page_token"):
        list_recipes(5, "nothing")


@pytest.mark.parametrize(
    "target, name", [(v1.Target(), "logits.seed"), (v1.Target(indices=v1.Indices(index=[0])), "logits.target")]
)
def test_a_compiled_graph_is_asked_by_seed_or_by_index(target, name, served):
    async def pieces():
        request = v1.CompileGraphRequest(target=target, with_triton_config=True)
        return [piece async for piece in served.compile(request)]

    first, *chunks = asyncio.run(pieces())
    content = b"".join(piece.chunk.data for piece in chunks)
    assert len(content) == first.graph.byte_size
    assert hashlib.sha256(content).hexdigest() == first.graph.graph_digest
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert [port.name for port in session.get_inputs()] == ["input", name] and name in first.graph.triton_config_pbtxt


def test_a_recipe_that_fails_and_a_model_that_is_closed_leave_no_session(monkeypatch):
    scheduler = Scheduler(1)
    session_cache = SessionCache(10**9)
    loaded = LoadedModel(
        DirectoryRepository(MODELS).get("digits_cnn"),
        ServerContext(ServerOptions(), scheduler, session_cache, Metrics()),
    )
    before = session_cache.nbytes
    assert before > 0

    def fail(variant, name):
        variant.queue.session()
        raise InputError("no")

    with monkeypatch.context() as patched:
        patched.setattr(Variant, "verify", fail)
        with pytest.raises(InputError):
            loaded.variant(named("lrp-epsilon"))
    assert session_cache.nbytes == before
    loaded.variant(named("gradient"))
    assert session_cache.nbytes > before
    loaded.close()
    assert session_cache.nbytes == 0
    scheduler.close()


def inferring(**parameters):
    request = oip.ModelInferRequest(model_name="digits_cnn")
    request.inputs.add(name="input", datatype="FP32", shape=X.shape)
    request.raw_input_contents.append(to_raw(X))
    for name, (kind, value) in parameters.items():
        setattr(request.parameters[name], kind, value)
    return request


def queue_timeout(seconds):
    request = asking(priority=3)
    request.queue_timeout.FromNanoseconds(int(seconds * 1e9))
    return request


@pytest.mark.parametrize(
    "ask",
    [
        lambda served: served.infer(inferring(priority=("uint64_param", 3), timeout=("int64_param", 500_000))),
        lambda served: served.infer(inferring(priority=("int64_param", 3), timeout=("string_param", "500000"))),
        lambda served: served.explain(queue_timeout(0.5)),
    ],
)
def test_priority_and_timeout_reach_the_runs_of_a_call(ask, served, monkeypatch):
    seen, submit = [], served.model.context.scheduler.submit
    monkeypatch.setattr(
        served.model.context.scheduler, "submit", lambda ticket: (seen.append(ticket), submit(ticket))[1]
    )
    token = CALL.set(Call())
    asyncio.run(ask(served))
    CALL.reset(token)
    assert seen and {ticket.priority for ticket in seen} == {3}
    assert all(ticket.expires - ticket.queued_at == pytest.approx(0.5) for ticket in seen)


@pytest.mark.parametrize(
    "ask, error, field",
    [
        (lambda: inferring(priority=("uint64_param", 11)), UsageError, "parameters[priority]"),
        (lambda: inferring(priority=("int64_param", -1)), UsageError, "parameters[priority]"),
        (lambda: inferring(priority=("bool_param", True)), UsageError, "parameters[priority]"),
        (lambda: inferring(timeout=("string_param", "soon")), UsageError, "parameters[timeout]"),
        (lambda: inferring(timeout=("double_param", 0.5)), UsageError, "parameters[timeout]"),
        (lambda: inferring(priority=("uint64_param", 1)), Denied, "parameters[priority]"),
        (lambda: asking(priority=1), Denied, "priority"),
        (lambda: asking(priority=99), UsageError, "priority"),
        (lambda: queue_timeout(-1), UsageError, "queue_timeout"),
    ],
)
def test_a_turn_that_there_is_not_or_that_is_not_the_callers_is_refused_by_name(ask, error, field, served):
    request, caller = ask(), Caller("ann", frozenset(SCOPES), most_urgent=2)
    token = CALL.set(Call(caller=caller))
    answer = served.explain if isinstance(request, v1.ExplainRequest) else served.infer
    with pytest.raises(error) as caught:
        asyncio.run(answer(request))
    CALL.reset(token)
    assert caught.value.field == field


def test_each_request_of_a_stream_asks_for_its_own_turn(served, monkeypatch):
    seen, submit = [], served.model.context.scheduler.submit
    monkeypatch.setattr(
        served.model.context.scheduler, "submit", lambda ticket: (seen.append(ticket), submit(ticket))[1]
    )
    token = CALL.set(Call())
    asyncio.run(served.infer(inferring(priority=("uint64_param", 1), timeout=("int64_param", 10**6))))
    asyncio.run(served.infer(inferring()))
    CALL.reset(token)
    assert [(t.priority, t.expires is None) for t in seen] == [(1, False), (5, True)]
