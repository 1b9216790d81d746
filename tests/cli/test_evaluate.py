"""Areas under curves and the printed table; no Spark."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_fm.cli.evaluate import table
from spark_fm.learner.metrics import areas

counts = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8)


@given(counts, st.randoms())
def test_roc_auc_is_the_chance_that_a_positive_scores_higher(groups, random):
    scores = np.arange(len(groups), dtype=float)
    positive = np.array([p for p, _ in groups], float)
    negative = np.array([n for _, n in groups], float)
    order = list(range(len(groups)))
    random.shuffle(order)
    found, _ = areas(scores[order], positive[order], negative[order])
    if not positive.sum() or not negative.sum():
        assert math.isnan(found)
        return
    wins = sum(
        p * n * (1.0 if i > j else 0.5 if i == j else 0.0)
        for i, p in enumerate(positive)
        for j, n in enumerate(negative)
    )
    assert found == pytest.approx(wins / positive.sum() / negative.sum())


def test_average_precision_is_precision_at_each_step_of_recall():
    # Ranked 1 0 1 0: precision 1 at recall 1/2, then 2/3 at recall 1.
    ones = np.array([1.0, 0.0, 1.0, 0.0])
    _, found = areas(np.array([4.0, 3.0, 2.0, 1.0]), ones, 1 - ones)
    assert found == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_the_table_holds_the_confusion_matrix():
    confusion = {"tp": 1.0, "fp": 2.0, "fn": 3.0, "tn": 4000.0}
    text = table({"rows": 4006, "logloss": 0.25, "confusion": confusion}, 0.5)
    assert "log loss       0.250000" in text
    assert text.splitlines()[-2].split() == ["label", "0", "4,000", "2"]
    assert text.splitlines()[-1].split() == ["label", "1", "3", "1"]
