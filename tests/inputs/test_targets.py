"""Laws of targets: what a seed holds, whatever the rank, the batch and the kind of the scores."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.errors import InputError, UnknownName, UsageError
from onnxplain.inputs import resolve_targets

NAMES = ["cat", "dog", "tiger", "tiger shark", "hen"]
RNG = np.random.default_rng(0)
SHAPES = [(1, 5), (3, 5), (2, 5, 4, 3), (1, 5, 1, 1), (2, 7, 5), (2, 4, 3, 5)]
SPECS = ["predicted", "top1", "top3", "hen", "3", "cat vs dog", "0 vs hen"]


def scores(shape) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spec", SPECS)
def test_a_seed_has_the_scores_axes_and_its_product_is_the_score(shape, spec):
    values = scores(shape)
    for target in resolve_targets(spec, values, NAMES):
        assert target.seed.dtype == np.float32
        assert target.seed.shape[1:] == values.shape[1:]
        assert target.seed.shape[0] in (1, len(values))
        np.testing.assert_allclose(target.score, (target.seed * values).reshape(len(values), -1).sum(1), rtol=1e-5)
        assert len(target.names) in (1, len(values))


@pytest.mark.parametrize("shape", SHAPES)
def test_top1_is_predicted_and_the_ranks_descend(shape):
    values = scores(shape)
    (predicted,) = resolve_targets("predicted", values, NAMES)
    ranks = resolve_targets("top5", values, NAMES)
    np.testing.assert_array_equal(ranks[0].seed, predicted.seed)
    assert (np.diff([target.score for target in ranks], axis=0) <= 0).all()
    np.testing.assert_array_equal(sum(target.seed for target in ranks), np.ones(values.shape))  # each class once


@pytest.mark.parametrize("shape, axis", [((3, 5), 1), ((2, 5, 4, 3), 1), ((2, 4, 3, 5), 3), ((2, 7, 5), 2)])
def test_predicted_is_the_largest_class_at_each_position(shape, axis):
    values = scores(shape)
    (target,) = resolve_targets("predicted", values, NAMES)
    np.testing.assert_array_equal(target.seed.sum(axis), 1)
    np.testing.assert_array_equal(target.seed.argmax(axis), values.argmax(axis))


def test_the_class_axis_is_given_or_found_by_the_labels_or_the_documented_default():
    values = scores((2, 4, 3, 5))
    assert resolve_targets("1", values, class_axis=-1)[0].seed[0, :, :, 1].all()
    assert resolve_targets("dog", values, NAMES)[0].seed[0, :, :, 1].all()
    assert resolve_targets("1", values)[0].seed[0, 1].all()
    assert resolve_targets("1", scores((2, 7, 5)))[0].seed[0, :, 1].all()


@pytest.mark.parametrize("spec", ["predicted", "top2", "2", "hen"])
@pytest.mark.parametrize("shape", [(1, 5), (3, 5), (1, 5, 1, 1)])
def test_an_index_is_where_the_seed_is_one(spec, shape):
    for target in resolve_targets(spec, scores(shape), NAMES):
        assert target.index.shape == (len(target.seed), len(shape) - 1)
        for row, index in zip(target.seed, target.index, strict=True):
            assert row[tuple(index)] == 1
            assert row.sum() == 1


def test_a_batch_has_a_row_and_a_name_for_every_sample():
    values = np.eye(5, dtype=np.float32)[[1, 4]]
    (target,) = resolve_targets("predicted", values, NAMES)
    assert target.names == ("dog", "hen")
    assert target.name == "predicted"
    np.testing.assert_array_equal(target.seed, values)
    assert resolve_targets("predicted", values[:1], NAMES)[0].name == "dog"


def test_a_versus_b_is_one_minus_the_other():
    (target,) = resolve_targets("hen VS 0", scores((2, 5)), NAMES)
    np.testing.assert_array_equal(target.seed, [[-1, 0, 0, 0, 1]])
    assert target.name == "hen vs cat"
    assert target.index is None


def test_a_comma_list_is_one_place():
    (target,) = resolve_targets("4,2,1", scores((2, 5, 4, 3)), NAMES)
    assert target.seed[0, 4, 2, 1] == target.seed.sum() == 1
    assert target.name == "hen at 4,2,1"
    assert target.index.tolist() == [[4, 2, 1]]
    (last,) = resolve_targets("6, 4", scores((2, 7, 5)), NAMES)
    assert last.name == "hen at 6, 4".replace(" 4", "4")
    assert last.seed[0, 6, 4] == 1


@pytest.mark.parametrize("shape", [(), (4,), (4, 1), (1, 1)])
@pytest.mark.parametrize("spec", ["predicted", "top1", "0"])
def test_a_single_value_is_explained_itself(shape, spec):
    values = scores(shape) if shape else np.float32(2.5)
    (target,) = resolve_targets(spec, values)
    assert target.seed.shape == (values.shape if not shape else (1, *shape[1:]))
    assert (target.seed == 1).all()
    np.testing.assert_allclose(target.score, np.atleast_1d(values).reshape(-1), rtol=1e-6)


def test_several_regression_values_are_summed_and_it_is_said():
    (target,) = resolve_targets("predicted", scores((2, 3)), kind="regression")
    assert (target.seed == 1).all()
    assert target.name == "sum of 3 values"


def test_one_sigmoid_unit_is_explained_on_the_side_it_decided_for():
    values = np.array([[2.0], [-3.0], [0.0]], np.float32)
    (target,) = resolve_targets("predicted", values, ["face"], kind="sigmoid")
    assert target.seed.tolist() == [[1], [-1], [1]]
    assert target.score.tolist() == [2, 3, 0]
    assert target.names == ("face (+logit)", "not face (−logit)", "face (+logit)")
    (other,) = resolve_targets("0", values, ["face"], kind="sigmoid")
    assert other.seed.tolist() == [[1]]  # an index asks for the unit, whatever it decided


def test_many_sigmoid_units_are_classes():
    (target,) = resolve_targets("predicted", np.array([[-3.0, -1.0]]), ["a", "b"], kind="sigmoid")
    assert target.seed.tolist() == [[0, 1]]


def test_without_a_batch_axis_the_seed_has_none():
    (target,) = resolve_targets("predicted", np.array([1.0, 5, 2]), ["a", "b", "c"], kind="classification")
    assert target.seed.tolist() == [0, 1, 0]
    assert (target.name, target.score.tolist()) == ("b", [5])


def test_ties_go_to_the_lower_index():
    assert [target.name for target in resolve_targets("top3", np.zeros((1, 5)), NAMES)] == ["cat", "dog", "tiger"]


def test_labels_of_another_tensor_name_nothing():
    (target,) = resolve_targets("predicted", np.eye(6)[3:4], NAMES)
    assert target.name == "class 3"
    with pytest.raises(UsageError, match="5 labels for 6 classes"):
        resolve_targets("hen", np.eye(6)[3:4], NAMES)


@pytest.mark.parametrize(
    "spec, shape, says",
    [
        ("5", (1, 5), "0 to 4"),
        ("-1", (1, 5), "0 to 4"),
        ("5 vs 1", (1, 5), "0 to 4"),
        ("1 vs 1", (1, 5), "same class"),
        ("top6", (1, 5), "5 class"),
        ("top0", (1, 5), "5 class"),
        ("1,2", (1, 5), "take 1 integers"),
        ("1,2", (1, 5, 4, 3), "take 3 integers"),
        ("1,4,0", (1, 5, 4, 3), "0 to 4, 0 to 3, 0 to 2"),
        ("9", (1, 5, 4, 3), "0 to 4"),
        ("1", (), "0 to 0"),
        ("1", (3,), "0 to 0"),
    ],
)
def test_a_target_out_of_range_names_the_range(spec, shape, says):
    with pytest.raises(UsageError, match=says):
        resolve_targets(spec, np.zeros(shape), NAMES if 5 in shape else ())


def test_a_wrong_name_offers_near_ones_and_a_shared_one_its_indices():
    with pytest.raises(UnknownName, match="tiger"):
        resolve_targets("tigr", scores((1, 5)), NAMES)
    with pytest.raises(UsageError, match="0 tiger cat, 1 tiger shark"):
        resolve_targets("tiger", scores((1, 2)), ["tiger cat", "tiger shark"])
    with pytest.raises(UsageError, match="--labels"):
        resolve_targets("tiger", scores((1, 5)))


@pytest.mark.parametrize("values", [np.array([[np.nan, 1]]), np.array([[np.inf, 1]]), np.zeros((0, 4))])
def test_scores_that_are_no_numbers_have_no_target(values):
    with pytest.raises(InputError, match="scores"):
        resolve_targets("predicted", values)


def test_a_number_that_names_another_class_is_no_index_until_it_is_said():
    values, digits = scores((1, 3)), ["2", "0", "1"]
    for spec in ("0", "2", "0 vs +2", "1"):
        with pytest.raises(UsageError, match=r"write \+\d or \+\d"):
            resolve_targets(spec, values, digits)
    assert resolve_targets("+0", values, digits)[0].seed.tolist() == [[1, 0, 0]]
    assert resolve_targets("+0 vs +2", values, digits)[0].seed.tolist() == [[1, 0, -1]]
    assert resolve_targets("1", values, ["0", "1", "2"])[0].seed.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("spec", ["cat vs cat", "0 vs cat", "CAT vs 0", "tiger vs tiger"])
def test_a_class_is_not_compared_with_itself(spec):
    with pytest.raises(UsageError, match="same class"):
        resolve_targets(spec, scores((1, 5)), NAMES)


@pytest.mark.parametrize("spec", ["-1", "cat vs -1", "-1 vs cat", "+9", "9 vs 0"])
def test_an_index_below_zero_or_beyond_the_classes_is_refused(spec):
    with pytest.raises(UsageError, match="0 to 4"):
        resolve_targets(spec, scores((1, 5)), NAMES)


def test_values_of_a_regression_have_no_ranks():
    with pytest.raises(UsageError, match="no ranks"):
        resolve_targets("top2", scores((2, 3)), kind="regression")
