"""A fit tells how it compares with a constant, and what to do when it does not pay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from spark_fm import FactorizationMachineModel
from spark_fm.training import rounds
from tests.ml.builders import fast_fm

NOISE = {"factorsInitSigma": 1.0, "factorsLr": 0.0, "factorsWd": 0.0}
RATES = dict.fromkeys(("biasLr", "linearLr", "factorsLr"), 0.1)


def rows(spark: SparkSession, *, learnable: bool, n_ids: int = 10) -> tuple[DataFrame, Any]:
    """Return 600 weighted rows with a numeric column besides, the last 200 held out; and twins."""
    rng = np.random.default_rng(3)
    ids = rng.integers(0, n_ids, 600)
    label = (ids % 2 if learnable else rng.integers(0, 2, 600)).astype(float)
    weight = rng.uniform(0.5, 2.0, 600)
    held = np.arange(600) >= 400
    table = [
        (Vectors.sparse(n_ids, [int(i)], [1.0]), float(y), float(5 + 3 * y), float(w), bool(h))
        for i, y, w, h in zip(ids, label, weight, held, strict=True)
    ]
    columns = ["features", "label", "amount", "weight", "held"]
    return spark.createDataFrame(table, columns).coalesce(1), (label, weight, held)


def fit(frame: DataFrame, **params: Any) -> FactorizationMachineModel:
    columns = {"validationIndicatorCol": "held", "weightCol": "weight", "patience": 0}
    return fast_fm(**{**columns, **RATES, "epochs": 4, **params}).fit(frame)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_the_baseline_is_the_held_out_loss_of_the_training_rows_mean(
    spark: SparkSession, loss: str
) -> None:
    frame, (y, w, held) = rows(spark, learnable=True)
    if loss == "squared":
        y = 5 + 3 * y
    mean = np.average(y[~held], weights=w[~held])
    of_row = (y - mean) ** 2 if loss == "squared" else -np.log(np.where(y == 1, mean, 1 - mean))
    params = {"labelCol": "amount", "predictorType": "regressor"} if loss == "squared" else {}

    summary = fit(frame, **params).summary

    assert summary.baseline == pytest.approx(np.average(of_row[held], weights=w[held]), rel=1e-6)
    assert f"(constant: {summary.baseline:.6g}, linear part: " in repr(summary)
    assert summary.history["validationLoss"].iloc[-1] < summary.baseline


def test_there_is_no_baseline_without_held_out_rows(spark: SparkSession) -> None:
    frame, _ = rows(spark, learnable=True)

    summary = fast_fm(**RATES).fit(frame).summary

    assert summary.baseline is None
    assert "constant" not in repr(summary)


@pytest.mark.parametrize(
    ("n_ids", "reason"), [(300, "400 rows are few for 2"), (10, "do not depend on the features")]
)
def test_a_model_no_better_than_a_constant_is_told_with_likely_reasons(
    spark: SparkSession, caplog: pytest.LogCaptureFixture, n_ids: int, reason: str
) -> None:
    frame, _ = rows(spark, learnable=False, n_ids=n_ids)

    summary = fit(frame, linearLr=1.0).summary

    [told] = [text for text in summary.warnings if "better than a constant" in text]
    assert reason in told
    assert f"{summary.baseline:.6g}" in told
    assert told in caplog.messages


def test_a_first_epoch_that_was_the_best_is_told_with_what_to_do(spark: SparkSession) -> None:
    rng = np.random.default_rng(3)  # half the labels follow from a flag, ids tell of the others
    table = []
    for row in range(600):
        flag, label = int(rng.integers(0, 2)), 0.0
        label = float(flag if rng.random() < 0.8 else 1 - flag)
        ids = Vectors.sparse(302, [flag, 2 + int(rng.integers(0, 300))], [1.0, 1.0])
        table.append((ids, label, row >= 400))
    frame = spark.createDataFrame(table, ["features", "label", "held"]).coalesce(1)

    summary = fit(frame, weightCol=None, linearLr=0.4, linearWd=0.0, epochs=8).summary

    assert summary.bestEpoch == 0
    [told] = [text for text in summary.warnings if "was the best" in text]
    assert "raise factorsWd" in told
    assert "linearLr=0.4" in told


def test_a_model_that_learns_is_not_warned_of(spark: SparkSession) -> None:
    frame, _ = rows(spark, learnable=True)

    assert fit(frame).summary.warnings == []


def without_interactions(spark: SparkSession) -> DataFrame:
    """Return 600 rows, the last 200 held out, whose factors have nothing to learn."""
    rng = np.random.default_rng(3)  # the label follows from one of three fields, none interact
    ids = rng.integers(0, 10, (600, 3)) + np.array([0, 10, 20])
    table = [
        (Vectors.sparse(30, sorted(row.tolist()), [1.0] * 3), float(row[0] % 2), number >= 400)
        for number, row in enumerate(ids)
    ]
    return spark.createDataFrame(table, ["features", "label", "held"]).coalesce(1)


@pytest.mark.parametrize("workers", [1, 2])
def test_factors_that_do_not_pay_are_left_out_and_the_user_is_told(
    spark: SparkSession, workers: int
) -> None:
    frame = without_interactions(spark)

    model = fit(frame, weightCol=None, numWorkers=workers, **NOISE)

    summary = model.summary
    whole = summary.history["validationLoss"].min()
    assert summary.linearLoss < whole
    assert not model.factors.any()
    assert model.linear.any()
    assert f"linear part: {summary.linearLoss:.6g}, kept" in repr(summary)
    [told] = [text for text in summary.warnings if "factors do not pay" in text]
    assert f"{summary.linearLoss:.6g}" in told
    held = model.evaluate(frame.where("held")).metrics["logloss"]
    assert held == pytest.approx(summary.linearLoss, rel=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_factors_that_pay_are_kept_and_the_linear_part_s_loss_is_shown(
    spark: SparkSession, workers: int
) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 4, (2, 600))
    table = [
        (Vectors.sparse(8, [int(i), 4 + int(j)], [1.0, 1.0]), float((i + j) % 2), n >= 400)
        for n, (i, j) in enumerate(zip(a, b, strict=True))
    ]
    frame = spark.createDataFrame(table, ["features", "label", "held"]).coalesce(1)

    model = fit(
        frame, weightCol=None, epochs=20, factorsInitSigma=0.3, factorsWd=0.0, numWorkers=workers
    )

    assert model.factors.any()
    assert model.summary.linearLoss > model.summary.history["validationLoss"].min()
    assert "kept" not in repr(model.summary)
    assert fit(frame, weightCol=None, useLinear=False).summary.linearLoss is None


def test_a_fit_resumed_before_the_comparison_makes_it(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = without_interactions(spark)
    params = {"weightCol": None, "numWorkers": 2, **NOISE}
    whole = fit(frame, **params)
    validated = rounds.AveragingTrainer._validated

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds.AveragingTrainer, "_validated", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(frame, checkpointDir=str(tmp_path), **params)
    assert list(tmp_path.iterdir())
    monkeypatch.setattr(rounds.AveragingTrainer, "_validated", validated)
    resumed = fit(frame, checkpointDir=str(tmp_path), **params)

    assert resumed.summary.linearLoss == whole.summary.linearLoss
    np.testing.assert_array_equal(resumed.weights.table, whole.weights.table)
