"""Standardized features and models in feature units, against float64 arithmetic on dense rows."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_fm.learner import statistics
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.predict import margins
from spark_fm.learner.standardization import SMALLEST_OF_MEAN, Preparation, Standardization
from spark_fm.learner.statistics import FeatureCounter, FeatureMoments
from tests.oracle import Model, scores
from tests.oracle import entries_of as entries

N_ROWS = 400


def table_of_all_kinds() -> np.ndarray:
    """Columns: measured, one-hot, count in half the rows, rare number, far from 0, constant."""
    rng = np.random.default_rng(3)
    X = rng.normal(50, 2, (N_ROWS, 7))
    X[:, 1] = rng.random(N_ROWS) < 0.1
    X[:, 2] = np.where(rng.random(N_ROWS) < 0.5, rng.integers(1, 9, N_ROWS), 0)
    X[:, 3] *= rng.random(N_ROWS) < 0.1
    X[:, 4] = rng.normal(1e6, 1, N_ROWS)
    X[:, 5] = 7
    X[:, 6] = rng.random(N_ROWS) < 0.9
    return X.astype(np.float32).astype(np.float64)


def moments_of(X: np.ndarray) -> FeatureMoments:
    counts = (X != 0).sum(0)
    ids = np.flatnonzero(counts).astype(np.int32)
    columns = [X[X[:, j] != 0, j] for j in ids]
    return FeatureMoments(
        ids, counts[ids], np.array([c.mean() for c in columns]),
        np.array([((c - c.mean()) ** 2).sum() for c in columns]),
    )  # fmt: skip


def standardized(X: np.ndarray, **changes) -> tuple[Standardization, CsrBatch]:
    chosen = Standardization.of(moments_of(X), len(X), **{"may_centre": True, **changes})
    return chosen, chosen.apply(CsrBatch.from_matrix(sp.csr_matrix(X)))


def dense(batch: CsrBatch, n: int) -> np.ndarray:
    return sp.csr_matrix((batch.values, batch.indices, batch.indptr), (batch.n_rows, n)).toarray()


def test_features_of_most_rows_have_mean_0_and_deviation_1_and_one_hot_ones_stay():
    X = table_of_all_kinds()

    _, rows = standardized(X)

    Z = dense(rows, 7)
    np.testing.assert_allclose(Z[:, [0, 2]].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(Z[:, [0, 2]].std(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(Z[:, [1, 6]], X[:, [1, 6]])
    np.testing.assert_array_equal(Z[:, 5], 1)
    rare = Z[X[:, 3] != 0, 3]
    assert np.sqrt((rare**2).mean()) == pytest.approx(1, rel=1e-5)
    assert not Z[X[:, 3] == 0, 3].any()


def test_a_feature_far_from_zero_keeps_the_digits_of_its_mean():
    X = table_of_all_kinds()

    chosen, _ = standardized(X)

    at = chosen.ids.tolist().index(4)
    assert chosen.scales[at] == pytest.approx(1e6 * SMALLEST_OF_MEAN, rel=1e-3)


def test_values_at_both_ends_of_float32_have_a_difference():
    X = np.array([[3e38], [-3e38], [3e38]])

    _, rows = standardized(X)

    assert np.isfinite(rows.values).all()
    assert rows.values[0] == rows.values[2] > 0 > rows.values[1]


def test_centred_features_are_entries_of_every_row_in_order():
    X = table_of_all_kinds()

    chosen, rows = standardized(X)

    centred = chosen.ids[chosen.means != 0]
    assert centred.tolist() == [0, 2, 4]
    assert rows.nnz == (X != 0).sum() + chosen.n_added
    for r in range(rows.n_rows):
        ids = [j for j, _ in entries(rows, r)]
        assert ids == sorted(set(ids))
        assert set(centred.tolist()) <= set(ids)


def test_without_centring_no_entry_is_added():
    chosen, rows = standardized(table_of_all_kinds(), may_centre=False)

    assert chosen.n_added == 0
    assert not chosen.means.any()
    assert rows.nnz == (table_of_all_kinds() != 0).sum()


def test_one_hot_rows_train_as_they_are():
    X = (np.random.default_rng(1).random((50, 8)) < 0.4).astype(float)

    chosen, rows = standardized(X)

    assert chosen.changes_nothing
    assert chosen.digest == ""
    np.testing.assert_array_equal(dense(rows, 8), X)


@pytest.mark.parametrize("exponent", [-30, -6, 0, 6, 30])
def test_the_scale_of_all_values_makes_no_difference(exponent):
    X = table_of_all_kinds()[:, :4]
    factor = 2.0**exponent

    (_, as_given), (_, scaled) = standardized(X), standardized(X * factor)

    # One-hot features have another scale then; the others are the same.
    np.testing.assert_allclose(dense(scaled, 4), dense(as_given, 4), rtol=1e-6, atol=1e-6)


def random_model(n: int, k: int = 3) -> tuple[np.ndarray, float]:
    rng = np.random.default_rng(5)
    return rng.normal(0, 0.3, (n, k + 1)).astype(np.float32), 0.25


@pytest.mark.parametrize("with_ids", [False, True])
def test_a_model_in_feature_units_scores_rows_as_the_trained_one_scores_standardized_ones(with_ids):
    X = table_of_all_kinds()
    chosen, rows = standardized(X)
    table, bias = random_model(7)
    ids = np.arange(7, dtype=np.int32) if with_ids else None

    folded, folded_bias = chosen.to_feature_units(table, bias, ids)

    expected = scores(Model.of_table(table, bias), rows)
    raw = CsrBatch.from_matrix(sp.csr_matrix(X))
    exact = scores(Model.of_table(folded, folded_bias), raw)
    np.testing.assert_allclose(exact, expected, atol=1e-5)
    np.testing.assert_allclose(margins(raw, folded, folded_bias), expected, atol=2e-3)


@pytest.mark.parametrize("with_ids", [False, True])
def test_a_model_in_feature_units_comes_back_as_it_was(with_ids):
    chosen, _ = standardized(table_of_all_kinds()[:, :4])
    table, bias = random_model(4)
    ids = np.arange(4, dtype=np.int32) if with_ids else None

    folded = chosen.to_feature_units(table, bias, ids)
    back, back_bias = chosen.from_feature_units(*folded, ids)

    np.testing.assert_allclose(back, table, atol=1e-4)
    assert back_bias == pytest.approx(bias, abs=1e-4)


def test_a_model_that_lacks_features_is_taken_in_without_them():
    chosen, _ = standardized(table_of_all_kinds()[:, :4])
    table, bias = random_model(2)
    ids = np.array([0, 3], np.int32)

    folded = chosen.to_feature_units(table, bias, ids)
    back, back_bias = chosen.from_feature_units(*folded, ids)

    np.testing.assert_allclose(back, table, atol=1e-4)
    assert back_bias == pytest.approx(bias, abs=1e-4)


def test_prepared_rows_are_numbered_as_the_table_and_unknown_features_marked():
    chosen, rows = standardized(table_of_all_kinds())
    ids = np.array([0, 2, 3, 4, 5, 6], np.int32)

    prepared = Preparation(ids, chosen).apply(CsrBatch.from_matrix(table_of_all_kinds()))

    number = {int(j): row for row, j in enumerate(ids)}
    assert prepared.indices.tolist() == [number.get(j, -1) for j in rows.indices.tolist()]
    np.testing.assert_array_equal(prepared.values, rows.values)


VALUES = st.floats(-1e6, 1e6, width=32).filter(lambda x: x != 0)
ROWS = st.lists(st.tuples(st.integers(0, 30), VALUES), min_size=1, max_size=40)


@given(st.lists(ROWS, min_size=1, max_size=20))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_moments_of_parts_are_those_of_all_values_on_both_sides_of_the_dense_limit(parts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "DENSE_IDS", 15)
        counters = [FeatureCounter(), FeatureCounter()]
        for number, part in enumerate(parts):
            indices, values = (np.array(column) for column in zip(*part, strict=True))
            batch = CsrBatch.from_arrays(
                np.arange(len(part) + 1), indices.astype(np.int32), values.astype(np.float32)
            )
            counters[number % 2].add(batch, validation=number % 3 == 0)
        tables = [counter.moments().to_table().tobytes() for counter in counters]

    seen = FeatureMoments.merge([FeatureMoments.from_table(table) for table in tables])

    by_id: dict[int, list[float]] = {}
    for j, x in (pair for part in parts for pair in part):
        if x != 1:  # ones are counted, not summed
            by_id.setdefault(j, []).append(x)
    assert seen.ids.tolist() == sorted(by_id)
    for j, n, mean, square in zip(seen.ids, seen.count, seen.mean, seen.square, strict=True):
        x = np.array(by_id[int(j)])
        assert n == len(x)
        assert mean == pytest.approx(x.mean(), rel=1e-9, abs=1e-9 * np.abs(x).max())
        spread = np.abs(x - x.mean()).max()
        allowed = 1e-9 * (len(x) * spread**2 + (x**2).sum() * 1e-5)
        assert square == pytest.approx(((x - x.mean()) ** 2).sum(), rel=1e-9, abs=allowed)
