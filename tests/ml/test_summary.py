"""What the summary tells of a training, and that saving loses none of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.datasets import a9a, to_frame
from spark_fm import FactorizationMachineModel, FMTrainingSummary
from spark_fm.errors import SparkFMError
from tests.ml.builders import fast_fm

CLASS_METRICS = ["logloss", "accuracy", "f1", "roc_auc", "pr_auc"]
VALUE_METRICS = ["rmse", "mae", "r2"]


@pytest.fixture(scope="module")
def by_two(ratings: DataFrame) -> FactorizationMachineModel:
    """A regressor of two workers, with validation."""
    return fast_fm(predictorType="regressor", numWorkers=2, validationFraction=0.3).fit(ratings)


@pytest.mark.parametrize("kind", ["classifier", "by_two"])
def test_history_has_losses_metrics_rates_and_seconds_of_every_epoch(
    kind: str, request: pytest.FixtureRequest
) -> None:
    summary = request.getfixturevalue(kind).summary
    metrics = CLASS_METRICS if kind == "classifier" else VALUE_METRICS

    history = summary.history

    wanted = ["epoch", "trainLoss", "validationLoss", *(f"validation_{name}" for name in metrics)]
    wanted += ["biasLr", "linearLr", "factorsLr", "stepScale"]
    phases = [f"{phase}Seconds" for phase in ("broadcast", "train", "merge", "validate")]
    assert set(history.columns) >= {*wanted, *phases}
    assert history[wanted + phases].notna().all(axis=None)
    assert (history[phases] >= 0).all(axis=None)
    # compiling is part of an epoch's seconds, and of no phase in one task
    assert (history[phases].sum(axis=1) <= history["seconds"] * (1 + 1e-9)).all()
    assert summary.facts["packSeconds"] > 0
    assert len(history) == summary.totalIterations


def test_facts_tell_rows_features_and_how_it_was_cut(by_two: FactorizationMachineModel) -> None:
    facts = by_two.summary.facts

    assert facts["numRows"] == facts["numTrainRows"] + facts["numValidationRows"] == 200
    assert (facts["numFeatures"], facts["skippedRows"]) == (20, 0)
    assert (facts["numWorkers"], facts["averagingsPerEpoch"]) == (2, 2)
    assert facts["validationMetric"] == "rmse"
    assert facts["rejectedAttempts"] == 0


def test_learning_rates_are_those_in_force_after_a_roll_back(ratings: DataFrame) -> None:
    wild = ratings.withColumn("features", F.transform(as_array("features"), lambda x: x * 1e4))

    summary = fast_fm(
        predictorType="regressor", optimizer="sgd", linearLr=0.5, factorsLr=0.25, biasLr=0.125
    ).fit(wild).summary  # fmt: skip

    history = summary.history
    assert summary.facts["rejectedAttempts"] > 0
    assert (history["stepScale"] < 1).all()
    for name, rate in (("linearLr", 0.5), ("factorsLr", 0.25), ("biasLr", 0.125)):
        np.testing.assert_array_equal(history[name], rate * history["stepScale"])
    assert any("rolled back" in text for text in summary.warnings)


def as_array(name: str) -> object:
    from pyspark.ml.functions import vector_to_array

    return vector_to_array(F.col(name))


def test_curves_are_those_of_the_best_epoch(spark: SparkSession) -> None:
    train = to_frame(spark, a9a().train)
    model = fast_fm(epochs=3, validationFraction=0.3, refit="never").fit(train)
    summary = model.summary

    roc, pr, calibration = summary.roc, summary.pr, summary.calibration

    assert 150 < len(roc) <= 201
    best = summary.history.loc[summary.bestEpoch]
    steps = (roc["FPR"].diff() * (roc["TPR"] + roc["TPR"].shift()) / 2).sum()
    assert steps == pytest.approx(best["validation_roc_auc"], abs=1e-3)  # 200 points
    gained = pr["recall"].diff().fillna(pr["recall"].iloc[0])
    assert (gained * pr["precision"]).sum() == pytest.approx(best["validation_pr_auc"], abs=0.01)
    # The first model, before the refit: rows weigh 1, all in.
    assert calibration["weight"].sum() == summary.facts["numValidationRows"]
    assert len(calibration) == 20
    # 490 rows a group: five standard errors of a share
    assert np.abs(calibration["score"] - calibration["rate"]).max() < 5 * 0.5 / 490**0.5


def test_a_regressor_and_a_training_without_validation_have_no_curves(
    by_two: FactorizationMachineModel, train: DataFrame
) -> None:
    for summary in (by_two.summary, fast_fm(epochs=1).fit(train).summary):
        assert summary.roc is None
        assert summary.pr is None
        assert summary.calibration is None


@pytest.mark.parametrize("kind", ["classifier", "by_two"])
def test_the_summary_survives_save_and_load(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = request.getfixturevalue(kind)
    model.write().overwrite().save(str(tmp_path / "model"))

    loaded = FactorizationMachineModel.load(str(tmp_path / "model")).summary

    assert loaded == model.summary
    assert loaded.history.equals(model.summary.history)
    if kind == "classifier":
        assert loaded.roc.equals(model.summary.roc)
        assert loaded.calibration.equals(model.summary.calibration)


@pytest.mark.parametrize(
    ("kind", "titles"),
    [
        ("classifier", ["Loss by epoch", "ROC", "Precision and recall", "Calibration"]),
        ("by_two", ["Loss by epoch", "Validation errors by epoch", "Validation R² by epoch"]),
        ("regressor", ["Loss by epoch"]),
    ],
)
def test_a_loaded_summary_draws_without_data(
    kind: str, titles: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    request.getfixturevalue(kind).write().overwrite().save(str(tmp_path / "model"))
    summary = FactorizationMachineModel.load(str(tmp_path / "model")).summary

    figure = summary.plot(str(tmp_path / "plot.png"))

    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_title() for axes in figure.axes] == titles
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    losses = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(losses, summary.history["trainLoss"])


def test_a_summary_measures_the_model_that_it_came_from(
    classifier: FactorizationMachineModel, train: DataFrame
) -> None:
    strict = classifier.copy().setThreshold(0.9)

    measured = classifier.summary.evaluate(train).metrics

    assert measured == classifier.evaluate(train).metrics
    assert strict.summary.evaluate(train).metrics == strict.evaluate(train).metrics
    assert strict.summary.evaluate(train).metrics["recall"] < measured["recall"]
    assert strict.summary == classifier.summary
    alone = FMTrainingSummary(classifier.summary.rows, classifier.summary.facts)
    with pytest.raises(SparkFMError, match=r"no model to measure.*model\.evaluate\(df\)"):
        alone.evaluate(train)
