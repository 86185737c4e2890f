"""Permutation importance: closed forms of linear models, groups, what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import net, normal, repository

from onnxplain.errors import InputError, UnknownName, UsageError
from onnxplain.evaluate.permutation_importance import accuracy, permutation_importance
from onnxplain.subject import Subject

W = np.array([[2.0], [1.0], [0.0], [-0.5]], np.float32)
X = normal(400, 4, seed=1)
COLUMNS = ["a", "b_one", "b_two", "c"]


@pytest.fixture(params=["N", "16"])
def regression(request, tmp_path):
    """y = x w, with a batch of any length, or of 16."""
    path = tmp_path / "m.onnx"
    onnx.save(
        net(f"g (float[{request.param}, 4] x) => (float[{request.param}, 1] y) {{ y = MatMul (x, w) }}", w=W), path
    )
    return Subject.of(str(path))


def test_of_a_linear_regression_the_squared_error_rises_by_twice_the_variance(regression):
    """E (w (x_pi - x))^2 = 2 w^2 var(x) for rows that are independent, but for those that stay where they are."""
    found = permutation_importance(regression, X, X @ W[:, 0], metric="squared_error", repeats=40)
    expected = 2 * W[:, 0] ** 2 * X.var(0)
    assert found.goodness == pytest.approx(0, abs=1e-6) and found.falls.shape == (40, 4)
    assert (np.abs(found.mean["x"] - expected) <= 4.5 * found.standard_error["x"] + 1e-6).all()
    np.testing.assert_allclose(found.falls[:, 2], 0, atol=1e-6)


def test_columns_of_one_group_go_together_and_have_its_names(regression):
    labels = X @ W[:, 0]
    options = {"metric": "r2", "columns": COLUMNS, "repeats": 30}
    found = permutation_importance(regression, X, labels, groups=["b_*"], **options)
    assert found.names == ("b_one + b_two", "a", "c") and found.goodness == pytest.approx(1)
    assert found.mean["x"][1] == found.mean["x"][2]
    expected = 2 * (W[:, 0] ** 2 * X.var(0)) / labels.var()
    assert abs(found.mean["x"][1] - expected[1]) < 4.5 * found.standard_error["x"][1] + 1e-6
    again = permutation_importance(regression, X, labels, groups=["b_*"], **options)
    np.testing.assert_array_equal(found.falls, again.falls)


def test_accuracy_is_of_classes_and_of_signs():
    assert accuracy(np.array([0, 1, 1]), np.array([[2, 1], [0, 3], [5, 1]])) == pytest.approx(2 / 3)
    assert accuracy(np.array([0, 1]), np.array([[-2.0], [3.0]])) == 1


def test_a_classifier_of_pictures_is_worst_without_the_middle():
    """Digits: 9 patches; the edge says little."""
    subject = Subject.of(repository("digits_cnn"), provider="cpu")
    data = np.load(repository("digits_cnn").parents[1] / "samples" / "ten_digits.npz")
    x = next(iter(data.values())).astype(np.float32)
    (name,) = subject.resolved.explained
    labels = subject.forward({"input": x}, [name])[name].argmax(1)
    found = permutation_importance(subject, x, labels, patch=10, repeats=4)
    assert found.goodness == 1 and found.mean["input"].shape == x.shape[1:]
    middle, corner = found.mean["input"][0, 14, 14], found.mean["input"][0, 0, 0]
    assert middle > corner


def test_what_is_no_data_set_is_refused(regression):
    labels = X @ W[:, 0]
    with pytest.raises(InputError, match=r"two rows or more.*x \[400, 4\] and 3 labels"):
        permutation_importance(regression, X, labels[:3])
    with pytest.raises(UsageError, match="repeats=1"):
        permutation_importance(regression, X, labels, repeats=1)
    with pytest.raises(UnknownName, match="accuracy"):
        permutation_importance(regression, X, labels, metric="acuracy")
    with pytest.raises(UnknownName, match="input"):
        permutation_importance(regression, X, labels, attribute_to=["z"])
    with pytest.raises(UsageError, match="superpixels are each picture's own"):
        permutation_importance(regression, X, labels, groups="superpixels")
