"""Metrics from sums against plain formulas, and sums that add up."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest

from spark_fm.learner.metrics import METRICS, MetricSums, metric_sums
from spark_fm.learner.spec import Loss
from tests import oracle


def rows(loss: Loss, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 60) if loss == "logistic" else rng.normal(3, 2, 60)
    scores = labels + rng.normal(0, 1, 60) - 0.4
    weights = rng.choice([0.0, 0.5, 2.0], 60)
    return tuple(a.astype(np.float32) for a in (scores, labels, weights))  # type: ignore[return-value]


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_metrics_equal_the_plain_formulas(loss: Loss) -> None:
    scores, labels, weights = rows(loss, seed=1)

    values = metric_sums(loss, scores, labels, weights).values(loss)

    expected = oracle.metrics(loss, *(a.astype(np.float64) for a in (scores, labels, weights)))
    assert values == pytest.approx(expected, rel=1e-10)  # float64 sums in another order
    assert values.keys() == METRICS[loss].keys()


@pytest.mark.parametrize("loss", ["logistic", "squared"])
@pytest.mark.parametrize("cut", [0, 1, 25, 60])
def test_sums_of_two_row_sets_add_up_to_those_of_all(loss: Loss, cut: int) -> None:
    scores, labels, weights = rows(loss, seed=2)

    added = metric_sums(loss, scores[:cut], labels[:cut], weights[:cut]) + metric_sums(
        loss, scores[cut:], labels[cut:], weights[cut:]
    )

    whole = metric_sums(loss, scores, labels, weights)
    for field in fields(MetricSums):
        # float64 sums in another order
        assert getattr(added, field.name) == pytest.approx(getattr(whole, field.name), rel=1e-12)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_a_row_of_weight_two_counts_like_two_rows(loss: Loss) -> None:
    scores, labels, _ = rows(loss, seed=3)

    once = metric_sums(loss, scores, labels, np.full(60, 2, np.float32))

    twice = metric_sums(loss, np.tile(scores, 2), np.tile(labels, 2), np.ones(120, np.float32))
    assert once.to_dict() == pytest.approx(twice.to_dict(), rel=1e-12)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_no_rows_give_nan_for_every_metric(loss: Loss) -> None:
    none = np.empty(0, np.float32)

    sums = metric_sums(loss, none, none, none)

    assert all(math.isnan(value) for value in sums.values(loss).values())
    assert math.isnan(sums.mean_loss())


def test_f1_without_positives_is_undefined() -> None:
    rows_ = np.array([-1, -2], np.float32), np.zeros(2, np.float32), np.ones(2, np.float32)

    values = metric_sums("logistic", *rows_).values("logistic")

    assert math.isnan(values["f1"])
    assert values["accuracy"] == 1.0


def test_r2_of_constant_labels_is_undefined() -> None:
    scores = np.array([1, 2], np.float32)

    values = metric_sums("squared", scores, np.ones(2, np.float32), np.ones(2, np.float32)).values(
        "squared"
    )

    assert math.isnan(values["r2"])
    assert values["rmse"] == pytest.approx(math.sqrt(0.5))


def test_a_confident_mistake_costs_its_margin_and_not_infinity() -> None:
    sums = metric_sums(
        "logistic", np.array([500], np.float32), np.zeros(1, np.float32), np.ones(1, np.float32)
    )

    assert sums.mean_loss() == pytest.approx(500.0)


def test_mean_loss_is_the_mean_squared_error() -> None:
    scores, labels, weights = rows("squared", seed=4)

    mean = metric_sums("squared", scores, labels, weights).mean_loss()

    expected = np.average((scores.astype(float) - labels) ** 2, weights=weights)
    assert mean == pytest.approx(expected, rel=1e-12)  # float64
