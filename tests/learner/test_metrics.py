"""Metrics from sums against plain formulas, and sums that add up."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import numpy as np
import pytest

from spark_fm.learner.metrics import MetricSums, loss_sum, merit, metric_sums, validation_metrics
from spark_fm.learner.spec import LossName
from tests import oracle


def rows(loss: LossName, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 60) if loss == "logistic" else rng.normal(3, 2, 60)
    scores = labels + rng.normal(0, 1, 60) - 0.4
    weights = rng.choice([0.0, 0.5, 2.0], 60)
    return tuple(a.astype(np.float32) for a in (scores, labels, weights))  # type: ignore[return-value]


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_metrics_equal_the_plain_formulas(loss: LossName) -> None:
    scores, labels, weights = rows(loss, seed=1)

    values = metric_sums(loss, scores, labels, weights).values(loss)

    expected = oracle.metrics(loss, *(a.astype(np.float64) for a in (scores, labels, weights)))
    # float64 sums in another order; no two of these scores share a bin of the histogram
    assert values == pytest.approx(expected, rel=1e-10)
    assert values.keys() == validation_metrics(loss).keys()


@pytest.mark.parametrize("loss", ["logistic", "squared"])
@pytest.mark.parametrize("cut", [0, 1, 25, 60])
def test_sums_of_two_row_sets_add_up_to_those_of_all(loss: LossName, cut: int) -> None:
    scores, labels, weights = rows(loss, seed=2)

    added = metric_sums(loss, scores[:cut], labels[:cut], weights[:cut]) + metric_sums(
        loss, scores[cut:], labels[cut:], weights[cut:]
    )

    assert_same_sums(added, metric_sums(loss, scores, labels, weights))


def assert_same_sums(one: MetricSums, other: MetricSums) -> None:
    """Compare sums whose float64 terms were added in another order."""
    for field in fields(MetricSums):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if field.name == "histogram":
            assert left.bins.tolist() == right.bins.tolist()
            assert left.positive == pytest.approx(right.positive, rel=1e-12)
            assert left.negative == pytest.approx(right.negative, rel=1e-12)
        else:
            assert left == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_a_row_of_weight_three_counts_like_three_rows(loss: LossName) -> None:
    scores, labels, _ = rows(loss, seed=3)

    once = metric_sums(loss, scores, labels, np.full(60, 3, np.float32))

    thrice = metric_sums(loss, np.tile(scores, 3), np.tile(labels, 3), np.ones(180, np.float32))
    assert_same_sums(once, thrice)
    assert once.values(loss) == pytest.approx(thrice.values(loss), rel=1e-12)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_sums_travel_as_json_bit_for_bit(loss: LossName) -> None:
    sums = metric_sums(loss, *rows(loss, seed=5))

    came = MetricSums.from_dict(json.loads(json.dumps(sums.to_dict())))

    assert came.to_dict() == sums.to_dict()
    assert came.values(loss) == sums.values(loss)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_a_score_that_is_nan_makes_every_metric_nan(loss: LossName) -> None:
    scores, labels, weights = rows(loss, seed=6)
    weights[7], scores[7] = 1.0, np.nan

    values = metric_sums(loss, scores, labels, weights).values(loss)

    assert values.keys() == validation_metrics(loss).keys()
    assert all(math.isnan(value) for value in values.values())


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_areas_of_a_single_class_are_undefined(label: float) -> None:
    scores = np.array([-1, 2, 3], np.float32)

    values = metric_sums("logistic", scores, np.full(3, label, np.float32), np.ones(3, np.float32))

    found = values.values("logistic")
    assert math.isnan(found["roc_auc"])
    assert math.isnan(found["pr_auc"])
    assert found["accuracy"] == pytest.approx(2 / 3 if label else 1 / 3)


def test_the_loss_alone_is_that_of_the_sums() -> None:
    for loss in ("logistic", "squared"):
        drawn = rows(loss, seed=8)
        assert loss_sum(loss, *drawn) == metric_sums(loss, *drawn).loss


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_no_rows_give_nan_for_every_metric(loss: LossName) -> None:
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


@pytest.mark.parametrize(
    ("loss", "name", "sign"), [("squared", "rmse", -1), ("squared", "r2", 1), ("logistic", "f1", 1)]
)
def test_the_merit_of_a_metric_is_larger_where_it_is_better(
    loss: LossName, name: str, sign: int
) -> None:
    sums = metric_sums(loss, *rows(loss, seed=1))

    assert merit(sums, loss, name) == sign * sums.values(loss)[name]


def test_the_merit_of_what_is_undefined_is_the_lowest() -> None:
    assert merit(None, "squared", "rmse") == merit(MetricSums(), "squared", "rmse") == -math.inf


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
