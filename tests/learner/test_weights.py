"""Frozen parameters of a fitted model."""

from __future__ import annotations

import numpy as np
import pytest

from spark_fm.errors import InvalidDataError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.weights import FMWeights
from tests import oracle
from tests.builders import planted_weights, random_batch


def test_factors_and_linear_are_views_of_the_table() -> None:
    weights = planted_weights(5, 3, seed=1)

    assert weights.k == 3
    assert weights.factors.shape == (5, 3)
    assert weights.linear.shape == (5,)
    assert np.shares_memory(weights.factors, weights.table)
    assert np.shares_memory(weights.linear, weights.table)
    np.testing.assert_array_equal(weights.linear, weights.table[:, 3])


def test_arrays_are_read_only() -> None:
    features = np.array([1, 4], np.int32)
    weights = FMWeights(0.0, np.zeros((2, 4), np.float32), 6, features)

    with pytest.raises(ValueError, match="read-only"):
        weights.table[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        weights.features[0] = 1  # type: ignore[index]


def test_predict_gives_raw_scores_under_squared_loss() -> None:
    weights = planted_weights(6, 3, seed=2)
    batch = random_batch(10, 6, seed=3)

    scores = weights.predict(batch, "squared")

    expected = oracle.scores(oracle.Model.of_table(weights.table, weights.bias), batch)
    np.testing.assert_allclose(scores, expected, atol=1e-5)  # float32 sums of values near 10


def test_predict_gives_probabilities_under_logistic_loss() -> None:
    weights = planted_weights(6, 3, seed=4)
    batch = random_batch(10, 6, seed=5)

    scores = weights.predict(batch, "logistic")

    raw = oracle.scores(oracle.Model.of_table(weights.table, weights.bias), batch)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-raw)), atol=1e-5)  # float32 sums


@pytest.mark.parametrize("index", [6, 2**31 - 2, -1])
def test_an_index_outside_the_model_is_named_with_range_and_remedy(index: int) -> None:
    weights = planted_weights(6, 3, seed=6)
    batch = CsrBatch.from_arrays(
        np.array([0, 2]), np.array([min(index, 2), index], np.int32), np.ones(2, np.float32)
    )

    with pytest.raises(InvalidDataError) as caught:
        weights.predict(batch, "squared")

    text = str(caught.value)
    assert f"Feature index {index} is outside the model's range 0 to 5" in text
    assert "featureDim" in text
    assert isinstance(caught.value, ValueError)


def test_a_model_of_seen_ids_passes_over_unseen_ids_but_not_over_the_dimension() -> None:
    table = planted_weights(2, 3, seed=7).table
    weights = FMWeights(0.5, table, 10, np.array([3, 8], np.int32))
    both = CsrBatch.from_matrix(np.eye(10)[[3]] + np.eye(10)[[8]])
    and_unseen = CsrBatch.from_matrix(np.ones((1, 10)))

    scores = weights.predict(and_unseen, "squared")

    np.testing.assert_array_equal(scores, weights.predict(both, "squared"))
    with pytest.raises(InvalidDataError, match="index 10 is outside"):
        weights.predict(CsrBatch.from_matrix(np.ones((1, 11))), "squared")
