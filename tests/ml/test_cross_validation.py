"""CrossValidator and TrainValidationSplit over the estimator: in threads, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import FeatureHasher
from pyspark.ml.tuning import (
    CrossValidator,
    CrossValidatorModel,
    ParamGridBuilder,
    TrainValidationSplit,
    TrainValidationSplitModel,
)
from pyspark.sql import DataFrame, SparkSession

from benchmarks.datasets import Rows, a9a, to_frame
from spark_fm import FactorizationMachine, FactorizationMachineModel
from tests.adult import CATEGORIES, adult_frame
from tests.ml.builders import VALUES, column, fast_fm

# What a grid cannot vary here: columns that the data lack, and what the evaluator reads.
DATA_PARAMS = {"featuresCol", "labelCol", "weightCol", "validationIndicatorCol"}
EVALUATED = {"predictorType", "rawPredictionCol", "validationMetric"}
STILL, MOVING = 1e-6, 0.2  # learning rates: one that changes nothing in two epochs, one that learns


def by_area() -> BinaryClassificationEvaluator:
    return BinaryClassificationEvaluator()


@pytest.fixture(scope="module")
def adult(spark: SparkSession) -> DataFrame:
    """1,500 rows of a9a."""
    rows = a9a().train
    return to_frame(spark, Rows(rows.X[:1500], rows.y[:1500]), n_partitions=1).cache()


def validator_of(parallelism: int) -> CrossValidator:
    """Return a cross-validation of 3 maps x 2 folds, whose last map learns."""
    machine = fast_fm(linearLr=STILL, factorsLr=STILL)
    grid = ParamGridBuilder().addGrid(machine.linearLr, [STILL, 1e-5, MOVING]).build()
    return CrossValidator(
        estimator=machine, estimatorParamMaps=grid, evaluator=by_area(),
        numFolds=2, parallelism=parallelism, collectSubModels=True, seed=5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def validated(adult: DataFrame) -> CrossValidatorModel:
    return validator_of(parallelism=3).fit(adult)


def same_maps(maps: list[dict[Any, Any]], others: list[dict[Any, Any]]) -> bool:
    def plain(maps: list[dict[Any, Any]]) -> list[dict[tuple[str, str], Any]]:
        return [{(p.parent, p.name): value for p, value in each.items()} for each in maps]

    return plain(maps) == plain(others)


def assert_same_scores(one: Any, other: Any, rows: DataFrame) -> None:
    assert np.array_equal(
        column(one.transform(rows), "score"), column(other.transform(rows), "score")
    )


# CrossValidator -------------------------------------------------------------------------


def test_cross_validation_finds_the_map_that_learns(
    validated: CrossValidatorModel, adult: DataFrame
) -> None:
    assert int(np.argmax(validated.avgMetrics)) == 2
    assert validated.avgMetrics[2] > 0.85  # ROC AUC; labels assigned at random give 0.5
    assert isinstance(validated.bestModel, FactorizationMachineModel)
    assert validated.bestModel.getLinearLr() == MOVING
    assert by_area().evaluate(validated.transform(adult)) > 0.85


def test_all_models_are_kept_with_the_params_of_their_map(validated: CrossValidatorModel) -> None:
    assert [len(models) for models in validated.subModels] == [3, 3]
    for models in validated.subModels:
        assert [model.getLinearLr() for model in models] == [STILL, 1e-5, MOVING]
    first, second = (models[2] for models in validated.subModels)
    assert not np.array_equal(first.linear, second.linear)  # of different folds


def test_threads_change_no_figure(validated: CrossValidatorModel, adult: DataFrame) -> None:
    alone = validator_of(parallelism=1).fit(adult)

    assert alone.avgMetrics == validated.avgMetrics
    assert alone.stdMetrics == validated.stdMetrics
    assert np.array_equal(alone.bestModel.linear, validated.bestModel.linear)


def test_a_cross_validator_is_saved_and_loaded(tmp_path: Path) -> None:
    validator = validator_of(parallelism=3)
    path = str(tmp_path / "validator")

    validator.save(path)
    validator.write().overwrite().save(path)
    loaded = CrossValidator.load(path)

    assert isinstance(loaded.getEstimator(), FactorizationMachine)
    assert loaded.getEstimator().uid == validator.getEstimator().uid
    assert loaded.getEstimator().getFactorsLr() == STILL
    assert same_maps(loaded.getEstimatorParamMaps(), validator.getEstimatorParamMaps())
    assert (loaded.getNumFolds(), loaded.getParallelism()) == (2, 3)
    assert loaded.getCollectSubModels()


def test_a_cross_validator_model_is_saved_and_loaded(
    validated: CrossValidatorModel, adult: DataFrame, tmp_path: Path
) -> None:
    path = str(tmp_path / "model")

    validated.save(path)
    loaded = CrossValidatorModel.load(path)

    assert loaded.avgMetrics == validated.avgMetrics
    assert same_maps(loaded.getEstimatorParamMaps(), validated.getEstimatorParamMaps())
    # Spark's reader gives every fold the last one's models: each is looked at in its folder.
    for fold, models in enumerate(validated.subModels):
        for number, model in enumerate(models):
            kept = FactorizationMachineModel.load(f"{path}/subModels/fold{fold}/{number}")
            assert np.array_equal(kept.linear, model.linear)
            assert kept.summary == model.summary
    assert np.array_equal(loaded.subModels[1][2].linear, validated.subModels[1][2].linear)
    assert_same_scores(loaded, validated, adult)


# Pipelines ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people(spark: SparkSession) -> DataFrame:
    """1,500 rows of UCI Adult in raw columns."""
    rows = a9a().train
    return adult_frame(spark, Rows(rows.X[:1500], rows.y[:1500]), n_partitions=1).cache()


def test_a_pipeline_is_validated_over_params_of_all_its_stages(
    people: DataFrame, tmp_path: Path
) -> None:
    hasher = FeatureHasher(inputCols=list(CATEGORIES), outputCol="features")
    machine = fast_fm()
    grid = (
        ParamGridBuilder()
        .addGrid(hasher.numFeatures, [2, 2**12])
        .addGrid(machine.epochs, [3])
        .build()
    )
    validator = CrossValidator(
        estimator=Pipeline(stages=[hasher, machine]), estimatorParamMaps=grid, evaluator=by_area(),
        numFolds=2, parallelism=3, seed=5,
    )  # fmt: skip

    model = validator.fit(people)
    model.save(str(tmp_path / "model"))
    loaded = CrossValidatorModel.load(str(tmp_path / "model"))

    best = model.bestModel.stages[-1]
    assert best.numFeatures == 2**12  # 14 columns in 2 features tell little
    assert best.summary.totalIterations == 3
    assert model.avgMetrics[1] > max(0.85, model.avgMetrics[0])
    assert_same_scores(loaded, model, people)


def test_a_cross_validator_is_a_stage_of_a_pipeline(people: DataFrame, tmp_path: Path) -> None:
    hasher = FeatureHasher(inputCols=list(CATEGORIES), outputCol="features", numFeatures=2**12)
    machine = fast_fm()
    grid = ParamGridBuilder().addGrid(machine.epochs, [1, 3]).build()
    validator = CrossValidator(
        estimator=machine, estimatorParamMaps=grid, evaluator=by_area(), numFolds=2, parallelism=3
    )

    model = Pipeline(stages=[hasher, validator]).fit(people)
    model.save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))

    assert isinstance(loaded.stages[-1], CrossValidatorModel)
    assert_same_scores(loaded, model, people)


# TrainValidationSplit -------------------------------------------------------------------


def test_a_split_finds_the_map_that_learns_and_comes_back(
    ratings: DataFrame, tmp_path: Path
) -> None:
    machine = fast_fm(predictorType="regressor", scoreCol="")
    learning = {machine.linearLr: MOVING, machine.factorsLr: MOVING, machine.epochs: 30}
    still = {machine.linearLr: STILL, machine.factorsLr: STILL, machine.epochs: 1}
    validator = TrainValidationSplit(
        estimator=machine, estimatorParamMaps=[still, learning], evaluator=RegressionEvaluator(),
        trainRatio=0.75, parallelism=3, collectSubModels=True, seed=5,
    )  # fmt: skip

    validator.save(str(tmp_path / "validator"))
    model = TrainValidationSplit.load(str(tmp_path / "validator")).fit(ratings)
    model.save(str(tmp_path / "model"))
    loaded = TrainValidationSplitModel.load(str(tmp_path / "model"))

    assert model.validationMetrics[1] < 0.9 * model.validationMetrics[0]  # RMSE
    assert model.bestModel.summary.totalIterations == 30
    assert [each.getEpochs() for each in model.subModels] == [1, 30]
    assert loaded.validationMetrics == model.validationMetrics
    assert [each.getEpochs() for each in loaded.subModels] == [1, 30]
    assert np.array_equal(
        column(loaded.transform(ratings), "prediction"),
        column(model.transform(ratings), "prediction"),
    )


def test_a_grid_may_vary_every_param(train: DataFrame) -> None:
    machine = fast_fm()
    # One worker is all that these take, so each has a map of its own.
    alone = {"sageMakerTraining", "solver", "keepPosterior"}
    names = sorted(VALUES.keys() - DATA_PARAMS - EVALUATED - alone)
    everything = {machine.getParam(name): VALUES[name] for name in names}
    maps = [{machine.seed: 3}, everything, {machine.sageMakerTraining: True},
            {machine.solver: "gibbs", machine.keepPosterior: True}]  # fmt: skip
    validator = TrainValidationSplit(
        estimator=machine, estimatorParamMaps=maps,
        evaluator=by_area(), parallelism=3, collectSubModels=True, seed=5,
    )  # fmt: skip

    first, second, third, fourth = validator.fit(train).subModels

    assert first.getSeed() == 3
    assert not first.isSet(first.optimizer)
    for name in names:
        assert second.getOrDefault(second.getParam(name)) == VALUES[name], name
    assert second.numFeatures == VALUES["featureDim"]
    assert second.factors.shape[1] == VALUES["numFactors"]
    assert second.summary.facts["numWorkers"] == VALUES["numWorkers"]
    assert third.getSageMakerTraining()
    assert third.summary.running
    assert fourth.summary.facts["solver"] == "gibbs"
    assert len(fourth.posterior) == 8  # two sweeps of four chains
