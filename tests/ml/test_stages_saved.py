"""The estimator on disk; both stages in pipelines and under cross-validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import VectorSlicer
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession

from spark_fm import FactorizationMachine
from tests.ml.builders import VALUES, K, column, fast_fm


@pytest.mark.usefixtures("spark")
def test_a_saved_estimator_comes_back_as_it_was(tmp_path: Path) -> None:
    fm = FactorizationMachine(**VALUES)

    fm.save(str(tmp_path / "fm"))
    loaded = FactorizationMachine.load(str(tmp_path / "fm"))

    assert_same_params(fm, loaded)


@pytest.mark.usefixtures("spark")
def test_a_saved_estimator_keeps_what_is_set_and_what_is_not(tmp_path: Path) -> None:
    fm = FactorizationMachine(epochs=50, factorsLr=0.25)  # 50 is the default, but set

    fm.save(str(tmp_path / "fm"))
    loaded = FactorizationMachine.load(str(tmp_path / "fm"))

    assert_same_params(fm, loaded)
    assert [param.name for param in loaded.params if loaded.isSet(param)] == ["epochs", "factorsLr"]


@pytest.mark.usefixtures("spark")
def test_saving_an_estimator_replaces_another_only_with_overwrite(tmp_path: Path) -> None:
    path = str(tmp_path / "fm")
    FactorizationMachine(epochs=3).save(path)

    with pytest.raises(Exception, match=r"(?i)already exists"):
        FactorizationMachine(epochs=4).save(path)
    assert FactorizationMachine.load(path).getEpochs() == 3

    FactorizationMachine(epochs=4).write().overwrite().save(path)
    assert FactorizationMachine.load(path).getEpochs() == 4


def assert_same_params(stage: Any, loaded: Any) -> None:
    assert type(loaded) is type(stage)
    assert loaded.uid == stage.uid
    for param in stage.params:
        other = loaded.getParam(param.name)
        assert loaded.isSet(other) == stage.isSet(param), param.name
        assert loaded.isDefined(other) == stage.isDefined(param), param.name
        assert loaded.hasDefault(other) == stage.hasDefault(param), param.name
        if stage.isDefined(param):
            assert loaded.getOrDefault(other) == stage.getOrDefault(param), param.name


# Pipelines and cross-validation ---------------------------------------------------------


def test_a_pipeline_fits_saves_and_loads(train: DataFrame, tmp_path: Path) -> None:
    slicer = VectorSlicer(inputCol="features", outputCol="first", indices=list(range(10)))
    pipeline = Pipeline(stages=[slicer, fast_fm(featuresCol="first")])
    path = str(tmp_path / "pipeline")

    pipeline.write().overwrite().save(path)
    model = Pipeline.load(path).fit(train)
    model.write().overwrite().save(path)  # over the pipeline
    loaded = PipelineModel.load(path)

    assert model.stages[1].numFeatures == 10
    scores = column(model.transform(train), "score")
    assert (column(loaded.transform(train), "score") == scores).all()


def test_a_cross_validator_fits_in_threads_saves_and_loads(
    spark: SparkSession, train: DataFrame, tmp_path: Path
) -> None:
    fm = fast_fm()
    grid = ParamGridBuilder().addGrid(fm.factorsInitSigma, [0.1, 0.3]).build()
    evaluator = BinaryClassificationEvaluator(rawPredictionCol="score")
    validator = CrossValidator(
        estimator=fm, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, parallelism=2,
        seed=1,
    )  # fmt: skip
    path = str(tmp_path / "cv")

    model = validator.fit(train)
    model.write().overwrite().save(path)
    loaded = CrossValidatorModel.load(path)

    assert all(0.5 < metric <= 1 for metric in model.avgMetrics)
    assert model.avgMetrics[0] != model.avgMetrics[1]
    assert loaded.bestModel.uid == fm.uid
    assert loaded.bestModel.weights.k == K
    scores = column(model.transform(train), "score")
    assert (column(loaded.transform(train), "score") == scores).all()
