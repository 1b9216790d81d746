"""The evaluator: every metric under both names, in searches, on disk, and its refusals."""

from __future__ import annotations

import doctest
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml.classification import GBTClassifier
from pyspark.ml.tuning import (
    CrossValidator,
    CrossValidatorModel,
    ParamGridBuilder,
    TrainValidationSplit,
)
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm import FactorizationMachineModel, FMEvaluator
from spark_fm.errors import InvalidColumnError, InvalidDataError, InvalidParamError
from spark_fm.ml import evaluator as module
from spark_fm.ml.evaluator import EVALUATOR_METRICS
from tests import oracle
from tests.ml.builders import fast_fm

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {
    "test:binary_classification_cross_entropy": "logloss",
    "test:binary_classification_accuracy": "accuracy",
    "test:binary_f_beta": "f1",
    **{name: name for name in ("logloss", "accuracy", "f1", "roc_auc", "pr_auc")},
}
VALUES = {"test:rmse": "rmse", **{name: name for name in ("rmse", "mae", "r2")}}


def drawn(kind: str) -> list[tuple[float, float, float]]:
    """Draw rows of label, score and weight, with ties among the scores."""
    rng = np.random.default_rng(5)
    score = rng.integers(1, 12, 80) / 12
    label = rng.random(80) < score if kind == "logistic" else 3 * score + rng.normal(0, 1, 80)
    weight = rng.choice([0.0, 0.5, 3.0], 80)
    return [tuple(map(float, row)) for row in zip(label, score, weight, strict=True)]


@pytest.fixture(scope="module")
def scored(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(drawn("logistic"), ["label", "score", "w"]).coalesce(2)


@pytest.fixture(scope="module")
def valued(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(drawn("squared"), ["label", "score", "w"]).coalesce(2)


@pytest.mark.parametrize(
    ("name", "weighted"), [(name, i % 2 == 1) for i, name in enumerate([*CLASSES, *VALUES])]
)
def test_metrics_equal_the_plain_formulas(
    name: str, weighted: bool, scored: DataFrame, valued: DataFrame
) -> None:
    loss = "logistic" if name in CLASSES else "squared"
    label, score, weight = np.array(drawn(loss)).T
    weight = weight if weighted else np.ones_like(weight)
    raw = np.log(score / (1 - score)) if loss == "logistic" else score
    expected = oracle.metrics(loss, raw, label, weight)[{**CLASSES, **VALUES}[name]]

    evaluator = FMEvaluator(metricName=name, weightCol="w" if weighted else None)
    found = evaluator.evaluate(scored if loss == "logistic" else valued)

    assert isinstance(found, float)
    assert found == pytest.approx(expected, rel=1e-9)  # float64; scores are ties or far apart


def test_larger_is_better_by_metric() -> None:
    better = {name for name in EVALUATOR_METRICS if FMEvaluator(metricName=name).isLargerBetter()}

    assert set(EVALUATOR_METRICS) - better == {
        "test:binary_classification_cross_entropy", "test:rmse", "logloss", "rmse", "mae",
    }  # fmt: skip


def test_the_default_is_sagemaker_s_cross_entropy(scored: DataFrame) -> None:
    assert FMEvaluator().getMetricName() == "test:binary_classification_cross_entropy"
    assert FMEvaluator().evaluate(scored) == FMEvaluator(metricName="logloss").evaluate(scored)


def test_beta_weighs_recall(scored: DataFrame) -> None:
    label, score, _ = np.array(drawn("logistic")).T
    hit = np.sum((score >= 0.5) & (label == 1))
    precision, recall = hit / np.sum(score >= 0.5), hit / np.sum(label)
    for beta in (0.5, 2.0):
        found = FMEvaluator(metricName="test:binary_f_beta", beta=beta).evaluate(scored)
        expected = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
        assert found == pytest.approx(expected)
    plain = [FMEvaluator(metricName="f1", beta=beta).evaluate(scored) for beta in (0.5, 2.0)]
    assert plain[0] == plain[1]


def test_threshold_cuts_the_scores(scored: DataFrame) -> None:
    label, score, _ = np.array(drawn("logistic")).T
    evaluator = FMEvaluator(metricName="accuracy").setThreshold(0.75)

    assert evaluator.evaluate(scored) == pytest.approx(np.mean((score >= 0.75) == label))


def test_columns_are_those_named(scored: DataFrame) -> None:
    renamed = scored.toDF("y.1", "s.1", "w")
    evaluator = FMEvaluator().setLabelCol("y.1").setScoreCol("s.1").setWeightCol("w")

    found = evaluator.evaluate(renamed)

    assert found == pytest.approx(FMEvaluator(weightCol="w").evaluate(scored), rel=1e-12)
    assert found != FMEvaluator().evaluate(scored)


def test_a_param_map_overrides_for_one_call(scored: DataFrame) -> None:
    evaluator = FMEvaluator()

    found = evaluator.evaluate(scored, {evaluator.metricName: "accuracy"})

    assert found == FMEvaluator(metricName="accuracy").evaluate(scored)
    assert evaluator.getMetricName() == "test:binary_classification_cross_entropy"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"metricName": "auc"}, r"metricName='auc' is not allowed: expected one of test:bin"),
        ({"threshold": 1.5}, r"threshold=1\.5 is not allowed: expected 0 to 1"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"beta": 0.0}, r"beta=0\.0 is not allowed: expected a finite number > 0"),
        ({"beta": math.inf}, "beta=inf"),
    ],
)
def test_values_out_of_range_are_refused(
    params: dict[str, Any], message: str, scored: DataFrame
) -> None:
    with pytest.raises(InvalidParamError, match=message):
        FMEvaluator(**params).evaluate(scored)


def test_an_unknown_metric_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(InvalidParamError, match="metricName='auc' is not allowed"):
        FMEvaluator(metricName="auc")
    with pytest.raises(InvalidParamError, match="metricName='auc' is not allowed"):
        FMEvaluator().setMetricName("auc")


def test_a_classifier_s_metric_of_a_regressor_names_the_regressor_s(spark: SparkSession) -> None:
    scored = spark.createDataFrame([(3.0, 2.5), (4.0, 4.5)], ["label", "score"])

    with pytest.raises(InvalidDataError, match=r'For a regressor .*metricName="rmse"'):
        FMEvaluator().evaluate(scored)


@pytest.mark.parametrize("name", ["metricName", "scoreCol", "threshold", "beta"])
def test_values_of_another_type_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        FMEvaluator(**{name: object()})


def test_none_leaves_a_param_at_its_default() -> None:
    evaluator = FMEvaluator(beta=2.0, weightCol="w")

    evaluator.setParams(beta=None, weightCol=None)

    assert evaluator.getBeta() == 1.0
    assert not evaluator.isDefined(evaluator.weightCol)
    assert "metricName" in evaluator.explainParams()


# -- rows -----------------------------------------------------------------------------


def test_rows_without_a_score_are_left_out_with_a_warning(
    scored: DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    more = scored.unionByName(scored.withColumn("score", F.lit(None).cast("double")))

    with caplog.at_level(logging.WARNING, logger="spark_fm"):
        found = FMEvaluator().evaluate(more)

    assert found == pytest.approx(FMEvaluator().evaluate(scored), rel=1e-12)
    assert "left out 80 row(s)" in caplog.text


@pytest.mark.parametrize(
    ("column", "value", "metric", "message"),
    [
        ("label", 2.0, "logloss", r"labelCol='label' has 80 row\(s\) with a label other than 0"),
        ("label", None, "accuracy", "for example null"),
        ("label", math.nan, "rmse", r"null or NaN, for example NaN"),
        ("w", -1.0, "logloss", r"weightCol='w' has 80 row\(s\).*negative"),
        ("w", None, "mae", "weightCol='w'"),
        ("score", math.nan, "r2", r"scoreCol='score' has 80 row\(s\) with a NaN score"),
        ("score", None, "f1", "no rows that can be scored"),
        ("score", 1.5, "logloss", r"outside 0 to 1.*needs P\(label = 1\)"),
        ("label", 1.0, "roc_auc", "metricName='roc_auc' is undefined.*one class"),
        ("label", 3.0, "r2", "metricName='r2' is undefined.*constant labels"),
        ("w", 0.0, "accuracy", "metricName='accuracy' is undefined.*no weight"),
    ],
)
def test_rows_that_give_no_metric_raise(
    column: str, value: float | None, metric: str, message: str, scored: DataFrame
) -> None:
    broken = scored.withColumn(column, F.lit(value).cast("double"))

    with pytest.raises(InvalidDataError, match=message):
        FMEvaluator(metricName=metric, weightCol="w").evaluate(broken)


def test_missing_and_wrong_columns_are_named(scored: DataFrame) -> None:
    with pytest.raises(InvalidColumnError, match="scoreCol='s' is not a column"):
        FMEvaluator(scoreCol="s").evaluate(scored)
    with pytest.raises(InvalidColumnError, match="labelCol='label' has type string"):
        FMEvaluator().evaluate(scored.withColumn("label", F.lit("1")))
    with pytest.raises(InvalidColumnError, match="weightCol='v' is not a column"):
        FMEvaluator(weightCol="v").evaluate(scored)


def test_areas_take_any_score_in_order(scored: DataFrame) -> None:
    """Margins order rows as probabilities do, below 0 and above 1 too."""
    margins = scored.withColumn("score", F.log(F.col("score") / (1 - F.col("score"))))
    for metric in ("roc_auc", "pr_auc"):
        evaluator = FMEvaluator(metricName=metric)
        assert evaluator.evaluate(margins) == pytest.approx(evaluator.evaluate(scored), rel=1e-12)


def test_scores_of_spark_s_own_classifier(train: DataFrame) -> None:
    # Not LogisticRegression, whose model PySpark 4.0 cannot always send to tasks after fit.
    model = GBTClassifier(maxIter=2, maxDepth=2, seed=1).fit(train)
    scored = model.transform(train)
    rows = scored.select("label", "probability").collect()
    label, score = (np.array([get(r) for r in rows]) for get in (lambda r: r[0], lambda r: r[1][1]))
    expected = oracle.metrics("logistic", np.log(score / (1 - score)), label, np.ones(len(rows)))

    for metric in ("logloss", "accuracy", "roc_auc"):
        found = FMEvaluator(metricName=metric, scoreCol="probability").evaluate(scored)
        assert found == pytest.approx(expected[metric], rel=1e-6)
    raw = FMEvaluator(metricName="roc_auc", scoreCol="rawPrediction").evaluate(scored)
    assert raw == pytest.approx(expected["roc_auc"], rel=1e-6)
    with pytest.raises(InvalidDataError, match="vector of other than two numbers"):
        FMEvaluator(scoreCol="features").evaluate(scored)


def test_the_docstring_s_example_prints_what_it_says(spark: SparkSession) -> None:
    failures, tried = doctest.testmod(module, extraglobs={"spark": spark})

    assert tried > 0
    assert failures == 0


def test_the_guide_s_examples_run(
    train: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    text = (ROOT / "docs" / "metrics.md").read_text().replace("[4, 16]", "[4]")
    names = {"train": train, "test": train, "FactorizationMachine": fast_fm}
    monkeypatch.chdir(tmp_path)

    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(code, names)

    assert names["found"].metrics["rows"] == 300
    assert 0 < names["best"].avgMetrics[0] < 1


# -- searches and the disk ------------------------------------------------------------


@pytest.mark.usefixtures("spark")
def test_a_saved_evaluator_comes_back_as_it_was(tmp_path: Path) -> None:
    path = str(tmp_path / "evaluator")
    evaluator = FMEvaluator(metricName="test:binary_f_beta", beta=0.5, weightCol="w", threshold=0.3)

    FMEvaluator().save(path)
    evaluator.write().overwrite().save(path)
    loaded = FMEvaluator.load(path)

    assert type(loaded) is FMEvaluator
    assert loaded.uid == evaluator.uid
    for param in evaluator.params:
        other = loaded.getParam(param.name)
        assert loaded.isSet(other) == evaluator.isSet(param)
        assert loaded.getOrDefault(other) == evaluator.getOrDefault(param)


def test_the_class_path_of_saved_evaluators_never_moves(
    spark: SparkSession, tmp_path: Path
) -> None:
    path = str(tmp_path / "evaluator")
    FMEvaluator().save(path)

    metadata = json.loads(spark.read.text(path + "/metadata").first()[0])

    assert metadata["class"] == "spark_fm.ml.evaluator.FMEvaluator"


@pytest.mark.parametrize("metric", ["test:binary_classification_cross_entropy", "roc_auc"])
def test_a_cross_validator_chooses_by_the_metric_saves_and_loads(
    metric: str, train: DataFrame, tmp_path: Path
) -> None:
    fm = fast_fm()
    grid = ParamGridBuilder().addGrid(fm.factorsLr, [0.0, 0.3]).build()
    evaluator = FMEvaluator(metricName=metric)
    validator = CrossValidator(
        estimator=fm, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, parallelism=2,
        seed=1,
    )  # fmt: skip
    path = str(tmp_path / "cv")

    validator.write().overwrite().save(path)
    model = CrossValidator.load(path).fit(train)
    model.write().overwrite().save(path)
    loaded = CrossValidatorModel.load(path)

    first, second = model.avgMetrics
    assert first != second
    chosen = model.bestModel.getOrDefault("factorsLr")
    pick = max if evaluator.isLargerBetter() else min
    assert chosen == [0.0, 0.3][model.avgMetrics.index(pick(first, second))]
    assert loaded.getEvaluator().getMetricName() == metric
    assert isinstance(loaded.bestModel, FactorizationMachineModel)


def test_a_train_validation_split_of_a_regressor(ratings: DataFrame) -> None:
    fm = fast_fm(predictorType="regressor")
    grid = ParamGridBuilder().addGrid(fm.factorsLr, [0.0, 0.3]).build()
    split = TrainValidationSplit(
        estimator=fm, estimatorParamMaps=grid, evaluator=FMEvaluator(metricName="test:rmse"), seed=1
    )

    model = split.fit(ratings)

    best = int(np.argmin(model.validationMetrics))
    assert model.bestModel.getOrDefault("factorsLr") == [0.0, 0.3][best]
