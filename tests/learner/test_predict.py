"""Scores by the sum-of-squares identity against the O(n^2) sum over pairs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.predict import (
    TablePositions,
    margins,
    predicted_labels,
    sigmoid,
    table_positions,
)
from tests import oracle
from tests.builders import planted_weights, random_batch

# Every partial sum stays below the score's terms made positive; a dozen float32 roundings
# (6e-8 each) of that bound cover rows of six entries at any k, since lanes add up apart.
ROUNDINGS = 12 * 6e-8


def assert_scores(seen: np.ndarray, table: np.ndarray, bias: float, batch: CsrBatch) -> None:
    model = oracle.Model.of_table(table, bias)
    for r in range(batch.n_rows):
        entries = oracle.entries_of(batch, r)
        allowed = ROUNDINGS * oracle.magnitude(model, entries)
        assert abs(float(seen[r]) - oracle.score(model, entries)) <= allowed


@pytest.mark.parametrize("k", [1, 2, 3, 8, 17, 64, 1024])
def test_margins_equal_the_sum_over_pairs(k: int) -> None:
    weights = planted_weights(12, k, seed=k)
    batch = random_batch(40, 12, seed=k + 1)

    scores = margins(batch, weights.table, weights.bias)

    assert scores.dtype == np.float32
    assert (np.diff(batch.indptr) == 0).any()
    assert_scores(scores, weights.table, weights.bias, batch)


def test_a_row_without_entries_scores_the_bias() -> None:
    weights = planted_weights(4, 3, seed=1)
    batch = CsrBatch.from_matrix(np.zeros((2, 4)))

    scores = margins(batch, weights.table, 0.625)

    assert scores.tolist() == [0.625, 0.625]


def test_a_single_entry_scores_bias_plus_linear_term() -> None:
    weights = planted_weights(4, 3, seed=2)
    batch = CsrBatch.from_matrix(np.array([[0, 0, 2.0, 0]]))

    (score,) = margins(batch, weights.table, 0.5)

    # The pair sum of one entry is s^2 - s^2, rounded.
    assert score == pytest.approx(0.5 + 2 * weights.table[2, 3], abs=1e-6)


def test_repeated_and_unsorted_entries_score_like_their_sums() -> None:
    weights = planted_weights(5, 3, seed=3)
    repeated = sp.csr_matrix(
        (np.array([1.0, 0.5, 2.0, -1.0]), np.array([4, 1, 4, 0]), np.array([0, 4])), shape=(1, 5)
    )
    added = np.array([[-1.0, 0.5, 0, 0, 3.0]])

    scores = margins(CsrBatch.from_matrix(repeated), weights.table, weights.bias)

    assert scores == margins(CsrBatch.from_matrix(added), weights.table, weights.bias)


def test_ids_outside_a_table_of_ids_add_nothing() -> None:
    weights = planted_weights(4, 3, seed=4)
    features = np.array([2, 5, 7, 2**31 - 2], np.int32)
    with_unseen = batch_of([[0, 2, 3, 7], [5, 6, 2**31 - 2], [2**31 - 3], [1, 9]])
    by_place = batch_of([[0, 2], [1, 3], [], []])

    scores = margins(with_unseen, weights.table, weights.bias, features=features)

    np.testing.assert_array_equal(scores, margins(by_place, weights.table, weights.bias))


def batch_of(rows: list[list[int]]) -> CsrBatch:
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    indices = np.array([j for row in rows for j in row], np.int32)
    return CsrBatch.from_arrays(indptr, indices, np.ones(len(indices), np.float32))


def test_a_table_of_no_ids_scores_the_bias_everywhere() -> None:
    batch = random_batch(5, 4, seed=5)
    nothing = np.empty(0, np.int32)

    scores = margins(batch, np.empty((0, 4), np.float32), 0.25, features=nothing)

    assert scores.tolist() == [0.25] * 5


def test_table_positions_find_each_id_or_say_minus_one() -> None:
    features = np.array([3, 4, 9], np.int32)

    places = table_positions(features, np.array([9, 0, 3, 10, 4, 5], np.int32))

    assert places.tolist() == [2, -1, 0, -1, 1, -1]
    assert places.dtype == np.int32


@given(
    features=st.sets(st.integers(0, 300), max_size=40),
    asked=st.lists(st.lists(st.integers(-400, 400), max_size=12), max_size=4),
)
def test_positions_are_the_same_from_the_list_and_from_the_search(features, asked) -> None:
    ids = np.array(sorted(features), np.int32)
    expected = {j: row for row, j in enumerate(ids.tolist())}
    positions = TablePositions(ids)

    for indices in asked:
        found = positions.of(np.array(indices, np.int32))
        assert found.tolist() == [expected.get(j, -1) for j in indices]
        assert found.dtype == np.int32


@pytest.mark.parametrize("n_features", [0, 4])
def test_a_batch_without_rows_has_no_scores(n_features: int) -> None:
    batch = random_batch(0, n_features, seed=6)

    scores = margins(batch, np.zeros((n_features, 4), np.float32), 1.0)

    assert scores.shape == (0,)


def test_rows_without_features_score_with_an_empty_table() -> None:
    scores = margins(random_batch(3, 0, seed=7), np.zeros((0, 4), np.float32), 1.5)

    assert scores.tolist() == [1.5] * 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_reach_the_score(bad: float) -> None:
    weights = planted_weights(3, 3, seed=8)
    batch = CsrBatch.from_matrix(np.array([[1.0, bad, 1.0], [1.0, 0, 1.0]]))

    scores = margins(batch, weights.table, weights.bias)

    assert np.isfinite(scores).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_is_the_logistic_function_without_overflow(dtype: type) -> None:
    scores = np.array([-1e30, -800, -20, -1, 0, 1, 20, 800, 1e30], dtype)

    with np.errstate(all="raise", under="ignore"):
        shares = sigmoid(scores)

    assert shares.dtype == dtype
    expected = 1 / (1 + np.exp(-np.clip(scores.astype(np.float64), -700, 700)))
    # The half-tangent form rounds near 1/2 - 1/2: absolute, not relative, precision.
    np.testing.assert_allclose(shares, expected, rtol=0, atol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.6, 0.7, 0.9, 0, 1])
def test_labels_are_those_of_python_s_own_comparison_next_to_the_threshold(
    threshold: float,
) -> None:
    near = np.float32(threshold)
    scores = np.array([np.nextafter(near, np.float32(-1)), near, np.nextafter(near, np.float32(2)),
                       np.nan], np.float32)  # fmt: skip

    for dtype in (np.float32, np.float64):
        labels = predicted_labels(scores.astype(dtype), threshold)

        assert labels.dtype == np.float32
        assert labels.tolist() == [float(score >= threshold) for score in scores.tolist()]
