"""A model measured on a DataFrame, against plain formulas over the collected scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.datasets import a9a, ml100k_regression, to_frame
from spark_fm import FactorizationMachineModel, FMEvaluation
from spark_fm.errors import InvalidColumnError, InvalidDataError
from tests import oracle
from tests.ml.builders import fast_fm


@pytest.fixture(scope="module")
def measured(classifier: FactorizationMachineModel, train: DataFrame) -> FMEvaluation:
    return classifier.evaluate(train)


def scores_of(model: FactorizationMachineModel, frame: DataFrame, *more: str) -> list[np.ndarray]:
    rows = model.transform(frame).select("score", "label", *more).collect()
    return [np.array(column, np.float64) for column in zip(*rows, strict=True)]


def log_odds(score: np.ndarray) -> np.ndarray:
    return np.log(score) - np.log1p(-score)


def test_a_classifier_s_metrics_equal_the_plain_formulas(
    classifier: FactorizationMachineModel, train: DataFrame, measured: FMEvaluation
) -> None:
    score, label = scores_of(classifier, train)

    expected = oracle.metrics("logistic", log_odds(score), label, np.ones(300))

    exact = ("logloss", "accuracy", "f1")
    # 1 - score loses digits near 1: a relative 1e-9 of the log loss
    assert {n: measured.metrics[n] for n in exact} == pytest.approx(
        {n: expected[n] for n in exact}, rel=1e-9
    )
    for name in ("roc_auc", "pr_auc"):
        # two of 300 scores may agree to 1e-4: half a pair of about 20,000, or of 150 positives
        assert measured.metrics[name] == pytest.approx(expected[name], abs=1e-3)
    assert measured.metrics["rows"] == 300


def test_a_regressor_s_metrics_equal_the_plain_formulas(
    regressor: FactorizationMachineModel, ratings: DataFrame
) -> None:
    found = regressor.evaluate(ratings)

    score, label = scores_of(regressor, ratings)
    expected = oracle.metrics("squared", score, label, np.ones(200))
    assert found.metrics == pytest.approx({"rows": 200, **expected}, rel=1e-9)  # float64 sums


def test_confusion_counts_labels_against_predicted_labels(
    classifier: FactorizationMachineModel, train: DataFrame
) -> None:
    model = classifier.copy({classifier.threshold: 0.7})

    found = model.evaluate(train).confusion

    _, label, predicted = scores_of(model, train, "predicted_label")
    for row, wanted in (("label 0", 0), ("label 1", 1)):
        for column, said in (("predicted 0", 0), ("predicted 1", 1)):
            assert found.loc[row, column] == np.sum((label == wanted) & (predicted == said))


def test_curves_run_from_the_highest_score_to_all_rows(
    classifier: FactorizationMachineModel, train: DataFrame, measured: FMEvaluation
) -> None:
    score, label = scores_of(classifier, train)
    roc, pr = measured.roc, measured.pr

    assert list(roc.columns) == ["FPR", "TPR", "threshold"]
    assert list(pr.columns) == ["recall", "precision", "threshold"]
    assert roc.iloc[0].tolist() == [0.0, 0.0, np.inf]
    assert roc.iloc[-1].tolist() == pytest.approx([1.0, 1.0, score.min()])
    for row in roc.iloc[1::20].itertuples():
        said = score >= row.threshold
        assert pytest.approx(said[label == 1].mean()) == row.TPR
        assert pytest.approx(said[label == 0].mean()) == row.FPR
    for row in pr.iloc[::20].itertuples():
        said = score >= row.threshold
        assert row.precision == pytest.approx(label[said].mean())


def test_calibration_has_even_groups_with_their_mean_scores(
    classifier: FactorizationMachineModel, train: DataFrame, measured: FMEvaluation
) -> None:
    score, label = scores_of(classifier, train)
    found = measured.calibration

    assert len(found) == 20
    order = np.argsort(score)
    for row, chosen in zip(found.itertuples(), np.array_split(order, 20), strict=True):
        # A tie of two scores may put a row of 15 into the next group.
        assert row.weight == pytest.approx(15, abs=1)
        assert row.score == pytest.approx(score[chosen].mean(), abs=0.02)
    assert (found["rate"] * found["weight"]).sum() == pytest.approx(label.sum())


def test_a_row_of_weight_three_counts_like_three_rows(train: DataFrame, ratings: DataFrame) -> None:
    for frame, kind in ((train, "binary_classifier"), (ratings, "regressor")):
        model = fast_fm(predictorType=kind, epochs=1, weightCol="w").fit(
            frame.withColumn("w", F.lit(1.0))
        )
        heavy = F.when(F.hash("label", "features") % 3 == 0, 3).otherwise(1)
        once = model.evaluate(frame.withColumn("w", heavy))
        copies = frame.withColumn("copy", F.explode(F.sequence(F.lit(1), heavy)))
        thrice = model.evaluate(copies.withColumn("w", F.lit(1.0)))

        assert once.metrics["rows"] < thrice.metrics["rows"]
        assert without_rows(once) == pytest.approx(without_rows(thrice), rel=1e-9)  # float64 sums
        if kind == "regressor":
            np.testing.assert_allclose(once.residuals, thrice.residuals, rtol=1e-9, atol=1e-12)
        else:
            np.testing.assert_allclose(once.confusion, thrice.confusion)
            np.testing.assert_allclose(once.roc, thrice.roc, rtol=1e-9)


def without_rows(found: FMEvaluation) -> dict[str, Any]:
    return {name: value for name, value in found.metrics.items() if name != "rows"}


def test_residuals_are_a_histogram_of_score_minus_label(
    regressor: FactorizationMachineModel, ratings: DataFrame
) -> None:
    found = regressor.evaluate(ratings).residuals

    score, label = scores_of(regressor, ratings)
    edges = np.append(found["low"], found["high"].iloc[-1])
    counts, _ = np.histogram(np.clip(score - label, edges[0], edges[-1]), edges)
    assert len(found) == 40
    assert found["weight"].sum() == 200
    # Rows are put by the mean of groups 1 % wide: one near an edge may be on its other side.
    assert np.abs(np.cumsum(counts) - found["weight"].cumsum()).max() <= 5
    assert np.ptp(score - label) == pytest.approx(edges[-1] - edges[0], rel=0.02)


def test_a_regressor_without_error_has_a_histogram(ratings: DataFrame) -> None:
    model = fast_fm(predictorType="regressor", epochs=1, factorsLr=0.0, linearLr=0.0,
                    factorsInitSigma=0.0).fit(ratings.withColumn("label", F.lit(2.0)))  # fmt: skip

    found = model.evaluate(ratings.withColumn("label", F.lit(2.0)))

    assert found.metrics["rmse"] == 0.0
    assert found.residuals["weight"].sum() == 200


def test_labels_of_minus_one_are_zeros(
    classifier: FactorizationMachineModel, train: DataFrame, measured: FMEvaluation
) -> None:
    signed = train.withColumn("label", 2 * F.col("label") - 1)

    assert classifier.evaluate(signed).metrics == pytest.approx(measured.metrics, rel=1e-12)


def test_bad_labels_and_columns_are_named(
    classifier: FactorizationMachineModel, regressor: FactorizationMachineModel, train: DataFrame
) -> None:
    with pytest.raises(InvalidDataError, match=r"labelCol='label' has 300 row.*for example 2\.0"):
        classifier.evaluate(train.withColumn("label", F.lit(2.0)))
    with pytest.raises(InvalidDataError, match="null or NaN"):
        regressor.evaluate(train.withColumn("label", F.lit(None).cast("double")))
    with pytest.raises(InvalidColumnError, match="labelCol='label' is not a column"):
        classifier.evaluate(train.drop("label"))
    with pytest.raises(InvalidDataError, match="no rows"):
        classifier.evaluate(train.limit(0))


def test_rows_that_cannot_be_scored_are_left_out(
    classifier: FactorizationMachineModel, train: DataFrame, measured: FMEvaluation
) -> None:
    null = F.when(F.col("label").isNotNull(), None).otherwise(F.col("features"))
    more = train.unionByName(train.withColumn("features", null))

    for how in ("skip", "keep"):
        found = classifier.copy({classifier.handleInvalid: how}).evaluate(more)
        assert found.metrics == pytest.approx(measured.metrics, rel=1e-12)


def test_an_evaluation_is_frozen_and_shows_its_metrics(measured: FMEvaluation) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        measured.metrics = {}  # type: ignore[misc]
    assert repr(measured).startswith("FMEvaluation(300 rows, logloss=0.")
    assert all(isinstance(measured.metrics[n], float) for n in ("logloss", "roc_auc"))


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_plots_draw_every_table(
    kind: str, train: DataFrame, ratings: DataFrame, tmp_path: Path, request: Any
) -> None:
    pytest.importorskip("matplotlib")
    model = request.getfixturevalue(kind)
    found = model.evaluate(train if kind == "classifier" else ratings)

    figure = found.plot(str(tmp_path / "plot.png"))

    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    titles = [axes.get_title() for axes in figure.axes]
    if kind == "classifier":
        assert titles == ["ROC", "Precision and recall", "Calibration"]
        np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), found.roc["FPR"])
    else:
        assert titles == ["Predicted against actual", "Residuals"]
        heights = [bar.get_height() for bar in figure.axes[1].patches]
        np.testing.assert_array_equal(heights, found.residuals["weight"])
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert all(axes.get_legend() for axes in figure.axes)


def test_metrics_on_a9a_are_the_exact_ones(spark: SparkSession) -> None:
    split = a9a()
    train, test = (to_frame(spark, rows) for rows in (split.train, split.test))
    model = fast_fm(epochs=1).fit(train)

    found = model.evaluate(test)

    frame = pd.DataFrame({"score": model.predict(split.test.X), "label": split.test.y})
    ranks = frame["score"].rank()
    positive = frame["label"] == 1
    n, m = positive.sum(), (~positive).sum()
    roc_auc = (ranks[positive].sum() - n * (n + 1) / 2) / n / m
    by_score = frame.groupby("score")["label"].agg(["sum", "count"])[::-1].cumsum()
    recall = by_score["sum"] / n
    precision = (by_score["sum"] / by_score["count"] * recall.diff().fillna(recall.iloc[0])).sum()
    assert found.metrics["rows"] == len(frame)
    assert found.metrics["roc_auc"] == pytest.approx(roc_auc, abs=1e-5)
    assert found.metrics["pr_auc"] == pytest.approx(precision, abs=1e-4)
    assert len(found.roc) <= 1001


@pytest.mark.usefixtures("data_folder")
def test_a_regressor_on_ml100k_is_drawn_on_the_diagonal(spark: SparkSession) -> None:
    split = ml100k_regression()
    train, test = (to_frame(spark, rows) for rows in (split.train, split.test))
    model = fast_fm(predictorType="regressor").fit(train)

    found = model.evaluate(test)

    error = model.predict(split.test.X) - split.test.y
    assert found.metrics["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-5)  # float32
    assert len(found.calibration) == 20
    # 470 ratings of spread 1 a group: five standard errors
    assert np.abs(found.calibration["score"] - found.calibration["label"]).max() < 0.25
