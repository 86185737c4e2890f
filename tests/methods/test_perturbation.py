"""Forward-only methods: closed forms of linear models, laws over every one of them, errors of sampling."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import onnx
import pytest
from nets import NAMES, net, normal, relu_net, repository, sample

from onnxplain import Explainer
from onnxplain.errors import UsageError
from onnxplain.methods import METHODS
from onnxplain.runtime import chunking
from onnxplain.subject import Subject

OF_THEIR_OWN = ("d_rise",)  # models: detectors
FORWARD_ONLY = [
    name
    for name, method in METHODS.items()
    if method.family == "forward-only"
    and not (method.of_trees or method.of_tables or method.maps or method.background == "required")
    and name not in OF_THEIR_OWN
]
FEW = {
    "rise": {"masks": 40}, "shapley_sampling": {"permutations": 4}, "kernel_shap": {"samples": 200},
    "lime": {"samples": 200}, "exact_shapley": {},
}  # fmt: skip
SAMPLING = ["rise", "shapley_sampling", "kernel_shap", "lime"]
X = normal(3, 2, 6, 6)


@functools.cache
def subject(name: str) -> Subject:
    return Subject.of(repository(name))


def saved(model: onnx.ModelProto, folder) -> str:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return str(path)


def linear(folder, features: int = 5) -> tuple[str, np.ndarray]:
    """A path of y = x w + 3, and w (features, 3)."""
    w = normal(features, 3)
    text = f"g (float[N, {features}] x) => (float[N, 3] y) {{ z = MatMul (x, w) y = Add (z, three) }}"
    return saved(net(text, w=w, three=np.float32(3).reshape(())), folder), w


def explained(path, x, target=1, **options):
    return Explainer(path, kind="classification", **options).explain(x, target)


# -- closed forms ----------------------------------------------------------------------------------------------------

EXACT = {
    "occlusion": {}, "feature_ablation": {}, "exact_shapley": {}, "shapley_sampling": {"permutations": 2},
    "kernel_shap": {"samples": 100}, "lime": {"samples": 100, "ridge": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_of_a_linear_model_every_method_gives_weight_times_difference(name, tmp_path):
    path, w = linear(tmp_path, 8)
    x, baseline = normal(4, 8, seed=1), [0.1, -0.2, 0.3, 0.0, 1.0, 2.0, -1.0, 0.5]
    found = explained(path, x, [0, 2], method=name, baseline=baseline, **EXACT[name]).relevance
    expected = np.concatenate([(x - baseline) * w[:, k] for k in (0, 2)])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # float32 scores


def test_rise_of_a_linear_model_is_known_up_to_its_standard_error(tmp_path):
    """E[F | i kept] - E[F] = (1 - p) w (x - b), and E[F] = F(b) + p sum of w (x - b): the offset of the paper's map."""
    path, w = linear(tmp_path)
    x, p = normal(1, 5, seed=1), 0.4
    share = (w[:, 1] * (x - 0.5))[0]
    mean = 0.5 * w[:, 1].sum() + 3 + p * share.sum()
    for offset, expected in (("mean", (1 - p) * share), ("none", (1 - p) * share + mean)):
        options = {"masks": 4000, "probability": p, "offset": offset, "baseline": 0.5}
        found = explained(path, x, method="rise", **options)
        doubt = found.standard_errors["x"]
        assert (np.abs(found.relevance - expected) < 4.5 * doubt).all() and doubt.max() < 0.1


def test_occlusion_averages_over_the_windows_that_cover_an_element(tmp_path):
    """A linear model by hand: windows of 2 of 5 columns, one column further each time."""
    path, w = linear(tmp_path)
    x = normal(1, 5, seed=1)
    share = (x * w[:, 1])[0]
    falls = [share[n : n + 2].sum() for n in range(4)]
    expected = [falls[0], *(np.mean(falls[n : n + 2]) for n in range(3)), falls[3]]
    found = explained(path, x, method="occlusion", patch=2, stride=1).relevance
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)
    left = explained(path, x, method="occlusion", patch=2, stride=1, answer="score").relevance
    whole = Subject.of(path).forward({"x": x})["y"][0, 1]
    np.testing.assert_allclose(left + found, np.full((1, 5), whole), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="a stride of 3 steps over elements"):
        explained(path, x, method="occlusion", patch=2, stride=3)


# -- laws over every forward-only method -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_every_forward_only_method_explains_every_model(name, model):
    x, options = sample(model)[: 1 if model == "mobilenet_v2" else 3], FEW.get(name, {})
    if model == "mobilenet_v2" and name != "rise":
        options = options | {"patch": 112} | ({"samples": 64} if name == "lime" else {})
    if name == "exact_shapley" and model == "bc_logreg":
        with pytest.raises(UsageError, match=r"30 groups have 2\^30.*kernel_shap"):
            Explainer(subject(model), name).explain(x, 0)
        options = {"groups": [n // 3 for n in range(30)]}
    found = Explainer(subject(model), name, **options).explain(x, [0, 1])
    assert found.relevance.shape == (2 * len(x), *x.shape[1:]) and np.isfinite(found.relevance).all()
    assert found.relevance.any() and found.relevance.dtype == np.float32 and found.map.shape[0] == 2 * len(x)
    assert set(found.standard_errors) == (set(found.relevances) if name in SAMPLING else set())


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_a_model_without_a_derivative_is_explained(name, tmp_path):
    text = "g (float[N, 5] x) => (float[N, 3] y) { d = Det (m) z = MatMul (x, w) y = Mul (z, d) }"
    path = saved(net(text, w=normal(5, 3), m=np.eye(2, dtype=np.float32)), tmp_path)
    assert explained(path, normal(2, 5), method=name, **FEW.get(name, {})).relevance.any()


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_a_row_is_explained_alike_in_any_company_and_any_cut(name, tmp_path):
    explainer = Explainer(saved(relu_net(), tmp_path), name, **FEW.get(name, {}))
    whole = explainer.explain(X, 1)
    alone = np.concatenate([explainer.explain(X[n : n + 1], 1).relevance for n in range(3)])
    np.testing.assert_allclose(alone, whole.relevance, rtol=1e-4, atol=1e-5)
    for rows in (1, 7):
        explainer.subject.batch_rows = rows
        found = explainer.explain(X, 1)
        np.testing.assert_allclose(found.relevance, whole.relevance, rtol=1e-4, atol=1e-5)
        for tensor, doubt in whole.standard_errors.items():
            np.testing.assert_allclose(found.standard_errors[tensor], doubt, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_a_frozen_batch_is_filled_and_gives_the_same(name, tmp_path):
    free = explained(saved(relu_net(), tmp_path), X, [0, 2], method=name, **FEW.get(name, {}))
    fixed = explained(saved(relu_net(batch="3"), tmp_path), X, [0, 2], method=name, **FEW.get(name, {}))
    np.testing.assert_allclose(fixed.relevance, free.relevance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_the_order_of_axes_of_a_picture_makes_no_difference(name, tmp_path):
    text = "{ t = Tanh (x) m = ReduceSum <keepdims = 0> (t, axes) y = MatMul (m, w) }"
    found = {}
    for layout, shape, axes in (("NCHW", "3, 9, 8", [2, 3]), ("NHWC", "9, 8, 3", [1, 2])):
        graph = net(f"g (float[N, {shape}] x) => (float[N, 3] y) {text}", axes=np.array(axes), w=normal(3, 3))
        x = normal(1, 3, 9, 8)
        x = x if layout == "NCHW" else np.moveaxis(x, 1, 3)
        relevance = explained(saved(graph, tmp_path), x, method=name, **FEW.get(name, {})).relevance
        found[layout] = relevance if layout == "NCHW" else np.moveaxis(relevance, 3, 1)
    np.testing.assert_allclose(found["NHWC"], found["NCHW"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_progress_rises_to_all_there_is(name, tmp_path):
    told = []
    explainer = Explainer(saved(relu_net(), tmp_path), name, **FEW.get(name, {}))
    explainer.explain(X, [0, 1], progress=lambda *now: told.append(now))
    assert told == sorted(told) and told[-1][0] == told[-1][1]


# -- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLING)
def test_a_random_seed_gives_the_same_answer_twice_and_another_one_another(name, tmp_path):
    path = saved(relu_net(), tmp_path)
    first, again, other = (explained(path, X, method=name, random_seed=n, **FEW[name]).relevance for n in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


REPEATS = 30


@pytest.mark.parametrize("name", SAMPLING)
def test_the_standard_error_is_the_deviation_over_random_seeds(name, tmp_path):
    path, options = saved(relu_net(), tmp_path), FEW[name] | ({} if name == "rise" else {"patch": 2})
    found = [explained(path, X[:1], method=name, random_seed=n, **options) for n in range(REPEATS)]
    deviation = np.std([f.relevance for f in found], axis=0, ddof=1)
    told = np.sqrt(np.mean([np.square(f.standard_errors["x"]) for f in found], axis=0))
    ratio = np.sqrt(np.mean(told**2) / np.mean(deviation**2))
    assert 0.75 < ratio < 1.33  # of 30 repeats; neighbours go together, so few of the 72 are independent


@pytest.mark.parametrize("name", SAMPLING)
def test_until_ends_when_the_standard_error_is_reached_whatever_the_batch(name, tmp_path):
    explainer = Explainer(saved(relu_net(), tmp_path), name, until=0.2)
    looks = []
    found = explainer.explain(X[:1], 1, progress=lambda done, total: looks.append((done, total)))
    assert found.standard_error < 0.2 and looks[-1][0] < looks[-1][1]
    explainer.subject.batch_rows = 7
    np.testing.assert_allclose(explainer.explain(X[:1], 1).relevance, found.relevance, rtol=1e-4, atol=1e-5)


def test_standard_errors_are_saved(tmp_path):
    found = explained(saved(relu_net(), tmp_path), X, method="rise", **FEW["rise"])
    archive = np.load(found.save(tmp_path / "e.npz"))
    np.testing.assert_array_equal(archive["x.standard_error"], found.standard_errors["x"])
    assert METHODS["rise"].channels == "mean" and found.map.shape == (3, 6, 6)


# -- memory ----------------------------------------------------------------------------------------------------------


def wide_net() -> onnx.ModelProto:
    """(N, 3, 128, 128) to 2 scores: 0.2 MB a point, 0.5 MB of one convolution."""
    text = """g (float[N, 3, 128, 128] x) => (float[N, 2] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (c) m = ReduceMean <keepdims = 0> (r, axes) y = MatMul (m, v)
    }"""
    return net(text, w=normal(8, 3, 3, 3), axes=np.array([2, 3]), v=normal(8, 2))


MANY = {
    "rise": {"masks": 600}, "shapley_sampling": {"permutations": 13}, "kernel_shap": {"samples": 600},
    "lime": {"samples": 600}, "exact_shapley": {"patch": 43}, "occlusion": {"patch": 10},
    "feature_ablation": {"patch": 5},
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_a_run_takes_no_more_rows_than_fit_in_its_share_of_the_free_memory(name, tmp_path, monkeypatch):
    explainer = Explainer(saved(wide_net(), tmp_path), name, **MANY[name])
    row = 4 * (3 * 3 * 128 * 128)  # a point, and two copies on its way
    monkeypatch.setattr(chunking, "free_memory_bytes", lambda: int(8 * row / chunking.SHARE_OF_MEMORY))
    rows, forward = [], explainer.subject.forward
    monkeypatch.setattr(explainer.subject, "forward", lambda f, *n: (rows.append(len(f["x"])), forward(f, *n))[1])
    explainer.explain(normal(1, 3, 128, 128), 1)
    assert 1 < max(rows) < 8 and sum(rows) > 100


PEAK = """
import resource, sys
import numpy as np
from onnxplain import Explainer
from onnxplain.subject import Subject
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
subject, x = Subject.of(sys.argv[1], provider="cpu"), np.ones((1, 3, 128, 128), np.float32)
Explainer(subject, "rise", masks=64).explain(x, 0)
before = peak()
Explainer(subject, "rise", masks=1500).explain(x, 0)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are counted in other units elsewhere")
def test_the_peak_of_memory_does_not_grow_with_the_samples(tmp_path):
    """1500 points are 295 MB; 16 MB: the heap."""
    path = saved(wide_net(), tmp_path)
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16 << 20
