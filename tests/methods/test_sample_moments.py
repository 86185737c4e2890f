"""Standard errors of methods that average random samples: by numpy on the samples themselves, and over random seeds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import net, normal

from onnxplain import Explainer
from onnxplain.methods.sample_moments import SampleMoments
from onnxplain.methods.tensors import Tensors

QUADRATIC = "g (float[N, 5] x) => (float[N, 3] y) { s = Mul (x, x) y = MatMul (s, w) }"


@pytest.fixture
def model(tmp_path) -> str:
    onnx.save(net(QUADRATIC, w=normal(5, 3)), tmp_path / "m.onnx")
    return str(tmp_path / "m.onnx")


@pytest.mark.parametrize("average", ["mean", "square", "variance"])
def test_the_standard_error_of_smooth_grad_is_that_of_its_samples(model, average):
    """The gradient of a quadratic form at x + e is 2 w (x + e), of numpy's own noise."""
    x, w, count = normal(1, 5, seed=1), normal(5, 3)[:, 0], 400
    deviation = 0.3 * float(x.max() - x.min())
    samples = 2 * w * (x + deviation * np.random.default_rng([7, 0]).standard_normal((count, 5)))
    values = {"mean": samples, "square": samples**2, "variance": (samples - samples.mean(0)) ** 2}[average]
    options = {"samples": count, "noise": 0.3, "random_seed": 7, "average": average}
    found = Explainer(model, "smooth_grad", **options).explain(x, 0)
    np.testing.assert_allclose(found.relevance[0], values.mean(0), rtol=1e-4)  # float32
    np.testing.assert_allclose(found.standard_errors["x"][0], values.std(0, ddof=1) / count**0.5, rtol=1e-4)


@pytest.mark.parametrize(
    "name, options", [("smooth_grad", {"average": a}) for a in ("mean", "square", "variance")]
    + [("expected_gradients", {"baseline": "uniform"}), ("expected_gradients", {"noise": 0.3})],
)  # fmt: skip
def test_the_standard_error_is_the_deviation_over_random_seeds(model, name, options):
    x = normal(1, 5, seed=1)
    shared = Explainer(model, "gradient")
    made = [
        Explainer(shared.subject, name, samples=60, random_seed=n, graph=shared.graph, **options) for n in range(60)
    ]
    found = [explainer.explain(x, 0) for explainer in made]
    deviation = np.std([f.relevance for f in found], axis=0, ddof=1)
    told = np.sqrt(np.mean([np.square(f.standard_errors["x"]) for f in found], axis=0))
    np.testing.assert_allclose(told, deviation, rtol=0.4)  # of 60 repeats, itself known to 9 %; variances are skewed


def test_a_single_sample_tells_nothing_of_its_error(model):
    assert not Explainer(model, "smooth_grad", samples=1).explain(normal(1, 5), 0).standard_errors


@pytest.mark.parametrize("of", ["mean", "variance"])
def test_far_values_keep_their_digits_and_pieces_do_not_matter(of):
    """Samples of 1e6 +- 1: float64 sums of their squares alone would have four digits left."""
    samples = 1e6 + np.random.default_rng(0).standard_normal((64, 3))
    answers = []
    for size in (8, 24, 64):
        moments = SampleMoments(of)
        for start in range(0, 64, size):
            part = slice(start, min(64, start + size))
            assert not moments.add(Tensors({"x": samples[part]}), part)
        answers.append(moments.estimate(Tensors({"x": samples[:1]})))
    for answer in answers:
        np.testing.assert_array_equal(answer.relevance["x"], answers[0].relevance["x"])
        np.testing.assert_array_equal(answer.standard_error["x"], answers[0].standard_error["x"])
    value = samples.mean(0) if of == "mean" else samples.var(0)
    np.testing.assert_allclose(answers[0].relevance["x"][0], value, rtol=1e-9)
