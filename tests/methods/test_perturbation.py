"""Forward-only methods: closed forms of linear models, laws over every one of them, errors of sampling."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
from nets import NAMES, net, normal, relu_net, repository, sample

from onnxplain import Explainer, loops
from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.methods import METHODS, of_family
from onnxplain.methods.baselines import baseline_of
from onnxplain.methods.feature_groups import partition, windows
from onnxplain.methods.masks import GridMasks
from onnxplain.methods.tensors import Tensors
from onnxplain.subject import Subject

FORWARD_ONLY = of_family("forward-only")
FEW = {"rise": {"masks": 40}}
SAMPLING = ["rise"]
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


# -- feature groups, baselines, masks --------------------------------------------------------------------------------

SHAPES = {
    "a table": ((1, 7), None, 7),
    "a sequence": ((1, 12, 3), 5, 3),
    "channels before time": ((1, 2, 12), 4, 3),
    "a picture": ((1, 3, 10, 8), 4, 6),
    "a picture, channels last": ((1, 10, 8, 3), 4, 6),
    "a volume": ((1, 2, 4, 4, 4), 2, 8),
    "a patch of each axis": ((1, 3, 10, 8), [1, 0, 4], 6),
    "a number": ((1,), None, 1),
}


@pytest.mark.parametrize("case", SHAPES)
def test_feature_groups_are_a_partition(case):
    shape, patch, count = SHAPES[case]
    x = Tensors({"x": normal(*shape)})
    groups = partition(x, "auto", patch, 7)
    assert groups.count == count and groups.sizes.sum() == x["x"].size
    alone = groups.points(x, x * 0.0, np.eye(count, dtype=bool))["x"]
    assert alone.dtype == np.float32
    np.testing.assert_array_equal(alone.sum(0, keepdims=True), x["x"])
    np.testing.assert_array_equal((alone != 0).reshape(count, -1).sum(1), groups.sizes)
    values = np.arange(1.0, count + 1)
    np.testing.assert_allclose(groups.shared(values)["x"].sum(), values.sum(), rtol=1e-12)


def test_groups_go_over_all_inputs_and_may_be_named():
    x = Tensors({"a": normal(1, 4), "b": normal(1, 2, 6, 6)})
    assert partition(x, "auto", None, 3).count == 4 + 9
    assert partition(x, "elements", None, 3).count == 4 + 72 and partition(x, "inputs", None, 3).count == 2
    one_hot = partition(Tensors({"a": x["a"]}), [7, 7, 2, 7], None, 3)
    np.testing.assert_array_equal(one_hot.numbers["a"], [[1, 1, 0, 1]])
    with pytest.raises(UsageError, match=r"groups has 3 numbers.*a \[1, 4\]"):
        partition(x, [1, 2, 3], None, 3)
    with pytest.raises(UsageError, match="give one of the two"):
        partition(x, "elements", 3, 3)
    with pytest.raises(UsageError, match="no lengths of a patch"):
        partition(x, "auto", [3, 3], 3)


@pytest.mark.parametrize("side, length, stride, starts", [(10, 4, 2, 4), (10, 4, 3, 3), (10, 4, 4, 3), (3, 4, 2, 1)])
def test_windows_cover_every_element(side, length, stride, starts):
    found = list(windows((1, side), (length,), (stride,)))
    assert len(found) == starts and {n for (w,) in found for n in range(*w.indices(side))} == set(range(side))


def test_baselines_keep_what_they_say():
    x = Tensors({"x": normal(1, 3, 20, 20)})
    mean = baseline_of(x, "mean")["x"]
    np.testing.assert_allclose(mean[0, :, 5, 5], x["x"][0].mean((1, 2)), rtol=1e-5)
    per_channel = baseline_of(x, [1.0, 2.0, 3.0])["x"]
    np.testing.assert_array_equal(per_channel[0, :, 3, 4], [1, 2, 3])
    blurred = baseline_of(x, "blur")["x"]
    assert blurred.std() < 0.5 * x["x"].std() and blurred.dtype == np.float32
    np.testing.assert_allclose(baseline_of(x * 0.0 + 2.0, "blur")["x"], 2, rtol=1e-6)
    last = Tensors({"x": np.moveaxis(x["x"], 1, 3)})
    np.testing.assert_allclose(np.moveaxis(baseline_of(last, "blur")["x"], 3, 1), blurred, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="is a table"):
        baseline_of(Tensors({"x": normal(1, 3)}), "blur")
    with pytest.raises(UsageError, match=r"baseline has 2 numbers.* has 3"):
        baseline_of(x, [1.0, 2.0])


def test_masks_have_the_mean_of_their_probability_and_do_not_depend_on_pieces():
    shape = (1, 3, 30, 21)
    drawn = GridMasks(shape, 7, 0.3, [5]).draw(4000)
    assert drawn.shape == (4000, 1, 30, 21) and drawn.min() >= 0 and drawn.max() <= 1
    deviation = np.sqrt(0.3 * 0.7 / 4000)  # of a mean of ones and zeros; enlarged masks vary less
    np.testing.assert_allclose(drawn.mean(0), 0.3, atol=5 * deviation)
    pieces = GridMasks(shape, 7, 0.3, [5])
    np.testing.assert_array_equal(np.concatenate([pieces.draw(1), pieces.draw(32)]), drawn[:33])
    assert set(np.unique(GridMasks((1, 9), 7, 0.5, [0]).draw(20))) == {0.0, 1.0}  # columns are kept or not


# -- closed forms ----------------------------------------------------------------------------------------------------

EXACT = {name: {} for name in ("occlusion", "feature_ablation")}


@pytest.mark.parametrize("name", EXACT)
def test_of_a_linear_model_every_method_gives_weight_times_difference(name, tmp_path):
    path, w = linear(tmp_path)
    x, baseline = normal(4, 5, seed=1), [0.1, -0.2, 0.3, 0.0, 1.0]
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
    with pytest.raises(UsageError, match="a stride of 3 steps over elements"):
        explained(path, x, method="occlusion", patch=2, stride=3)


# -- laws over every forward-only method -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_every_forward_only_method_explains_every_model(name, model):
    x = sample(model)
    found = Explainer(subject(model), name, **FEW.get(name, {})).explain(x, [0, 1])
    assert found.relevance.shape == (2 * len(x), *x.shape[1:]) and np.isfinite(found.relevance).all()
    assert found.relevance.any() and found.relevance.dtype == np.float32 and found.map.shape[0] == 2 * len(x)
    assert set(found.standard_errors) == (set(found.relevances) if name in SAMPLING else set())


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_a_model_without_a_derivative_is_explained(name, tmp_path):
    text = "g (float[N, 5] x) => (float[N, 3] y) { d = Det (m) z = MatMul (x, w) y = Mul (z, d) }"
    path = saved(net(text, w=normal(5, 3), m=np.eye(2, dtype=np.float32)), tmp_path)
    assert explained(path, normal(2, 5), method=name, **FEW.get(name, {})).relevance.any()


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_a_row_is_explained_alike_in_any_company_and_any_cut(name, tmp_path, monkeypatch):
    explainer = Explainer(saved(relu_net(), tmp_path), name, **FEW.get(name, {}))
    whole = explainer.explain(X, 1)
    alone = np.concatenate([explainer.explain(X[n : n + 1], 1).relevance for n in range(3)])
    np.testing.assert_allclose(alone, whole.relevance, rtol=1e-4, atol=1e-5)
    for rows in (1, 7):
        monkeypatch.setattr(loops, "ROWS", rows)
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


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_whole_numbers_are_refused(name, tmp_path):
    text = "g (int64[N, 3] ids) => (float[N, 4] y) { e = Gather (t, ids) y = ReduceSum <keepdims = 0> (e, axis) }"
    path = saved(net(text, t=normal(6, 4), axis=np.array([1])), tmp_path)
    with pytest.raises(UnsupportedModel, match="ids is no float input"):
        Explainer(path, name)


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
    path = saved(relu_net(), tmp_path)
    found = [explained(path, X[:1], method=name, random_seed=n, **FEW[name]) for n in range(REPEATS)]
    deviation = np.std([f.relevance for f in found], axis=0, ddof=1)
    told = np.sqrt(np.mean([np.square(f.standard_errors["x"]) for f in found], axis=0))
    ratio = np.sqrt(np.mean(told**2) / np.mean(deviation**2))
    assert 0.75 < ratio < 1.33  # of 30 repeats; neighbours go together, so few of the 72 are independent


@pytest.mark.parametrize("name", SAMPLING)
def test_until_ends_when_the_standard_error_is_reached_whatever_the_batch(name, tmp_path, monkeypatch):
    explainer = Explainer(saved(relu_net(), tmp_path), name, until=0.2)
    looks = []
    found = explainer.explain(X[:1], 1, progress=lambda done, total: looks.append((done, total)))
    assert found.standard_error < 0.2 and looks[-1][0] < looks[-1][1]
    monkeypatch.setattr(loops, "ROWS", 7)
    np.testing.assert_allclose(explainer.explain(X[:1], 1).relevance, found.relevance, rtol=1e-4, atol=1e-5)


def test_standard_errors_are_saved(tmp_path):
    found = explained(saved(relu_net(), tmp_path), X, method="rise", **FEW["rise"])
    archive = np.load(found.save(tmp_path / "e.npz"))
    np.testing.assert_array_equal(archive["x.standard_error"], found.standard_errors["x"])
    assert METHODS["rise"].channels == "mean" and found.map.shape == (3, 6, 6)
