"""Metrics of every epoch: early stopping on each, weights, and one or many tasks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.datasets import a9a, to_frame
from spark_fm.learner.spec import LossName
from tests import oracle
from tests.ml.builders import fast_fm


@pytest.fixture(scope="module")
def adult(spark: SparkSession) -> Iterator[DataFrame]:
    """The rows of a9a, a fifth of them held out."""
    frame = to_frame(spark, a9a().train).withColumn("held", F.hash("features", "label") % 5 == 0)
    yield frame.cache()
    frame.unpersist()


@pytest.mark.parametrize("metric", ["roc_auc", "pr_auc", "f1", "accuracy", "logloss"])
def test_training_on_a9a_stops_on_the_metric_asked_for(adult: DataFrame, metric: str) -> None:
    fm = fast_fm(
        epochs=40, patience=2, validationMetric=metric, validationIndicatorCol="held",
        factorsLr=0.5, linearLr=0.5,
    )  # fmt: skip

    summary = fm.fit(adult).summary

    values = summary.history[f"validation_{metric}"]
    assert len(values) < 40
    assert summary.bestEpoch == (values.idxmin() if metric == "logloss" else values.idxmax())
    assert summary.facts["validationMetric"] == metric
    for name in ("logloss", "accuracy", "f1", "roc_auc", "pr_auc"):
        assert summary.history[f"validation_{name}"].between(0, 1).all()
    assert summary.history["validation_roc_auc"].max() > 0.88


@pytest.mark.parametrize("metric", ["rmse", "mae", "r2"])
def test_a_regressor_stops_on_the_metric_asked_for(ratings: DataFrame, metric: str) -> None:
    fm = fast_fm(
        predictorType="regressor", epochs=40, patience=1, tol=0.0, validationMetric=metric,
        validationFraction=0.3, refit="never", biasLr=0.5, linearLr=0.5, factorsLr=0.5,
    )  # fmt: skip

    summary = fm.fit(ratings.withColumn("label", F.col("label") + 3 * F.rand(seed=5))).summary

    values = summary.history[f"validation_{metric}"]
    assert summary.bestEpoch == (values.idxmax() if metric == "r2" else values.idxmin())
    assert len(values) == summary.bestEpoch + 2 < 40


def test_the_best_epoch_s_metrics_are_those_of_the_model(adult: DataFrame) -> None:
    """The areas of the histogram against those of Spark's own aggregates on the held-out rows."""
    rates = dict.fromkeys(("biasLr", "linearLr", "factorsLr"), 0.2)
    # With linear weights these alone may be kept, whose metrics are no epoch's.
    model = fast_fm(
        epochs=2, validationIndicatorCol="held", useLinear=False, factorsInitSigma=0.3, **rates
    ).fit(adult)

    found = model.evaluate(adult.where("held")).metrics

    best = model.summary.history.loc[model.summary.bestEpoch]
    assert best["validation_logloss"] == pytest.approx(found["logloss"], rel=1e-5)  # float32
    assert best["validation_f1"] == pytest.approx(found["f1"], rel=1e-9)
    assert best["validation_roc_auc"] == pytest.approx(found["roc_auc"], abs=1e-5)
    assert best["validation_pr_auc"] == pytest.approx(found["pr_auc"], abs=1e-4)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_metrics_of_all_tasks_are_those_of_the_scores(
    workers: int, loss: LossName, train: DataFrame, ratings: DataFrame
) -> None:
    kind = {"logistic": "binary_classifier", "squared": "regressor"}[loss]
    rows = (train if loss == "logistic" else ratings).withColumn(
        "held", F.hash("features", "label") % 3 == 0
    )
    rows = rows.withColumn("w", F.when(F.col("label") > 0.5, 3.0).otherwise(0.5))
    model = fast_fm(
        predictorType=kind, numWorkers=workers, epochs=1, validationIndicatorCol="held",
        weightCol="w", useLinear=False, factorsInitSigma=0.5,  # as above
    ).fit(rows)  # fmt: skip

    history = model.summary.history.loc[0]

    scored = model.transform(rows.where("held")).select("score", "label", "w").collect()
    score, label, weight = (np.array(c, np.float64) for c in zip(*scored, strict=True))
    raw = np.log(score / (1 - score)) if loss == "logistic" else score
    for name, value in oracle.metrics(loss, raw, label, weight).items():
        # float32 scores; two of 100 held-out rows may share a bin, in the areas
        tolerance = {"abs": 2e-3} if name.endswith("auc") else {"rel": 1e-4}
        assert history[f"validation_{name}"] == pytest.approx(value, **tolerance)


def test_a_metric_that_is_never_defined_is_reported(train: DataFrame) -> None:
    one_class = train.withColumn("held", (F.col("label") == 1) & (F.hash("features") % 2 == 0))

    summary = fast_fm(
        epochs=3, validationMetric="roc_auc", validationIndicatorCol="held"
    ).fit(one_class).summary  # fmt: skip

    assert summary.history["validation_roc_auc"].isna().all()
    assert summary.bestEpoch == 2
    assert any("validationMetric='roc_auc' was undefined" in text for text in summary.warnings)
