"""The histogram of margins: exact where bins are apart, and close enough on real scores."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import datasets
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.metrics import BINS, HALF, MarginHistogram, metric_sums
from spark_fm.learner.predict import margins
from spark_fm.learner.training import TrainingProgress, advance, new_stopping
from tests import oracle
from tests.builders import started_state, train_spec

SEPARATE = st.sampled_from([-1e9, -40.0, -7.5, -0.5, -1e-30, 0.0, 0.25, 3.0, 50.0])
ROW = st.tuples(SEPARATE, st.booleans(), st.sampled_from([0.5, 1.0, 3.0]))


def histogram(rows: list[tuple[float, bool, float]]) -> MarginHistogram:
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    kinds = (np.float64, np.bool_, np.float64)
    return MarginHistogram.of(*(np.array(c, t) for c, t in zip(columns, kinds, strict=True)))


def same(one: MarginHistogram, other: MarginHistogram) -> bool:
    return one.to_text() == other.to_text()


@given(st.lists(ROW, min_size=1, max_size=12))
def test_areas_of_margins_in_different_bins_are_exact(rows):
    scores, labels, weights = (np.array(c, np.float64) for c in zip(*rows, strict=True))

    roc_auc, precision = histogram(rows).areas()

    # float64 sums in another order
    assert roc_auc == pytest.approx(oracle.roc_auc(scores, labels, weights), rel=1e-12, nan_ok=True)
    assert precision == pytest.approx(
        oracle.average_precision(scores, labels, weights), rel=1e-12, nan_ok=True
    )


@given(st.lists(ROW, max_size=12), st.integers(0, 12))
def test_histograms_of_two_row_sets_add_up_to_that_of_all(rows, cut):
    # Weights are multiples of 1/2: their sums are exact in any order.
    assert same(histogram(rows[:cut]) + histogram(rows[cut:]), histogram(rows))


@given(st.lists(st.tuples(SEPARATE, st.booleans()), max_size=12))
def test_a_row_of_weight_three_is_three_rows(rows):
    heavy = histogram([(margin, label, 3.0) for margin, label in rows])

    assert same(heavy, histogram([(margin, label, 1.0) for margin, label in 3 * rows]))


@given(st.floats(width=32, allow_nan=False), st.floats(width=32, allow_nan=False))
def test_bins_keep_the_order_and_the_sign_of_margins(one, other):
    low, high = sorted([one, other])

    bins = [int(histogram([(m, True, 1.0)]).bins[0]) for m in (low, high)]

    assert -BINS <= bins[0] <= bins[1] <= BINS
    assert [b >= 0 for b in bins] == [low >= 0, high >= 0]


def test_confusion_is_cut_at_margin_zero():
    rows = [(0.0, True, 2.0), (-1e-30, True, 1.0), (0.5, False, 4.0), (-3.0, False, 8.0)]

    assert histogram(rows).confusion() == (2.0, 4.0, 1.0, 8.0)


def test_margins_in_one_bin_count_half():
    near = 0.1 * HALF / BINS
    rows = [(near, True, 1.0), (2 * near, False, 1.0)]  # the wrong way round, by too little

    assert histogram(rows).areas() == (0.5, 0.5)


def test_nan_margins_and_weightless_rows_are_in_no_bin():
    rows = [(math.nan, True, 1.0), (1.0, False, 0.0), (2.0, True, 1.0)]

    found = histogram(rows)

    assert (found.positive.tolist(), found.negative.tolist()) == ([1.0], [0.0])


def test_text_brings_back_the_same_histogram():
    rng = np.random.default_rng(3)
    margins_, weights = rng.normal(0, 4, 500), rng.uniform(0.1, 3, 500)
    found = MarginHistogram.of(margins_, rng.random(500) < 0.3, weights)

    text = json.loads(json.dumps(found.to_text()))

    came = MarginHistogram.from_text(text)
    for name in ("bins", "positive", "negative"):
        np.testing.assert_array_equal(getattr(came, name), getattr(found, name))
    assert MarginHistogram.empty().to_text() == ""
    assert len(MarginHistogram.from_text("").bins) == 0


def test_groups_hold_probabilities_between_their_neighbours():
    found = histogram([(m, m > 0, 1.0) for m in (-1e9, -2.0, 0.0, 0.3, 8.0)])

    groups = found.groups()

    probability = 1 / (1 + np.exp(-np.array([8.0, 0.3, 0.0, -2.0, -1e3])))
    assert groups.score == pytest.approx(probability, abs=1e-3)  # a bin is 0.001 wide at 0
    assert (groups.threshold <= groups.score).all()
    assert (np.diff(groups.score) < 0).all()


# -- real scores ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a9a", "frappe"])
def test_areas_on_real_scores_are_within_a_ten_thousandth(
    name: str, request: pytest.FixtureRequest
) -> None:
    if name != "a9a":
        request.getfixturevalue("data_folder")
    split = getattr(datasets, name)()
    train, test = (batch_of(rows) for rows in (split.train, split.test))
    spec = train_spec(epochs=3, seed=1)
    run = TrainingProgress(
        started_state(spec, train, split.train.X.shape[1]),
        new_stopping(spec, "roc_auc", patience=0, tol=0.0),
    )
    for _ in advance(run, train, test, spec, metric="roc_auc"):
        pass
    model = run.result()
    scores = margins(test, model.table, model.bias)

    found = metric_sums("logistic", scores, test.labels, test.weights).values("logistic")

    roc_auc, precision = sorted_areas(scores, test.labels)
    assert 0.85 < roc_auc < 0.99
    assert found["roc_auc"] == pytest.approx(roc_auc, abs=1e-5)
    assert found["pr_auc"] == pytest.approx(precision, abs=1e-4)
    seen = run.history[run.stopping.best_epoch].validation
    assert seen is not None
    assert seen.values("logistic") == found


def batch_of(rows: datasets.Rows) -> CsrBatch:
    batch = CsrBatch.from_matrix(rows.X)
    ones = np.ones(len(rows.y), np.float32)
    return CsrBatch(batch.indptr, batch.indices, batch.values, rows.y.astype(np.float32), ones)


def sorted_areas(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the exact areas by ranks, every distinct score by itself."""
    distinct = np.unique(scores)[::-1]
    hits = np.array([0, *(np.cumsum([np.sum(labels[scores == s]) for s in distinct]))])
    seen = np.array([0, *np.cumsum([np.sum(scores == s) for s in distinct])])
    misses = seen - hits
    roc_auc = np.sum(np.diff(misses) * (hits[1:] + hits[:-1]) / 2) / hits[-1] / misses[-1]
    precision = np.sum(np.diff(hits) / hits[-1] * hits[1:] / seen[1:])
    return float(roc_auc), float(precision)
