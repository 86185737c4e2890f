"""Path methods: closed forms (linear, quadratic, a maximum), completeness, what they note and what they refuse."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import net, normal, relu_net, repository, sample

from onnxplain import Explainer
from onnxplain.errors import UsageError
from onnxplain.methods import METHODS
from onnxplain.methods.gaussian_blur import blurred
from onnxplain.methods.registry import method

PATHS = ("integrated_gradients", "expected_gradients", "guided_integrated_gradients", "blurred_integrated_gradients")
QUADRATURES = METHODS["integrated_gradients"].options["quadrature"].choices
X, W = normal(3, 2, 6, 6, seed=1), normal(72, 3)
OFF = "does not sum to F"


@pytest.fixture
def saved(tmp_path):
    def save(model: onnx.ModelProto):
        onnx.save(model, tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    return save


@pytest.fixture
def linear(saved):
    """y = W x + b over a picture."""
    text = "g (float[N, 2, 6, 6] x) => (float[N, 3] y) { f = Flatten (x) y = Gemm (f, w, b) }"
    return saved(net(text, w=W, b=normal(3)))


@pytest.fixture
def quadratic(saved):
    """y = W x^2 over a picture."""
    text = "g (float[N, 2, 6, 6] x) => (float[N, 3] y) { f = Flatten (x) s = Mul (f, f) y = MatMul (s, w) }"
    return saved(net(text, w=W))


def weights(target: int) -> np.ndarray:
    return W[:, target].reshape(1, 2, 6, 6)


def close(found, expected, tolerance=1e-5):
    """To float32's rounding: sums of some 50 terms."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=tolerance * np.abs(expected).max())


# -- a linear model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [0.0, 0.7, [0.5, -1.0], "blur", "maximum_distance"])
@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_integrated_gradients_of_a_linear_model_are_weights_times_difference(linear, quadrature, baseline):
    options = {"quadrature": quadrature, "baseline": baseline, "steps": 5}
    found = Explainer(linear, "integrated_gradients", **options).explain(X, 1)
    close(found.relevance, weights(1) * (X - start(X, baseline)))
    assert not any(OFF in note for note in found.notes)


def start(x: np.ndarray, baseline) -> np.ndarray:
    """A baseline, written out."""
    if baseline == "blur":
        return each(x, 0.6)  # a tenth of 6
    if baseline == "maximum_distance":
        low, high = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
        return np.where(x > (low + high) / 2, low, high)
    return np.broadcast_to(np.reshape(baseline, (1, -1, 1, 1)), x.shape)


@pytest.mark.parametrize("baseline", [0.0, [0.5, -1.0], "blur", "maximum_distance"])
def test_guided_integrated_gradients_of_a_linear_model_are_weights_times_difference(linear, baseline):
    """Whatever the path: it ends at x."""
    found = Explainer(linear, "guided_integrated_gradients", baseline=baseline, steps=9).explain(X, 1).relevance
    close(found, weights(1) * (X - start(X, baseline)))


def test_blurred_integrated_gradients_of_a_linear_model_are_weights_times_what_the_blur_took(linear):
    found = Explainer(linear, "blurred_integrated_gradients", sigma=2.0, steps=4).explain(X, 1).relevance
    close(found, weights(1) * (X - each(X, 2.0)))


def each(x: np.ndarray, sigma: float) -> np.ndarray:
    """Every row blurred."""
    return np.concatenate([blurred(row[None], [sigma], (2, 3)) for row in x])


def test_expected_gradients_of_a_linear_model_are_weights_times_the_mean_difference(linear):
    """The draws are numpy's, of the documented seeds."""
    x, options = X[:1], {"samples": 20, "random_seed": 7}
    found = Explainer(linear, "expected_gradients", noise=0.0, baseline=0.3, **options).explain(x, 1).relevance
    close(found, weights(1) * (x - 0.3))
    noise = 0.2 * float(x.max() - x.min()) * np.random.default_rng([7, 0]).standard_normal((20, 2, 6, 6))
    found = Explainer(linear, "expected_gradients", noise=0.2, baseline=0.3, **options).explain(x, 1).relevance
    close(found, weights(1) * (x + noise.mean(0) - 0.3))
    shares, bounds = np.random.default_rng([7, 2, 0]).random((20, 2, 6, 6)), ([-1.0, -2.0], [3.0, 1.0])
    low, high = (np.reshape(end, (1, 2, 1, 1)) for end in bounds)
    explainer = Explainer(linear, "expected_gradients", noise=0.0, baseline="uniform", bounds=bounds, **options)
    close(explainer.explain(x, 1).relevance, weights(1) * (x - (low + (high - low) * shares).mean(0)))


# -- a maximum, and quadratic forms ----------------------------------------------------------------------------------


def test_the_maximum_of_two_numbers(saved):
    """From (0, 2) to (3, 1): straight on they meet half way; the guided path goes round, where the slope is 0."""
    path = saved(
        net(
            "g (float[N, 2] x) => (float[N, 1] y) { y = ReduceMax <keepdims = 1> (x, axis) }",
            axis=np.array([1]),
        )
    )
    x, options = np.array([[3, 1]], np.float32), {"kind": "regression", "baseline": [0.0, 2.0]}
    straight = Explainer(path, "integrated_gradients", steps=10, **options).explain(x)
    np.testing.assert_allclose(straight.relevance, [[1.5, -0.5]], atol=1e-6)
    guided = Explainer(path, "guided_integrated_gradients", steps=800, distance=1.0, **options).explain(x)
    np.testing.assert_allclose(guided.relevance, [[1, 0]], atol=0.03)  # some steps of 4 / 800 begin before the kink
    near = Explainer(path, "integrated_gradients", steps=10, kind="regression").explain(x)
    np.testing.assert_allclose(near.relevance, [[3, 0]], atol=1e-6)


@pytest.mark.parametrize("distance", [0.05, 1.0])
def test_guided_integrated_gradients_of_a_quadratic_form_are_exact(quadratic, distance):
    """R_i = w_i x_i^2, whatever the path: the mean of both ends is exact for a linear gradient."""
    found = Explainer(quadratic, "guided_integrated_gradients", steps=7, distance=distance).explain(X, [0, 2])
    close(found.relevance, np.concatenate([weights(k) * X**2 for k in (0, 2)]))


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_blurred_integrated_gradients_of_a_quadratic_form_are_exact(quadratic, steps):
    """R_i = w_i (x_i^2 - L_i^2), whatever the steps: the middle of a line is exact for a linear gradient."""
    found = Explainer(quadratic, "blurred_integrated_gradients", sigma=1.5, steps=steps).explain(X, [0, 2])
    expected = np.concatenate([weights(k) * (X**2 - each(X, 1.5) ** 2) for k in (0, 2)])
    close(found.relevance, expected)


# -- completeness ----------------------------------------------------------------------------------------------------


def sums(explainer: Explainer, x: np.ndarray, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What relevance sums to, and the change of the predicted score; (N,)."""
    found = explainer.explain(x, "predicted")
    (key,) = found.inputs
    before = explainer.subject.forward({key: begin})[found.explained]
    change = (found.targets[0].seed * (found.scores - before)).reshape(len(x), -1).sum(1)
    return found.relevance.reshape(len(x), -1).sum(1, dtype=np.float64), change


@pytest.mark.parametrize("steps, tolerance", [(32, 5e-3), (64, 1e-4)])
def test_integrated_gradients_of_a_transformer_are_complete(steps, tolerance):
    """Of F(x) - F(x'): GELU, softmax and LayerNormalization have no kinks, so twice the points square the error."""
    x = sample("digits_vit")
    found, change = sums(Explainer(repository("digits_vit"), "integrated_gradients", steps=steps), x, 0 * x)
    np.testing.assert_allclose(found, change, rtol=tolerance)


def test_blurred_integrated_gradients_of_a_transformer_are_complete():
    """To 1 % of F(x) - F(blurred): the error falls with the square of the steps."""
    x = sample("digits_vit")
    explainer = Explainer(repository("digits_vit"), "blurred_integrated_gradients", steps=200)
    found, change = sums(explainer, x, each(x, 7.0))  # a quarter of 28
    np.testing.assert_allclose(found, change, rtol=1e-2)


def off(found) -> list[str]:
    return [note for note in found.notes if OFF in note]


def test_a_sum_that_misses_the_change_of_the_score_is_noted_with_the_largest_error(quadratic):
    """One step at its end: R = 2 w x^2 in place of w x^2, 100 % too much for every row and target."""
    coarse = Explainer(quadratic, "integrated_gradients", steps=1, quadrature="right")
    (note,) = off(coarse.explain(X, [0, 1]))
    assert note.startswith("integrated_gradients: relevance does not sum to F(x) - F(x'): it is off by up to 100 %")
    assert note.endswith("take more steps (in 6 of 6 explanations)")
    assert off(coarse.explain(X[:1], 0))[0].endswith("take more steps")
    assert not off(Explainer(quadratic, "integrated_gradients", steps=1, quadrature="midpoint").explain(X, [0, 1]))


@pytest.mark.parametrize("base", ["lrp-epsilon", "deconvnet", "saliency", "gradient_x_input"])
def test_only_the_gradient_promises_a_sum(saved, base):
    path = saved(relu_net())
    for name in PATHS:
        steps = "samples" if name == "expected_gradients" else "steps"
        assert not off(Explainer(path, name, base=base, **{steps: 1}).explain(X, 0))
    options = {"steps": 1, "quadrature": "right"}
    assert off(Explainer(path, "integrated_gradients", **options).explain(X, 0))
    assert not off(Explainer(path, "integrated_gradients", multiply_by_inputs=False, **options).explain(X, 0))


# -- other bases, notes, refusal -------------------------------------------------------------------------------------


def test_blurred_integrated_gradients_over_lrp_average_it_along_the_path(saved):
    path, x = saved(relu_net()), X[:1]
    base, points = Explainer(path, "lrp", composite="epsilon"), blurred(x, [3.0, 8 / 9, 1 / 9, 0.0], (2, 3))
    expected = base.explain((points[:-1] + points[1:]) / 2, 1).relevance.mean(0, keepdims=True)
    found = Explainer(path, "blurred_integrated_gradients", base="lrp-epsilon", sigma=3.0, steps=3).explain(x, 1)
    close(found.relevance, expected)


def test_a_guided_path_in_a_narrow_band_is_the_straight_one(saved):
    """Without a band's width every element moves alike."""
    path = saved(relu_net())
    for quadrature, points in (("left", 8), ("trapezoid", 9)):
        options = {"steps": 8, "distance": 0.0, "quadrature": quadrature}
        guided = Explainer(path, "guided_integrated_gradients", **options).explain(X, 1).relevance
        straight = Explainer(path, "integrated_gradients", steps=points, quadrature=quadrature)
        close(guided, straight.explain(X, 1).relevance)


def test_a_note_is_said_once_with_the_largest_figure(monkeypatch, saved):
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))

    @method("noting", cite="nobody")
    def noting(run, x, seed):
        """The base, with remarks."""
        run.note("said {once}")
        for share in (0.5, 1.0):
            run.note("at most {figure:.1f}", share * abs(float(seed.argmax())))
        if seed.argmax() == 2:
            run.note("seldom {figure:.0f}", 7)
        return run.relevance(x, seed)

    found = Explainer(saved(relu_net()), "noting").explain(X, [0, 2])
    notes = [note for note in found.notes if note.startswith("noting")]
    assert notes == [
        "noting: said {once}",
        "noting: at most 2.0 (in 6 of 6 explanations)",
        "noting: seldom 7 (in 3 of 6 explanations)",
    ]


def test_a_range_that_is_not_known_is_said(linear):
    explainer = Explainer(linear, "integrated_gradients", baseline="maximum_distance")
    assert any("bounds are not known" in note for note in explainer.explain(X, 0).notes)
    bounds = ([-5.0, 0.0], [4.0, 6.0])
    found = Explainer(linear, "integrated_gradients", baseline="maximum_distance", bounds=bounds).explain(X, 0)
    assert not any("bounds are not known" in note for note in found.notes)
    ends = [np.where(X[:, n] > (low + high) / 2, low, high) for n, (low, high) in enumerate(zip(*bounds, strict=True))]
    close(found.relevance, weights(0) * (X - np.stack(ends, 1)))


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("integrated_gradients", {"sigma": 1.0}, "sigma is of a blurred baseline: give baseline=blur"),
        ("expected_gradients", {"axes": [2], "baseline": "uniform"}, "axes is of a blurred baseline"),
        ("integrated_gradients", {"baseline": "blurr"}, "blur or maximum_distance"),
        ("integrated_gradients", {"quadrature": "trapezoid", "steps": 1}, "at least 2 steps"),
        ("blurred_integrated_gradients", {"axes": [0, 1]}, "whole numbers from 1 to 3, each once"),
        ("blurred_integrated_gradients", {"axes": [4]}, "whole numbers from 1 to 3, each once"),
        ("integrated_gradients", {"baseline": "blur", "axes": [1.5]}, "whole numbers from 1 to 3, each once"),
        ("guided_integrated_gradients", {"fraction": 0}, "from 0.01 to 1"),
    ],
)
def test_what_does_not_fit_is_one_line(linear, name, options, says):
    with pytest.raises(UsageError, match=says):
        Explainer(linear, name, **options).explain(X, 0)


def test_what_is_no_picture_is_not_blurred_unasked(saved):
    path = saved(net("g (float[N, 5] x) => (float[N, 3] y) { y = MatMul (x, w) }", w=normal(5, 3)))
    x = normal(2, 5)
    with pytest.raises(UsageError, match=r"x \[1, 5\] is no picture: say along which axes .* axes=\[1\]"):
        Explainer(path, "blurred_integrated_gradients").explain(x, 0)
    found = Explainer(path, "blurred_integrated_gradients", axes=[1], sigma=1e9).explain(x, 0).relevance
    close(found, normal(5, 3)[:, 0] * (x - x.mean(1, keepdims=True)))
