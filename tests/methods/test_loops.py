"""Looped methods: laws over every looped method and every base, closed forms, progress, cancellation, refusal."""

from __future__ import annotations

import functools
import re

import numpy as np
import onnx
import pytest
from nets import NAMES, counted, looks_of, net, normal, other_base, relu_net, repository, sample, takes_base

from onnxplain import Explainer, cut
from onnxplain.compile import Request
from onnxplain.errors import InputError, NotFinite, UnknownName, UnsupportedModel, UnsupportedOp, UsageError
from onnxplain.methods import METHODS, of_family
from onnxplain.methods.quadrature import nodes
from onnxplain.methods.registry import method
from onnxplain.methods.tensors import Tensors
from onnxplain.recipes import Recipe
from onnxplain.subject import Subject

LOOPED = [n for n in of_family("looped") if not METHODS[n].maps and not METHODS[n].of_tables]
BASES = [  # guided_cam is for heads of its own
    name for name in of_family("one-pass") if METHODS[name].attributes and name != "guided_cam"
]
QUADRATURES = METHODS["integrated_gradients"].options["quadrature"].choices
FEW = {name: counted(name, 3) for name in LOOPED}  # quick, where a test asks for no accuracy
X = normal(3, 2, 6, 6)
USUAL = normal(40, 2, 6, 6, seed=7)


def usual(name: str) -> dict[str, np.ndarray]:
    """A background of so many rows that one run does not take them, where a method wants one."""
    return {"background": USUAL} if Recipe(name).background == "required" else {}


def few(name: str, x: np.ndarray) -> dict[str, object]:
    """Few looks, and for what is no picture the axis along which it is blurred, where a method always blurs."""
    blurs = "axes" in METHODS[name].options and "baseline" not in METHODS[name].options
    return {**FEW[name], **({"axes": [x.ndim - 1]} if blurs and x.ndim != 4 else {})}


@functools.cache
def subject(name: str) -> Subject:
    return Subject.of(repository(name))


def saved(model: onnx.ModelProto, folder) -> str:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return str(path)


def quadratic() -> onnx.ModelProto:
    """y_k = sum_i w_ik x_i^2: the gradient is 2 w_k x."""
    return net("g (float[N, 5] x) => (float[N, 3] y) { s = Mul (x, x) y = MatMul (s, w) }", w=normal(5, 3))


def scores(path, x: np.ndarray) -> np.ndarray:
    found = Subject.of(path)
    return found.forward({found.inputs[0].name: x})[found.resolved.explained[0]]


# -- closed forms ----------------------------------------------------------------------------------------------------


def test_integrated_gradients_of_a_quadratic_form_are_exact(tmp_path):
    """R_i = w_i (x_i^2 - b_i^2), whatever the steps: Gauss-Legendre is exact for a linear gradient."""
    path, x, w = saved(quadratic(), tmp_path), normal(4, 5, seed=1), normal(5, 3)
    for steps in (1, 2, 7):
        found = Explainer(path, "integrated_gradients", steps=steps, baseline=0.5).explain(x, [0, 2])
        expected = np.concatenate([w[:, k] * (x**2 - 0.25) for k in (0, 2)])
        np.testing.assert_allclose(found.relevance, expected, rtol=1e-5, atol=1e-5)  # float32


@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("steps", [1, 2, 63, 64, 65, 200, 5001])
def test_the_points_of_a_path_rise_and_their_weights_sum_to_one(quadrature, steps):
    if (quadrature, steps) == ("trapezoid", 1):
        with pytest.raises(UsageError, match="at least 2 steps"):
            nodes(steps, quadrature)
        return
    positions, weights = nodes(steps, quadrature)
    assert len(positions) == len(weights) == steps and (np.diff(positions) > 0).all()
    assert positions[0] >= 0 and positions[-1] <= 1 and (weights > 0).all()
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    order = {"midpoint": 0.3 / steps**2, "trapezoid": 0.3 / max(1, steps - 1) ** 2}  # of the integral of x^3
    exact = {"gauss_legendre": 1e-12, "left": 2.0 / steps, "right": 2.0 / steps, **order}[quadrature]
    if steps > 1:
        np.testing.assert_allclose((weights * positions**3).sum(), 0.25, atol=exact)


def test_a_baseline_may_have_a_number_for_each_channel(tmp_path):
    path, x, w = saved(quadratic(), tmp_path), normal(4, 5, seed=1), normal(5, 3)
    baseline = [0.1, -0.2, 0.3, 0.0, 1.0]
    found = Explainer(path, "integrated_gradients", baseline=baseline).explain(x, 1).relevance
    np.testing.assert_allclose(found, w[:, 1] * (x**2 - np.square(baseline)), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="baseline has 2 numbers"):
        Explainer(path, "integrated_gradients", baseline=[0.0, 1.0]).explain(x, 1)


@pytest.mark.parametrize("quadrature, tolerance", [("gauss_legendre", 2e-3), ("midpoint", 2e-2)])
def test_integrated_gradients_sum_to_the_change_of_the_score(quadrature, tolerance, tmp_path):
    """Completeness, up to the quadrature of a piecewise linear score: its kinks cost about 1 / steps."""
    path = saved(relu_net(), tmp_path)
    explainer = Explainer(path, "integrated_gradients", steps=200, quadrature=quadrature)
    found = explainer.explain(X, [0, 3])
    y = scores(path, X) - scores(path, np.zeros_like(X))
    expected = np.concatenate([y[:, 0], y[:, 3]])
    size = np.abs(found.relevance).sum((1, 2, 3)).max()
    np.testing.assert_allclose(found.relevance.sum((1, 2, 3)), expected, atol=tolerance * size)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mobilenet_v2"])
def test_integrated_gradients_are_complete_on_real_models(name):
    x, s = sample(name), subject(name)
    found = Explainer(s, "integrated_gradients", steps=64).explain(x, "predicted")
    (key,) = found.inputs
    before = s.forward({key: np.zeros_like(x)})[found.explained]
    change = (found.targets[0].seed * (found.scores - before)).reshape(len(x), -1).sum(1)
    sums = found.relevance.reshape(len(x), -1).sum(1)
    size = np.abs(found.relevance).reshape(len(x), -1).sum(1).max()
    np.testing.assert_allclose(sums, change, atol=0.02 * size)  # kinks of Relu and max-pools between 64 points


def test_smooth_grad_of_a_quadratic_form_is_the_gradient_at_the_mean_of_the_noise(tmp_path):
    """M is linear in x, so the mean is 2 w (x + mean noise); the noise is numpy's, of the documented seed."""
    path, x, w = saved(quadratic(), tmp_path), normal(1, 5, seed=1), normal(5, 3)
    deviation = 0.3 * float(x.max() - x.min())
    noise = deviation * np.random.default_rng([7, 0]).standard_normal((20, 5))
    options = {"samples": 20, "noise": 0.3, "random_seed": 7}
    for average, expected in (
        ("mean", 2 * w[:, 0] * (x + noise.mean(0))),
        ("square", np.square(2 * w[:, 0] * (x + noise)).mean(0, keepdims=True)),
        ("variance", np.var(2 * w[:, 0] * (x + noise), axis=0, keepdims=True)),
    ):
        found = Explainer(path, "smooth_grad", average=average, **options).explain(x, 0).relevance
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", BASES)
def test_smooth_grad_without_noise_is_its_base(base, tmp_path):
    path = saved(relu_net(), tmp_path)
    found = Explainer(path, "smooth_grad", base=base, noise=0.0, samples=2).explain(X, [0, 1])
    np.testing.assert_allclose(
        found.relevance, Explainer(path, base).explain(X, [0, 1]).relevance, rtol=1e-5, atol=1e-6
    )


def test_integrated_gradients_over_a_relevance_base_average_it_along_the_path(tmp_path):
    """By hand, one run of the base after the other; multiplied by x - b only where that is asked for."""
    path, rule = saved(relu_net(), tmp_path), Recipe("lrp", {"composite": "epsilon"})
    base = Explainer(path, rule)
    points = [(k + 0.5) / 4 for k in range(4)]
    expected = np.mean([base.explain((a * X).astype(np.float32), 1).relevance for a in points], axis=0)
    for multiply, factor in ((None, 1.0), (False, 1.0), (True, X)):
        options = {"steps": 4, "quadrature": "midpoint", "multiply_by_inputs": multiply}
        found = Explainer(path, "integrated_gradients", base=rule, **options).explain(X, 1).relevance
        np.testing.assert_allclose(found, expected * factor, rtol=1e-4, atol=1e-5)


# -- laws over every looped method -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "base"), [(n, base) for n in LOOPED for base in BASES if takes_base(n, base)])
def test_every_looped_method_runs_over_every_base(name, base, tmp_path):
    found = Explainer(saved(relu_net(), tmp_path), name, base=base, **FEW[name]).explain(X, "top2")
    assert found.relevance.shape == (6, *X.shape[1:]) and found.relevance.dtype == np.float32
    assert np.isfinite(found.relevance).all() and found.relevance.any()
    assert found.provenance["recipe"]["method"] == name and found.provenance["recipe"]["base"]["method"] == base


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("name", LOOPED)
def test_every_looped_method_explains_every_model(name, model):
    x = sample(model)
    if METHODS[name].references and model == "digits_gru":
        with pytest.raises(UnsupportedOp, match="no rule for the difference of GRU"):
            Explainer(subject(model), name, **few(name, x))
        return
    found = Explainer(subject(model), name, **few(name, x)).explain(x, [0, 1])
    assert found.relevance.shape == (2 * len(x), *x.shape[1:]) and np.isfinite(found.relevance).all()
    assert found.map.shape[0] == 2 * len(x)


@pytest.mark.parametrize("name", LOOPED)
def test_a_row_is_explained_alike_in_any_company_and_any_cut(name, tmp_path):
    explainer = Explainer(saved(relu_net(), tmp_path), name, **usual(name))
    whole = explainer.explain(X, 1).relevance
    alone = np.concatenate([explainer.explain(X[n : n + 1], 1).relevance for n in range(3)])
    np.testing.assert_allclose(alone, whole, rtol=1e-4, atol=1e-5)
    for rows in (1, 7):
        explainer.subject.batch_rows = rows
        np.testing.assert_allclose(explainer.explain(X, 1).relevance, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", ["1", "3"])
@pytest.mark.parametrize("name", LOOPED)
def test_a_frozen_batch_is_filled_and_gives_the_same(name, batch, tmp_path):
    free = Explainer(saved(relu_net(), tmp_path), name, **FEW[name])
    fixed = Explainer(saved(relu_net(batch=batch), tmp_path), name, **FEW[name])
    x = X[: int(batch)]
    np.testing.assert_allclose(
        fixed.explain(x, [0, 2]).relevance, free.explain(x, [0, 2]).relevance, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", LOOPED)
def test_what_counts_no_samples_is_moved_as_one_thing(name, tmp_path):
    """A time axis in front: (T, F) to one score, explained whole, equal to the same net with a batch of one."""
    text = "{ h = MatMul (x, w) r = Tanh (h) m = ReduceSum <keepdims = 0> (r, axis) y = MatMul (m, v) }"
    weights = {"w": normal(4, 5), "v": normal(5, 3, seed=1)}
    timed = net(f"g (float[T, 4] x) => (float[3] y) {text}", axis=np.array([0]), **weights)
    batched = net(f"g (float[N, T, 4] x) => (float[N, 3] y) {text}", axis=np.array([1]), **weights)
    x = normal(6, 4, seed=2)
    found = Explainer(saved(timed, tmp_path), name, **few(name, x[None])).explain(x, 1).relevance
    expected = Explainer(saved(batched, tmp_path), name, **few(name, x[None])).explain(x[None], 1).relevance
    np.testing.assert_allclose(found.reshape(x.shape), expected.reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_several_inputs_move_together(tmp_path):
    """y = sum a b: from (0, 0) the path gives each input half of the product."""
    text = "g (float[N, 4] a, float[N, 4] b) => (float[N, 1] y) { p = Mul (a, b) y = MatMul (p, w) }"
    path = saved(net(text, w=np.ones((4, 1), np.float32)), tmp_path)
    a, b = normal(2, 4), normal(2, 4, seed=1)
    found = Explainer(path, "integrated_gradients", kind="regression").explain({"a": a, "b": b}).relevances
    np.testing.assert_allclose(found["a"], a * b / 2, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["b"], a * b / 2, rtol=1e-4, atol=1e-6)


def test_an_input_that_is_not_attributed_stays_what_it_is(tmp_path):
    text = "g (float[N, 4] a, float[N, 4] b) => (float[N, 1] y) { p = Mul (a, b) y = MatMul (p, w) }"
    path = saved(net(text, w=np.ones((4, 1), np.float32)), tmp_path)
    a, b = normal(3, 4), normal(3, 4, seed=1)
    explainer = Explainer(path, "integrated_gradients", attribute_to="a", kind="regression")
    np.testing.assert_allclose(explainer.explain({"a": a, "b": b}).relevance, a * b, rtol=1e-4, atol=1e-6)


def test_whole_numbers_do_not_move(tmp_path):
    text = "g (int64[N, 3] ids, float[N, 4] x) => (float[N, 4] y) { e = Gather (t, ids) s = ReduceSum <keepdims = 0> (e, axis) y = Add (s, x) }"  # noqa: E501
    path = saved(net(text, t=normal(6, 4), axis=np.array([1])), tmp_path)
    feeds = {"ids": np.array([[0, 1, 2]]), "x": normal(1, 4)}
    found = Explainer(path, "integrated_gradients").explain(feeds, 0)
    assert list(found.relevances) == ["x"] and any("ids gets no relevance" in note for note in found.notes)
    with pytest.raises(UnsupportedModel, match=r"ids is no float input .*or to an inner tensor"):
        Explainer(path, "integrated_gradients", attribute_to="ids")


# -- progress, cancellation, refusal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOOPED)
def test_progress_rises_to_all_there_is(name, tmp_path):
    told = []
    explainer = Explainer(saved(relu_net(), tmp_path), name, **usual(name))
    explainer.explain(X, [0, 1], progress=lambda *now: told.append(now))
    looks = max([METHODS[name].options[option].default for option in looks_of(name)], default=len(USUAL))
    assert told == sorted(told) and told[-1][0] == told[-1][1] == 6 * looks and len(told) > 6


@pytest.mark.parametrize("name", LOOPED)
def test_what_progress_raises_ends_the_explanation(name, tmp_path):
    told = []

    def stop(done, total):
        told.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Explainer(saved(relu_net(), tmp_path), name, **usual(name)).explain(X, 0, progress=stop)
    assert len(told) == 1


@pytest.mark.parametrize("name", LOOPED)
def test_a_looped_method_has_no_graph_and_says_whose_it_runs(name, tmp_path):
    base = other_base(name)
    explainer = Explainer(saved(relu_net(), tmp_path), name, base=base, **usual(name))
    for use in (
        lambda: explainer.compiled, lambda: explainer.session, lambda: explainer.save(tmp_path / "x.onnx"),
        lambda: explainer.verify(), lambda: explainer.run(X, X), lambda: explainer.row_axes(),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"method {name} has no graph of its own: it runs that of {base}"):
            use()
    with pytest.raises(UsageError, match=f"a ledger is of one run; take it of {METHODS[name].base}"):
        Explainer(saved(relu_net(), tmp_path), name, ledger=True)


def test_a_new_method_is_one_function(monkeypatch, tmp_path):
    """Registered, it has options, checks, documentation and explanations; a forward-only one needs no base."""
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))

    @method("doubled", cite="nobody")
    def doubled(run, x, seed, *, times: int = 2):
        """Twice the base.

        times: how often.
        """
        return run.relevance(x, seed) * float(times)

    path = saved(relu_net(), tmp_path)
    found = Explainer(path, "doubled", times=3).explain(X, 0).relevance
    np.testing.assert_allclose(found, 3 * Explainer(path, "gradient").explain(X, 0).relevance, rtol=1e-5)
    option = METHODS["doubled"].options["times"]
    assert (option.default, option.doc, METHODS["doubled"].doc) == (2, "how often.", "Twice the base.")
    with pytest.raises(UnknownName, match="Did you mean times"):
        Explainer(path, "doubled", time=3)
    with pytest.raises(UsageError, match="times is a whole number, not 'x'"):
        Explainer(path, "doubled", times="x")


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_documented_and_takes_its_own_default(name):
    for option in METHODS[name].options.values():
        assert option.doc, option.name
        assert option.default is None or option.convert(option.default, name) == option.default
        assert option.none == (option.default is None)  # so that a file that leaves it out says the same


def test_a_forward_only_method_needs_no_graph(monkeypatch, tmp_path):
    """Occlusion of single features, registered here, of a model that has no derivative."""
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))

    @method("without", cite="nobody", base="")
    def without(run, x, seed, *, value: float = 0.0):
        """How far the score falls without a feature.

        value: what the feature becomes.
        """
        ((name, array),) = x.items()
        points = np.repeat(array, array.size, 0)
        np.fill_diagonal(points, value)
        fall = run.score(x, seed) - run.score(Tensors({name: points}), seed)
        return Tensors({name: fall.astype(np.float32).reshape(array.shape)})

    w = normal(5, 3)
    path = saved(
        net(
            "g (float[N, 5] x) => (float[N, 3] y) { d = Det (m) z = MatMul (x, w) y = Mul (z, d) }",
            w=w,
            m=np.eye(2, dtype=np.float32),
        ),
        tmp_path,
    )
    x = normal(4, 5, seed=1)
    explainer = Explainer(path, "without")
    found = explainer.explain(x, [0, 2])
    np.testing.assert_allclose(found.relevance, np.concatenate([x * w[:, 0], x * w[:, 2]]), rtol=1e-4, atol=1e-5)
    assert METHODS["without"].family == "forward-only" and found.provenance["recipe"]["method"] == "without"
    with pytest.raises(UsageError, match="forward-only: it runs the model itself"):
        explainer.save(tmp_path / "x.onnx")
    with pytest.raises(NotFinite, match="at a point that the method looks at is no answer"):
        Explainer(saved(net("g (float[N, 5] x) => (float[N, 5] y) { y = Log (x) }"), tmp_path), "without").explain(
            1 + x**2, 0
        )


def test_an_inner_layer_is_an_input_of_the_model_cut_there(tmp_path):
    """Integrated gradients of a layer: complete from zero activations to those of the sample."""
    source, x = repository("digits_cnn"), sample("digits_cnn")
    inner = subject("digits_cnn").normalised.model.graph[0].outputs[0].name
    cut(source, tmp_path / "tail.onnx", at=inner)
    (values,) = (Subject.of(source, Request(keep=(inner,))).forward({"input": x}, [inner])).values()
    found = Explainer(tmp_path / "tail.onnx", "integrated_gradients", steps=200).explain(values, "predicted")
    tail = found.inputs[inner]
    before = Subject.of(tmp_path / "tail.onnx").forward({inner: np.zeros_like(tail)})[found.explained]
    change = (found.targets[0].seed * (found.scores - before)).sum(1)
    size = np.abs(found.relevance).reshape(len(x), -1).sum(1).max()
    np.testing.assert_allclose(found.relevance.reshape(len(x), -1).sum(1), change, atol=0.02 * size)  # kinks


# -- inputs that are no batch ----------------------------------------------------------------------------------------

F = functools.partial(normal, seed=5)
NO_BATCH = {
    "a sum along the rows": (
        "g (float[T, 4] x) => (float[T, 3] y) { c = CumSum (x, zero) h = MatMul (c, w) y = Tanh (h) }", {"x": F(1, 4)},
    ),
    "a mean over the rows, one row": (
        "g (float[N, 4] x) => (float[N, 3] y) { m = ReduceMean <keepdims = 1> (x, zeros) c = MatMul (m, v) h = MatMul (x, w) s = Mul (h, c) y = Tanh (s) }",  # noqa: E501
        {"x": F(1, 4)},
    ),
    "time in front, one step": (
        "g (float[T, N, 4] x) => (float[N, 3] y) { s = ReduceSum <keepdims = 0> (x, zeros) h = MatMul (s, w) y = Tanh (h) }",  # noqa: E501
        {"x": F(1, 1, 4)},
    ),
    "a vector for all rows, one row": (
        "g (float[N, 4] x, float[4] b) => (float[N, 3] y) { s = Mul (x, b) h = MatMul (s, w) y = Tanh (h) }",
        {"x": F(1, 4), "b": normal(4)},
    ),
    "an index list": (
        "g (float[N, 4] x, int64[K] i) => (float[N, 3] y) { e = Gather (e0, i) r = ReduceSum <keepdims = 0> (e, zeros) s = Mul (x, r) h = MatMul (s, w) y = Tanh (h) }",  # noqa: E501
        {"x": F(1, 4), "i": np.array([1, 3, 4])},
    ),
    "a table beside a row": (
        "g (float[1, 4] x, float[K, 4] t) => (float[1, 3] y) { m = ReduceSum <keepdims = 1> (t, zeros) s = Mul (x, m) h = MatMul (s, w) y = Tanh (h) }",  # noqa: E501
        {"x": F(1, 4), "t": normal(3, 4)},
    ),
    "a scalar": (
        "g (float[N, 4] x, float s) => (float[N, 3] y) { z = Mul (x, s) h = MatMul (z, w) y = Tanh (h) }",
        {"x": F(1, 4), "s": np.array(0.7, np.float32)},
    ),
    "a graph of neighbours": (
        "g (float[N, 4] x, float[N, N] a) => (float[N, 3] y) { m = MatMul (a, x) h = MatMul (m, w) y = Tanh (h) }",
        {"x": F(1, 4), "a": np.ones((1, 1), np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_BATCH)
def test_what_is_no_batch_is_moved_as_it_is(case, tmp_path):
    """Against the base at one point after the other, each in a run of its own, all float inputs moved together."""
    text, feeds = NO_BATCH[case]
    constants = {"w": F(4, 3), "v": normal(4, 3), "e0": normal(6, 4), "zero": np.array(0), "zeros": np.array([0])}
    path = saved(net(text, **{n: array for n, array in constants.items() if re.search(rf"\b{n}\b", text)}), tmp_path)
    gradient = Explainer(path, "gradient", kind="classification")
    positions, weights = nodes(6, "gauss_legendre")
    moving = [name for name, array in feeds.items() if array.dtype == np.float32]
    sums = dict.fromkeys(moving, 0.0)
    for position, weight in zip(positions, weights, strict=True):
        point = {name: np.asarray(a * position, np.float32) if name in moving else a for name, a in feeds.items()}
        found = gradient.explain(point, 1).relevances
        sums = {name: total + weight * found[name].reshape(feeds[name].shape) for name, total in sums.items()}
    found = Explainer(path, "integrated_gradients", steps=6, kind="classification").explain(feeds, 1).relevances
    for name in moving:
        expected = sums[name] * feeds[name]
        np.testing.assert_allclose(found[name].reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)


def test_a_sample_moves_in_its_own_batch_where_nothing_is_proven(tmp_path):
    """Rows answer alone, though a Reshape with a literal batch hides it from the proof: the others stay as they are."""
    text = "g (float[3, 4] x) => (float[3, 3] y) { f = Reshape (x, flat) b = Reshape (f, back) h = MatMul (b, w) y = Tanh (h) }"  # noqa: E501
    hidden = net(text, w=F(4, 3), flat=np.array([12]), back=np.array([3, 4]))
    plain = net("g (float[N, 4] x) => (float[N, 3] y) { h = MatMul (x, w) y = Tanh (h) }", w=F(4, 3))
    x = normal(3, 4)
    for name in LOOPED:
        found = Explainer(saved(hidden, tmp_path), name, **few(name, x)).explain(x, [0, 2]).relevance
        expected = Explainer(saved(plain, tmp_path), name, **few(name, x)).explain(x, [0, 2]).relevance
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_an_input_without_a_row_for_each_sample_is_refused(tmp_path):
    text = "g (float[N, 4] x, float[4] b) => (float[N, 3] y) { s = Mul (x, b) h = MatMul (s, w) y = Tanh (h) }"
    path = saved(net(text, w=F(4, 3)), tmp_path)
    with pytest.raises(InputError, match=r"b \[4\] has not one row for each of 3 samples"):
        Explainer(path, "integrated_gradients").explain({"x": normal(3, 4), "b": normal(4)}, 1)


@pytest.mark.parametrize(
    "method, options", [("integrated_gradients", {"baseline": 1e39}), ("smooth_grad", {"noise": 1e39})]
)
def test_points_beyond_the_type_of_an_input_are_an_error(method, options, tmp_path):
    with pytest.raises(NotFinite, match=r"baseline or noise is beyond the range of the input's type"):
        Explainer(saved(relu_net(), tmp_path), method, **options).explain(X, 0)


def test_a_result_that_is_not_finite_is_an_error(tmp_path):
    path = saved(net("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", w=1e30 * F(4, 3)), tmp_path)
    with pytest.raises(NotFinite, match=r"the relevance of x by smooth_grad is no answer"):
        Explainer(path, "smooth_grad", average="square").explain(0.1 * normal(2, 4), 0)
